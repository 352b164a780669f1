"""The fidelity ledger holds what the paper profile uses, and what it says of the code is so."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from reductions import REDUCTIONS

from replication import paper
from replication.cli import main
from replication.config.profiles import load_config
from replication.config.run_config import config_keys
from replication.flops.ledger import total
from replication.flops.plan import plan
from replication.flops.stretches import build_ledger
from replication.model.patterns import num_pairs
from replication.system.errors import UserError

ROOT = Path(__file__).parent.parent
PROFILE = (ROOT / "replication/config/profiles/paper.yaml").read_text(encoding="utf-8")
TAGGED = re.compile(r"^  (\w+): *([^#\n]*?) *#(.*)$", re.MULTILINE)


def mismatches(ledger, profile):
    """Keys of the profile's sections whose value or tags the ledger lacks."""
    found = []
    text = profile.split("\neval:")[0]
    for section, body in re.findall(r"^(\w+):\n((?:  .*\n?)+)", text, re.MULTILINE):
        for key in yaml.safe_load(body):
            entries = [fact for fact in ledger["facts"] if f"{section}.{key}" in fact["used"]]
            if not any(fact["value"] == yaml.safe_load(body)[key] for fact in entries):
                found.append(f"{section}.{key}")
        for key, value, comment in TAGGED.findall(body):
            tags = re.findall(r"(?:^|[,;])\s*(abstract|readme|code|tmlr|derived|ours)\b", comment)
            if not any(
                set(fact["tags"]) == set(tags) and fact["value"] == yaml.safe_load(value)
                for fact in ledger["facts"]
                if f"{section}.{key}" in fact["used"]
            ):
                found.append(f"{section}.{key} tags")
    return found


def test_the_profile_is_as_the_ledger_says():
    assert len(TAGGED.findall(PROFILE)) > 35
    assert mismatches(paper.load(), PROFILE) == []


def test_a_differing_or_missing_value_or_tag_is_found():
    ledger = paper.load()
    assert mismatches(ledger, PROFILE.replace("n_layer: 12 ", "n_layer: 13 ")) == [
        "model.n_layer",
        "model.n_layer tags",
    ]
    assert mismatches(
        ledger, PROFILE.replace("batch_size: 480           # readme, code", "batch_size: 480           # tmlr")
    ) == ["train.batch_size tags"]
    assert mismatches(ledger, PROFILE.replace("  stride: 128 ", "  span: 128 ")) == [
        "attention.span",
        "attention.span tags",
    ]
    without = {"facts": [fact for fact in ledger["facts"] if fact["fact"] != "steps"]}
    assert mismatches(without, PROFILE) == ["train.num_steps", "train.num_steps tags"]


def test_whatever_is_said_to_use_a_fact_exists():
    keys = config_keys()
    for fact in paper.load()["facts"]:
        for used in fact["used"]:
            file, colon, name = used.partition(":")
            if colon:
                assert re.search(
                    rf"^(def|class) {name}\b|^{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE
                ), used
            else:
                assert used in keys, used


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("facts", {"tags": ["rumour"]}, "has the tags .*rumour.*; allowed: .*abstract"),
        ("facts", {"colour": "red"}, "allowed: fact, tags, used, value and unit"),
        ("facts", {"tags": []}, r"has the tags \[\]; allowed: a list"),
        ("facts", {"tags": None}, "has the tags None; allowed: a list"),
        ("facts", {"fact": "layers"}, "facts: layers is given 2 times"),
        ("results", {"arm": "mts"}, "has the arm mts; allowed: dense, static, rigl, mst"),
        ("results", {"arm": "mst", "quantity": "reduction"}, "mst reduction is given 2 times"),
        ("results", {"value": "12,5", "tags": ["pdf"]}, "is '12,5'; allowed: null or a number"),
        ("results", {"value": 12.5, "tags": []}, r"has the tags \[\]"),
        ("results", {"value": 12.5}, "null with ours, or a value with its source"),
        ("results", {"tags": ["pdf"]}, "null with ours, or a value with its source"),
    ],
)
def test_a_broken_ledger_is_one_line(section, change, message):
    ledger = copy.deepcopy(paper.load())
    ledger[section][-1].update(change)
    with pytest.raises(UserError, match=message):
        paper.check(ledger)


def test_sections_are_the_known_ones():
    with pytest.raises(UserError, match="has the sections facts; allowed: facts, results, references"):
        paper.check({"facts": []})


def test_bars_in_a_fact_leave_the_printed_table_whole():
    rows = [line.replace(r"\|", "") for line in paper.render().splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {6}


def test_a_result_may_be_filled_in_with_its_source():
    ledger = copy.deepcopy(paper.load())
    ledger["results"][-1].update(value=12.5, tags=["pdf"])
    paper.check(ledger)


def test_results_are_the_arms_and_tasks_of_the_profile():
    results = paper.load()["results"]
    tasks = {entry["quantity"].partition("/")[0] for entry in results if "/" in entry["quantity"]}
    assert tasks == set(load_config("paper", "mst").eval.tasks)
    assert {entry["arm"] for entry in results} == {"dense", "static", "rigl", "mst"}
    assert paper.cell("mst", "reduction") == 4.0 and paper.cell("dense", "paper_lambada/acc") is None


def test_derived_numbers_are_what_the_code_computes():
    derived = {fact["fact"]: fact["value"] for fact in paper.load()["facts"] if fact["tags"] == ["derived"]}
    config = load_config("paper", "dense")
    step = build_ledger(config).dense_step
    tokens = config.train.batch_size * config.model.n_positions
    forward = {
        "block linears, forward": step["block_forward"],
        "attention, forward, T² pairs": step["attention_full"] / 3,
        "attention, forward, causal pairs": step["attention_causal"] / 3,
        "LM head, forward": step["head_forward"],
    }
    computed = {name: round(flops / tokens / 1e6, 2) for name, flops in forward.items()}
    counts = plan(config)["conventions"]
    for name, convention in (
        ("blocks", "blocks_only"),
        ("blocks, attention", "head_excluded_full"),
        ("blocks, attention, head", "head_counted_full"),
    ):
        computed[f"dense pretraining: {name}"] = float(f"{counts[convention]['flops']:.2e}")
    computed["pairs that the pattern sparse keeps, of 524800"] = num_pairs("sparse", 1024, 128, 128)
    empty = step | {name: 0 for name in step if name.startswith("block_")}
    for kind in ("full", "causal"):
        cap = total(step, f"head_counted_{kind}") / total(empty, f"head_counted_{kind}")
        computed[f"most that a dense, counted head allows ({kind}; attention dense)"] = round(cap, 2)
    computed["dense pretraining"] = float(f"{plan(config)['tokens']:.2e}")
    for masked, head, full, causal in REDUCTIONS:
        kind, counted = "masked" if masked == "true" else "dense", "left out" if head == "excluded" else head
        name = f"reduction, LM head {kind}, {counted}"
        computed |= {f"{name} (full)": full, f"{name} (causal)": causal}
    assert computed == derived


def test_the_command_prints_every_fact_and_every_empty_cell(capsys):
    assert main(["report", "paper"]) == 0
    printed, ledger = capsys.readouterr().out, paper.load()
    assert [line for line in printed.splitlines() if line.startswith("##")] == [
        "## Known",
        "## Derived",
        "## Ours: in no source known to us",
        "## Not known: fill in from the PDF",
    ]
    assert printed.count("\n| ") >= len(ledger["facts"]) + len(ledger["results"])
    assert all(fact["fact"] in printed for fact in ledger["facts"]) and "static: paper_ptb/word_perplexity" in printed
