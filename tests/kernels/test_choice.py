"""Which matrices are multiplied at their active weights alone: by what was measured here, or on its like."""

import os
import subprocess
import sys

import pytest
import torch
from training_runs import set_up

from replication.bench import limits as bench
from replication.cli import main
from replication.forecast.predict import load_calibration
from replication.kernels import choice, library
from replication.kernels.choice import MEASURED, is_faster
from replication.runs.folder import RunFolder
from replication.system import machine
from replication.system.errors import UserError
from replication.system.instructions import HELD, LEVELS, find_lower_levels, hold_environment
from replication.training import trainer
from replication.training.circumstances import limits_of

has_kernels = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
BY_HAND = {"fp32": [[64, 0.4], [128, 0.6]], "bf16": [[64, 0.1]]}


@pytest.mark.parametrize(
    ("kind", "nnz", "shape", "expected"),
    [
        ("fp32", 0.4, (64, 256), True),
        ("fp32", 0.41, (64, 256), False),
        ("fp32", 0.6, (512, 128), True),
        ("fp32", 0.61, (128, 512), False),
        ("fp32", 0.1, (63, 4096), False),  # too narrow
        ("bf16", 0.1, (768, 3072), True),
        ("bf16", 0.2, (768, 3072), False),
        ("tiles of 32×32", 0.01, (768, 3072), False),  # not measured
    ],
)
def test_by_hand(kind, nnz, shape, expected):
    assert is_faster(BY_HAND, kind, int(nnz * shape[0] * shape[1]), shape) is expected


@pytest.mark.parametrize("level", LEVELS[1:])
def test_each_kind_of_processor_has_an_entry(level):
    kinds = {"fp32", "bf16"} | (
        {f"tiles of {block}" for block in ("16×16", "32×32", "32×1")} if level == choice.AMX else set()
    )
    assert MEASURED[level].keys() == kinds
    for rows in MEASURED[level].values():
        sides, densities = zip(*rows)
        assert list(sides) == sorted(set(sides)) and all(0 <= density <= bench.SHARE for density in densities)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "cache_file", lambda what, threads: tmp_path / f"{what}-{threads}.json")
    monkeypatch.setattr(choice, "gains", lambda: True)
    monkeypatch.setattr(choice, "level", lambda: "avx2")
    return tmp_path / f"limits-{torch.get_num_threads()}.json"


def test_what_was_measured_here_counts_until_torch_or_the_kernels_are_others(cached, monkeypatch):
    assert choice.limits() == MEASURED["avx2"]
    choice.keep(BY_HAND)
    assert choice.limits() == BY_HAND
    monkeypatch.setattr(choice, "_sources", lambda: "other kernels")
    assert choice.limits() == MEASURED["avx2"]
    monkeypatch.setattr(choice, "gains", lambda: False)
    assert choice.limits() == {}


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", '{"of": 1}'])
def test_a_damaged_record_is_as_none(cached, damage):
    choice.keep(BY_HAND)
    cached.write_text(damage)
    assert choice.limits() == MEASURED["avx2"]


@pytest.mark.parametrize(
    "row", [["a"], [64, 10**400], [64, float("nan")], [64, float("inf")], [64, -0.1], [64, 1.1], [-1, 0.5], [64, None]]
)
def test_limits_that_no_measurement_has_are_as_none(cached, row):
    choice.keep({"fp32": [row]})
    assert choice.limits() == MEASURED["avx2"]


def test_without_a_home_the_table_serves_and_nothing_is_kept(cached, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(machine.Path, "home", nowhere)
    monkeypatch.setattr(choice, "cache_file", machine.cache_file)
    assert choice.limits() == MEASURED["avx2"]
    assert load_calibration({"threads": 1}) is None
    with pytest.raises(UserError, match="HOME is not set; allowed: .* XDG_CACHE_HOME"):
        choice.keep(BY_HAND)


def test_where_there_are_no_kernels_there_is_nothing_to_measure(cached, monkeypatch):
    monkeypatch.setattr(library, "library", lambda: None)
    bench.keep_limits()
    assert not cached.exists()


@has_kernels
@pytest.mark.parametrize(
    ("dense", "few", "half", "expected"),
    [
        (1.0, 0.3, 0.8, 0.8 * 0.66),  # seconds at densities 0.1 and 0.5: 1.25 more for all, and 1.0 at 0.66
        (0.2, 0.3, 0.8, 0.8 * 0.02),
        (0.1, 0.3, 0.8, 0.0),
        (9.0, 0.3, 0.8, 0.8),
    ],
)
def test_the_limit_is_where_a_line_between_two_densities_meets_the_dense_and_a_gain(
    dense, few, half, expected, monkeypatch
):
    monkeypatch.setattr(
        bench, "alternate", lambda *_, **__: {"dense": [1.05 * dense, 19], "0.1": [9, few], "0.5": [half]}
    )
    found = bench.measure_limits(sides=(64,))
    assert found["fp32"] == [(64, pytest.approx(expected))] and found["bf16"] == found["fp32"]


@has_kernels
def test_it_measures_products(monkeypatch):
    for rows in bench.measure_limits(sides=(32,)).values():
        ((side, density),) = rows
        assert side == 32 and 0 <= density <= bench.SHARE


def test_a_process_that_trains_many_runs_keeps_what_there_was_at_its_first(cached, monkeypatch):
    monkeypatch.setattr(choice._Held, "limits", None)
    choice.hold_limits()
    choice.keep(BY_HAND)
    choice.hold_limits()
    assert choice.limits() == MEASURED["avx2"]


@has_kernels
def test_a_run_goes_on_with_the_choice_that_it_began_with(tiny, data_dir, tmp_path, monkeypatch):
    """Though the machine was calibrated meanwhile."""
    everything = {"fp32": [[1, 1.0]]}
    monkeypatch.setattr("replication.training.circumstances.limits", lambda: everything)
    config, run = tiny("mst", "train.precision=fp32", "train.checkpoint_freq=4"), tmp_path / "run"
    inner = trainer.train_step

    def until_the_sixth(state, forward):
        if state.step == 6:
            raise KeyboardInterrupt
        return inner(state, forward)

    monkeypatch.setattr(trainer, "train_step", until_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, run, data_dir)
    monkeypatch.setattr(trainer, "train_step", inner)
    monkeypatch.setattr("replication.training.circumstances.limits", dict)
    assert set_up(config, data_dir, run).engine.limits == everything
    finished = trainer.train(config, run, data_dir, resume=True)
    assert finished.environment()["sparse_up_to"] == everything
    monkeypatch.setattr("replication.training.circumstances.limits", lambda: everything)
    whole = trainer.train(config, tmp_path / "whole", data_dir)
    assert [row["loss"] for row in finished.metrics()] == [row["loss"] for row in whole.metrics()]


@pytest.mark.parametrize("begun", [{}, {"sparse_up_to": {}}])  # before it was recorded; with `masked`
def test_a_run_that_began_without_a_choice_goes_on_with_its_first(begun, tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    run.begin({}, begun)
    monkeypatch.setattr("replication.training.circumstances.limits", lambda: MEASURED["avx2"])
    assert limits_of(run) == MEASURED["avx2"]
    run.append_environment(1, {"threads": [1, 2]})
    run.append_environment(2, {"sparse_up_to": [None, BY_HAND]})
    run.append_environment(3, {"sparse_up_to": [BY_HAND, {}], "damaged": ["a state"]})
    assert limits_of(run) == BY_HAND


FINDS = """
import torch
from replication.kernels import choice, library, tiles
from replication.system.machine import cpu_precision, processor
print(choice.level(), library.processor_kind(), tiles.ask_for_tiles(), cpu_precision(),
      processor().rpartition(", as ")[2],
      torch.backends.cpu.get_cpu_capability(), sep=";")
"""


@has_kernels
@pytest.mark.parametrize("level", find_lower_levels(choice.level()))
def test_a_process_is_held_to_a_lower_level(level):
    """So are torch's own products."""
    own = os.environ | hold_environment(level)
    found = subprocess.run([sys.executable, "-c", FINDS], env=own, check=True, capture_output=True, text=True).stdout
    precision = "bf16" if level == "avx512-bf16" else "fp32"
    torch_has = {"plain": "DEFAULT", "avx2": "AVX2"}.get(level, "AVX512")
    expected = [level, LEVELS.index(level), False, precision, level, torch_has]
    assert found.strip() == ";".join(map(str, expected))


def test_levels_by_hand():
    assert find_lower_levels("avx512") == ("avx2", "plain") and find_lower_levels("plain") == ()
    assert hold_environment("avx512") == {
        HELD: "avx512",
        "ATEN_CPU_CAPABILITY": "avx512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
    }


def test_a_level_that_is_none_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv(HELD, "sse9")
    assert main(["plan", "--profile", "smoke", "--method", "dense"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: REPLICATION_INSTRUCTIONS is 'sse9'; allowed: plain, avx2, avx512, avx512-bf16, amx"
