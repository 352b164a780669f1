"""The ledger: a model small enough for pencil and paper, and PAPER's arithmetic for GPT-2 small to the last digit."""

import pytest
from reductions import REDUCTIONS

from replication.config.profiles import load_config
from replication.flops.ledger import CONVENTIONS, COSTS, Ledger, attention_flops, matrix_flops, total
from replication.flops.plan import plan
from replication.flops.stretches import build_ledger
from replication.model import gpt2

TINY = [
    "model.n_layer=1",
    "model.n_head=1",
    "model.n_embd=4",
    "model.n_positions=8",
    "data.vocab_size=257",
    "train.num_steps=4",
    "train.batch_size=2",
    "train.warmup_steps=0",
    "sparsity.update_freq=2",
    "attention.window=3",
    "attention.stride=4",
]
# 16 tokens a step; block matrices 12·4² = 192 weights, head 320 · 4 = 1280, and 64 or 36 pairs in 2 sequences.
BLOCK, HEAD, FULL, CAUSAL = 2 * 192 * 16, 2 * 1280 * 16, 3 * 4 * 64 * 4 * 2, 3 * 4 * 36 * 4 * 2


def tiny_plan(method, *overrides):
    return plan(load_config("smoke", method, 0, [*TINY, *overrides]))


def test_products_and_attention_by_hand():
    assert matrix_flops("block", nnz=3, size=10, tokens=5, dense_gradient=True) == {
        "block_forward": 30,
        "block_input_gradient": 30,
        "block_weight_gradient": 30,
        "block_dense_gradient": 70,
    }
    assert matrix_flops("head", 3, 10, 5, dense_gradient=False)["head_dense_gradient"] == 0
    # 7 pairs, width 4: QK' and the sum over V are 2 · 4 multiply-adds a pair, thrice with the backward pass
    assert attention_flops(pairs=7, n_embd=4, n_layer=2, sequences=3) == 7 * (2 * 4 * 2) * 3 * 2 * 3


def test_dense_by_hand():
    found = tiny_plan("dense")
    assert found["components"] == {
        "block_forward": 4 * BLOCK,
        "block_input_gradient": 4 * BLOCK,
        "block_weight_gradient": 4 * BLOCK,
        "block_dense_gradient": 0,
        "head_forward": 4 * HEAD,
        "head_input_gradient": 4 * HEAD,
        "head_weight_gradient": 4 * HEAD,
        "head_dense_gradient": 0,
        "attention_full": 4 * FULL,
        "attention_causal": 4 * CAUSAL,
        "masked_active": 12 * (BLOCK + HEAD),
    }
    assert (found["steps"], found["tokens"], found["mean_sparsity"], found["final_sparsity"]) == (4, 64, 0, 0)
    flops = {name: count["flops"] for name, count in found["conventions"].items()}
    assert flops == {
        "head_counted_full": 4 * (3 * BLOCK + 3 * HEAD + FULL),
        "head_counted_causal": 4 * (3 * BLOCK + 3 * HEAD + CAUSAL),
        "head_excluded_full": 4 * (3 * BLOCK + FULL),
        "head_excluded_causal": 4 * (3 * BLOCK + CAUSAL),
        "blocks_only": 12 * BLOCK,
        "mean_density": 12 * (BLOCK + HEAD),
    }
    assert all(count["reduction"] == 1 for count in found["conventions"].values())


def test_a_quarter_of_the_steps_is_a_reduction_of_four():
    assert all(count["reduction"] == 4 for count in tiny_plan("dense_quarter")["conventions"].values())


@pytest.mark.parametrize(("method", "surplus_steps"), [("static", 0), ("set", 0), ("rigl", 1)])
def test_dense_gradient_steps_are_charged_to_the_method_that_needs_them(method, surplus_steps):
    found = tiny_plan(method, "sparsity.sparsity=0.75", "sparsity.distribution=uniform")["components"]
    assert found["block_weight_gradient"] == 4 * BLOCK // 4 and found["head_forward"] == 4 * HEAD // 4
    assert found["block_dense_gradient"] == surplus_steps * BLOCK * 3 // 4  # the update is at step 2
    assert found["head_dense_gradient"] == surplus_steps * HEAD * 3 // 4


def test_an_unmasked_head_is_charged_whole_and_has_no_surplus():
    found = tiny_plan("rigl", "sparsity.mask_lm_head=false")["components"]
    assert (
        found["head_weight_gradient"] == 4 * HEAD and found["head_dense_gradient"] == 0 < found["block_dense_gradient"]
    )


def test_a_sparse_pattern_counts_its_pairs_under_both_conventions():
    phases = ["mst.warmup_end=0.25", "mst.restoration_start=0.75", "mst.restoration_end=1"]
    found = tiny_plan("mst", *phases, "attention.pattern=local")  # 2 of 4 steps keep 1 + 2 + 6·3 = 21 pairs
    assert found["components"]["attention_full"] == 2 * FULL + 2 * FULL * 21 // 64
    assert found["components"]["attention_causal"] == 2 * CAUSAL + 2 * CAUSAL * 21 // 36
    assert set(found["phases"]) == {"warm-up", "ultra-sparsification", "restoration"}


@pytest.mark.parametrize("method", ["dense", "rigl", "mst"])
def test_phases_add_up_to_the_components(method):
    found = tiny_plan(method)
    for name, value in found["components"].items():
        assert sum(phase[name] for phase in found["phases"].values()) == value
    for name, count in found["conventions"].items():
        assert count["flops"] == total(found["components"], name)


def test_mean_density_by_hand():
    # 1472 maskable weights, 368 of them active at 75 %, or 48 of the blocks' 192: three products of 16 tokens, 4 steps
    head = {"true": (4 * 3 * 2 * 16 * 368, 4 * 3 * 2 * 16 * 1472), "false": (4 * 3 * 2 * 16 * 48, 4 * 3 * 2 * 16 * 192)}
    for mask_lm_head, (flops, dense_flops) in head.items():
        overrides = ["sparsity.sparsity=0.75", f"sparsity.mask_lm_head={mask_lm_head}"]
        for method in ("static", "set", "rigl"):  # RigL's dense gradient is none of it
            count = tiny_plan(method, *overrides)["conventions"]["mean_density"]
            assert count == {"dense_flops": dense_flops, "flops": flops, "reduction": 4}


@pytest.mark.parametrize("method", ["static", "set", "rigl", "mst"])
@pytest.mark.parametrize("arm", ["", "_dense_head"])
def test_by_mean_density_the_reduction_is_one_by_it(method, arm):
    found = plan(load_config("small", method + arm))
    assert found["conventions"]["mean_density"]["reduction"] == pytest.approx(1 / (1 - found["mean_sparsity"]))


def test_what_mean_density_counts_is_in_no_other_sum():
    found = tiny_plan("mst")
    without = {name: value for name, value in found["components"].items() if name != "masked_active"}
    assert all(total(without, name) == total(found["components"], name) for name in COSTS)
    assert set(CONVENTIONS) - set(COSTS) == {"mean_density"} and total(without, "mean_density") == 0


def test_a_state_of_a_version_without_mean_density_is_resumed_to_the_same_count():
    ledger = build_ledger(load_config("smoke", "mst", 0, TINY))
    half = {name: size // 2 for name, size in ledger.sizes.items()}
    ledger.charge("warm-up", half, "dense", dense_gradient=True)
    before = ledger.state()
    old = before | {"phases": {"warm-up": {**before["phases"]["warm-up"]}}}
    del old["phases"]["warm-up"]["masked_active"]
    again = build_ledger(ledger.config)
    again.load_state(old)
    for one in (ledger, again):
        one.charge("restoration", half, "dense", dense_gradient=False)
    assert again.report(half) == ledger.report(half)
    assert again.components()["masked_active"] == 2 * 3 * (BLOCK + HEAD) // 2


def test_state_round_trip():
    ledger = build_ledger(load_config("smoke", "dense", 0, TINY))
    ledger.charge("training", {}, "dense", dense_gradient=False)
    again = build_ledger(ledger.config)
    again.load_state(ledger.state())
    for one in (ledger, again):
        one.charge("training", {gpt2.HEAD: 5}, "dense", dense_gradient=True)
    assert again.report({}) == ledger.report({})


# --- GPT-2 small, as in PAPER "The arithmetic of 4×" (`derived`) ---


def paper(*overrides, method="mst"):
    return load_config("paper", method, 0, overrides)


def test_forward_megaflops_per_token():
    config = paper(method="dense")
    ledger: Ledger = build_ledger(config)
    ledger.charge("training", {}, "dense", dense_gradient=False)
    found, tokens = ledger.components(), ledger.tokens_per_step
    per_token = {name: round(value / tokens / 1e6, 2) for name, value in found.items()}
    assert (per_token["block_forward"], per_token["head_forward"]) == (169.87, 77.27)
    assert (
        round(found["attention_full"] / 3 / tokens / 1e6, 2),
        round(found["attention_causal"] / 3 / tokens / 1e6, 2),
    ) == (37.75, 18.89)


def test_dense_pretraining():
    found = plan(paper(method="dense"))
    assert f"{found['tokens']:.2e}" == "2.95e+11"
    flops = {name: f"{count['flops']:.2e}" for name, count in found["conventions"].items()}
    assert (flops["blocks_only"], flops["head_excluded_full"], flops["head_counted_full"]) == (
        "1.50e+20",
        "1.84e+20",
        "2.52e+20",
    )


# PAPER's table takes one density for all layers, a ramp that moves at every step, and no dense gradients.
SMOOTH = (
    "mst.restoration_start=0.7",
    "sparsity.update_freq=1",
    "sparsity.distribution=uniform",
    "mst.growth=random",
    "train.num_steps=20000",
)


@pytest.mark.parametrize(("mask_lm_head", "head", "full", "causal"), REDUCTIONS)
def test_the_table_of_reductions(mask_lm_head, head, full, causal):
    found = plan(paper(*SMOOTH, f"sparsity.mask_lm_head={mask_lm_head}"))["conventions"]
    assert round(found[f"head_{head}_full"]["reduction"], 2) == full
    assert round(found[f"head_{head}_causal"]["reduction"], 2) == causal


def test_with_a_dense_counted_head_even_empty_blocks_cap_the_reduction():
    config = paper(method="dense")
    ledger = build_ledger(config)
    empty = {name: 0 for name in gpt2.matrix_shapes(config) if name != gpt2.HEAD}
    ledger.charge("training", empty, "dense", dense_gradient=False, num_steps=config.train.steps)
    dense, spent = ledger.dense_components(), ledger.components()
    caps = {
        name: round(total(dense, name) / total(spent, name), 2) for name in ("head_counted_full", "head_counted_causal")
    }
    assert caps == {"head_counted_full": 2.48, "head_counted_causal": 2.77}


def test_conventions_count_attention_once():
    assert all(sum(name.startswith("attention") for name in parts) <= 1 for parts in CONVENTIONS.values())


def test_planning_allocates_no_model(monkeypatch):
    monkeypatch.setattr("torch.empty", None)
    monkeypatch.setattr("torch.nn.Module.__init__", None)
    assert plan(paper())["steps"] == 600_000
