"""Metrics of a topology: every one by hand on literal masks, then what they remember, and a run's log of them."""

import json

import numpy as np
import pytest
import torch
from training_runs import outcome, resume, train_to

from replication.cli import main
from replication.config.fields import SparsityConfig
from replication.methods import build_algorithm, load_plugins
from replication.model.gpt2 import HEAD
from replication.model.layout import layout
from replication.sparsity.meter import Meter
from replication.sparsity.metrics import METRICS, LayerUpdate, Layout, register_metric
from replication.system.errors import UserError
from replication.training import trainer


def mask(*rows):
    """`110` is a row whose third weight is masked."""
    return np.array([[int(cell) for cell in row] for row in rows], bool)


# Two inputs and six outputs, stored [in, out] as Q, K and V of two columns each. The update drops three connections, of
# which it grows one again at once; two others are new.
BEFORE, AFTER = mask("111000", "100100"), mask("100010", "110100")
WEIGHT = np.array([[4.0, 0.1, -0.3, 0, 0, 0], [2.0, 0, 0, -1.0, 0, 0]], np.float32)
GRADIENT = np.array([[9.0, 9.0, 9.0, 9.0, -3.0, 9.0], [9.0, 5.0, 9.0, 9.0, 9.0, 9.0]], np.float32)


def seen(**changed):
    facts = {
        "name": "layer",
        "layout": Layout(("q", "k", "v")),
        "step": 30,
        "num_dropped": 3,
        "num_grown": 3,
        "after": AFTER,
        "before": BEFORE,
        "first": mask("110000", "110000"),
        "ever_active": mask("111010", "110100"),
        "weight": WEIGHT,
        "gradient": GRADIENT,
        "age": np.array([[30, 0, 0, 0, 0, 0], [20, 0, 0, 10, 0, 0]]),
        "earlier": mask("010001", "111100"),
    }
    return LayerUpdate(**facts | changed)


BY_HAND = {
    "overlap_first": 3 / 4,
    "ever_active": 7 / 12,
    "sparsity": {"all": 7 / 12, "q": 1 / 4, "k": 3 / 4, "v": 3 / 4},
    "flow": {"drop": 3 / 5, "grow": 3 / 5},
    "overlap_previous": 3 / 5,
    "regrown": 1 / 3,  # three dropped, two of them gone
    "regrown_next": 1 / 3,  # of (0, 5), (1, 1) and (1, 2), which the update before took away, (1, 1) is back
    "age": {"mean": 60 / 5, "median": 10},  # 0, 0, 10, 20, 30
    "degrees": {"in_min": 0, "in_median": 1, "in_max": 2, "out_min": 2, "out_median": 2.5, "out_max": 3},
    "gini": {"in": 13 / 30, "out": 1 / 10},
    "dead": {"inputs": 0, "outputs": 2},
    "weight_at_drop": 0.2,
    "gradient_at_growth": 4.0,
}


def test_every_metric_has_its_hand_worked_case_and_its_source():
    assert METRICS.keys() - {"effective_rank"} == BY_HAND.keys()
    assert all("(" in metric.function.__doc__ for metric in METRICS.values())
    assert set(SparsityConfig().metrics) <= METRICS.keys()


@pytest.mark.parametrize(("name", "expected"), BY_HAND.items(), ids=list(BY_HAND))
def test_metric_by_hand(name, expected):
    assert METRICS[name].function(seen()) == pytest.approx(expected)


def test_gini_by_its_definition():
    """Half the mean absolute difference over the mean: degrees 2, 1, 0, 1, 1, 0 of the outputs."""
    degrees = np.array([2, 1, 0, 1, 1, 0])
    differences = np.abs(degrees[:, None] - degrees).mean()
    assert METRICS["gini"].function(seen())["in"] == pytest.approx(differences / 2 / degrees.mean())
    equal, one = seen(after=mask("11", "11")), seen(after=mask("1111", "0000"), layout=Layout())
    assert METRICS["gini"].function(equal) == {"in": 0, "out": 0}
    assert METRICS["gini"].function(one) == {"in": 0, "out": 1 / 2}


def test_effective_rank_is_the_number_of_equal_singular_values():
    """What is masked does not count: of diag(2, 2, 2, 5) without the last, three are equal."""
    square = {"layout": Layout(), "weight": np.diag([2.0, 2, 2, 5]), "after": np.eye(4, dtype=bool)}
    rank = METRICS["effective_rank"].function
    assert rank(seen(**square | {"after": mask("1000", "0100", "0010", "0000")})) == pytest.approx(3)
    shares = np.array([2, 2, 2, 5]) / 11
    assert rank(seen(**square)) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert rank(seen(**square | {"after": np.zeros((4, 4), bool)})) == 0


def test_outputs_are_the_rows_of_the_head_and_the_columns_of_a_block():
    head = seen(after=mask("10", "10", "00"), layout=layout(HEAD))
    block = seen(after=mask("10", "10", "00"), layout=layout("transformer.h.0.mlp.c_fc.weight"))
    assert METRICS["dead"].function(head) == {"inputs": 1, "outputs": 1}
    assert METRICS["degrees"].function(head)["in_max"] == 1 and METRICS["degrees"].function(head)["out_max"] == 2
    assert METRICS["degrees"].function(block)["in_max"] == 2 and METRICS["degrees"].function(block)["out_max"] == 1
    assert layout("transformer.h.0.attn.c_attn.weight").parts == ("q", "k", "v")


NOTHING = {  # where there is nothing to speak of
    "regrown": {"num_dropped": 0},
    "regrown_next": {"earlier": None},
    "weight_at_drop": {"before": AFTER},
    "gradient_at_growth": {"gradient": None},
}


@pytest.mark.parametrize(("name", "changed"), NOTHING.items(), ids=list(NOTHING))
def test_what_is_not_there_is_null(name, changed):
    assert np.isnan(METRICS[name].function(seen(**changed)))
    empty = seen(after=np.zeros((2, 6), bool), before=np.zeros((2, 6), bool), first=np.zeros((2, 6), bool))
    for metric in METRICS.values():
        metric.function(empty)  # raises nothing


@pytest.fixture
def own():
    """The registry, which a test adds to, is as it was afterwards."""
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


def measured(meter, before, after, step):
    masks = {key: torch.from_numpy(value.copy()) for key, value in (("before", before), ("after", after))}
    first = torch.ones_like(masks["after"])
    more = {"weight": torch.zeros(after.shape), "gradient": None, "first": first, "ever_active": first}
    return meter.measure("layer", step, 1, 1, **masks, **more)


def test_ages_and_masks_are_remembered_and_taken_up_again():
    first, second, third = mask("1100"), mask("1010"), mask("1001")
    meter = Meter(["age", "regrown_next"])
    meter.begin({"layer": torch.from_numpy(first)})
    row = measured(meter, first, second, 10)
    assert row["age"] == {"mean": 5, "median": 5} and row["regrown_next"] is None  # 10 and 0
    again, old = Meter(["age", "regrown_next"]), Meter(["age"])
    again.load_state_dict(meter.state_dict())
    old.load_state_dict({})  # a state from before there were metrics
    for resumed in (meter, again):
        row = measured(resumed, second, third, 30)
        assert row["age"] == {"mean": 15, "median": 15} and row["regrown_next"] == 0
    assert measured(old, second, third, 30)["age"] == {"mean": 0, "median": 0}
    assert measured(old, third, third, 45)["age"] == {"mean": 15, "median": 15}


def test_nothing_is_remembered_that_no_metric_needs():
    meter = Meter(SparsityConfig().metrics)
    meter.begin({"layer": torch.ones(1, 4, dtype=torch.bool)})
    measured(meter, mask("1111"), mask("1111"), 10)
    assert meter.state_dict() == {}


def test_a_metric_that_fails_says_so_once_and_stops_nothing(own):
    @register_metric(needs=["weight"])
    def broken(layer):
        layer.weight[0, 0] = 1  # it may not write

    @register_metric()
    def wordy(layer):
        return "much"

    meter = Meter(["broken", "wordy", "flow"])
    rows = [measured(meter, mask("11"), mask("11"), step) for step in (1, 2)]
    assert [row["broken"] for row in rows] == [row["wordy"] for row in rows] == [None, None]
    assert rows[1]["flow"] == {"drop": 0.5, "grow": 0.5}
    first, second = meter.take_remarks()
    assert first.startswith("metric broken fails at step 1 and is null from here on (ValueError: ")
    assert second.startswith("metric wordy fails") and meter.take_remarks() == []
    resumed = Meter(["broken", "wordy"])
    resumed.load_state_dict(meter.state_dict())
    measured(resumed, mask("11"), mask("11"), 3)
    assert resumed.take_remarks() == []


@pytest.mark.parametrize(
    ("after", "note"),
    [
        (mask("11111111100", "11111111111"), None),  # none is dead
        (mask("11111111110", "11111111110"), None),  # 1 of 11 outputs: less than a tenth
        (mask("11111111100", "11111111100"), "2 of 11 outputs have no active input"),
        (mask("11111111111", "00000000000"), "1 of 2 inputs have no active output"),
    ],
)
def test_dead_units_raise_the_alarm_once(after, note):
    meter = Meter(["dead"])
    assert measured(meter, after, after, 10).get("note") == note
    assert "note" not in measured(meter, after, after, 20)
    assert [line.partition(": ")[2].partition(" at ")[0] for line in meter.take_remarks()] == [note] * bool(note)


def test_names_that_are_taken_and_needs_that_are_none_are_one_line(own):
    def dead(layer):
        return 0

    def nnz(layer):
        return 0

    for function in (dead, nnz):
        with pytest.raises(UserError, match="is there already"):
            register_metric()(function)
    with pytest.raises(UserError, match="needs 'wieght'; allowed: weight, gradient, age, earlier"):
        register_metric(needs=["wieght"])(lambda layer: 0)


def test_an_unknown_metric_is_one_line_with_the_nearest(tmp_path, capsys):
    command = ["train", "--profile", "smoke", "--method", "set", "--set", "sparsity.metrics=[degreees]"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "sparsity.metrics is 'degreees'; the nearest valid one is 'degrees'; allowed: " in line
    assert not (tmp_path / "run").exists()


EVERY = "sparsity.metrics=[{}]"


def test_metrics_change_no_run_and_survive_its_interruption(tiny, data_dir, tmp_path):
    """All of them against none; and stopped at step 18 against whole."""
    every = tiny("mst", "train.checkpoint_freq=5", EVERY.format(",".join(METRICS)))
    none = tiny("mst", "train.checkpoint_freq=5", EVERY.format(""))
    whole, plain = (
        outcome(trainer.train(config, tmp_path / name, data_dir, progress=False))
        for name, config in (("every", every), ("none", none))
    )
    kept = ("step", "layer", "size", "nnz", "dropped", "grown", "overlap_first", "ever_active")
    assert plain["topology"] == [{key: row[key] for key in kept} for row in whole["topology"]]
    assert {key: plain[key] for key in plain if key != "topology"} == {
        key: whole[key] for key in plain if key != "topology"
    }
    last = whole["topology"][-1]
    assert set(last) - {"note"} == {*kept, *METRICS} and last["age"]["mean"] > 0 and last["effective_rank"] > 1
    run = train_to(18, every, tmp_path / "stopped", data_dir)
    assert outcome(resume(every, run, data_dir)) == whole


def test_a_run_that_was_saved_without_metrics_goes_on_with_them(tiny, data_dir, tmp_path):
    run = train_to(18, tiny("rigl", "train.checkpoint_freq=5", EVERY.format("")), tmp_path / "run", data_dir)
    rows = resume(tiny("rigl", "train.checkpoint_freq=5", EVERY.format("age")), run, data_dir).topology()
    with_ages = [row for row in rows if "age" in row]
    assert [row["step"] for row in with_ages if row["age"]["mean"] == 0] == [15] * (len(with_ages) // 2)
    assert {row["step"] for row in rows} - {row["step"] for row in with_ages} == {3, 6, 9, 12}


PLUGIN = """
from replication.sparsity.metrics import register_metric

@register_metric(needs=["weight"])
def largest(layer):
    return abs(layer.weight).max()

@register_metric()
def late(layer):
    return 1 / (layer.step < 6)
"""


def test_a_users_metric_is_logged_and_one_that_fails_is_named(own, tiny, data_dir, tmp_path, monkeypatch, capsys):
    (tmp_path / "own.py").write_text(PLUGIN)
    load_plugins([str(tmp_path / "own.py")])
    config = tiny("set", "sparsity.metrics=[largest,late]")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    rows = [json.loads(line) for line in (run.path / "topology.jsonl").read_text().splitlines()]
    assert all(row["largest"] > 0 and "dead" not in row for row in rows)
    assert [row["late"] for row in rows] == [1.0 if row["step"] < 6 else None for row in rows]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"{run.path}: metric late fails at step 6 and is null from here on (ZeroDivisionError: division by zero)"
    )


def test_layers_of_dead_units_are_noted_once_each_and_the_first_is_named(tiny, data_dir, tmp_path, capsys):
    """At 98 % sparsity and width 32 or so, most columns are empty."""
    config = tiny("set", "sparsity.sparsity=0.98")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    notes = {row["layer"]: row["note"] for row in run.topology() if "note" in row}
    (line,) = capsys.readouterr().err.splitlines()
    assert len(notes) == sum("note" in row for row in run.topology()) > 1
    layer, note = next(iter(notes.items()))
    assert line.startswith(f"{run.path}: {layer}: {note} at step 3; `runs topology` shows all layers")


def test_the_gradient_is_told_only_where_growth_reads_it(tiny, data_dir, tmp_path):
    for method, is_read in (("set", False), ("rigl", True)):
        config = tiny(method, "sparsity.metrics=[gradient_at_growth]")
        rows = trainer.train(config, tmp_path / method, data_dir, progress=False).topology()
        assert any(row["gradient_at_growth"] is not None for row in rows) == is_read
    assert build_algorithm(tiny("rigl")).meter.needs == set()
