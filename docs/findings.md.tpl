# Findings

@@LEAD@@

The words of the tables: an *arm* is a method with fixed settings, trained with n seeds; *LM head* says whether it is
pruned like the other matrices (it is tied to the token embedding); *drop* is the share of connections that the first
update drops, *every* the steps between updates, *tries* the settings that tuning tried (* where the best value lies at
an end of those tried); *sparsity* is the share of the maskable weights that is zero, at the end, and as a mean over
training; *FLOPs saved* is dense ÷ this; loss is in nats per token over the whole validation split; the difference to
dense is paired over n seeds. How FLOPs are counted is a [convention](flops.md).

## Profile `small`

@@SMALL@@

## On real prose

Profile `text` has GPT-2's shares of FLOPs, 0.15 M parameters and twenty tokens a parameter of prose. **Its runs are
not there yet.** It reads WikiText-103 from the hub, or local files:

```bash
make replicate-table1 PROFILE=text SET="data.source=files data.files=[books.train.txt.gz] data.validation_files=[books.heldout.txt.gz]"
```

What a larger `text` gave at 1.5 tokens a parameter is on the page of the [earlier runs](earlier.md).

## What the parts are worth

`make replicate-ablations` trains, beside Table 1's arms, MST with the head dense with one part changed at a time. These
runs are not there yet at twenty tokens a parameter; [what they gave at four](earlier.md#what-each-part-was-worth), and
[what blocks cost](earlier.md#what-blocks-cost).
