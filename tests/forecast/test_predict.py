"""A run's time is put together from a machine's calibration; exactly, where the machine follows a power law."""

from dataclasses import replace

import pytest

from replication.bench import calibration as bench
from replication.cli import main
from replication.config.profiles import load_config
from replication.flops.stretches import stretches
from replication.forecast.predict import BATCH, CONTEXT, VOCABULARY, Calibration, Row, Step, load_calibration, predict
from replication.system.machine import machine


def seconds(step, blocks, head):
    """A machine of which a layer takes 1 ms at width 64 and 1024 tokens, with its square and its density; the rest 2 ms
    at 1024 entries, with the width; an update 1 ms more for each 10,000 masked weights."""
    tokens = step.batch * step.context / (BATCH * CONTEXT)
    layer = 1e-3 * step.layers * (step.width / 64) ** 2 * blocks
    rest = 2e-3 * step.width / 64 * head * step.vocabulary / VOCABULARY
    size = 12 * step.layers * step.width**2 + step.width * step.vocabulary
    return (layer + rest) * tokens + (step.kind != "plain") * size * 1e-7


@pytest.fixture
def calibration(monkeypatch, tmp_path):
    """Of that machine, whose masks have the same density everywhere."""
    monkeypatch.setattr(
        bench, "_time", lambda step: Row(step, seconds(step, step.density, step.density), step.density, step.density)
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return bench.calibrate()


def small(method, *overrides, of="small"):
    shape = [
        "model.n_layer=2",
        "model.n_embd=96",
        "model.n_positions=128",
        "data.vocab_size=2048",
        "train.batch_size=4",
        "train.num_steps=10",
    ]
    return load_config(of, method, 0, [*shape, "train.warmup_steps=2", *overrides], with_tuned=False)


def test_dense_training_by_hand(calibration):
    # Half the tokens: (2 layers of 2.25 ms + 2 times 3 ms) / 2, ten times over. 96 lies between the widths timed.
    assert predict(small("dense"), calibration).seconds == pytest.approx(10 * (4.5 + 6) / 2 * 1e-3, rel=1e-6)


def test_a_sparse_run_is_the_sum_of_its_steps(calibration):
    config = small(
        "set", "sparsity.distribution=uniform", "sparsity.sparsity=0.7", "sparsity.update_freq=4", of="smoke"
    )
    updates = sum(stretch.update for stretch in stretches(config))
    size = 12 * 2 * 96**2 + 96 * 2048
    steps = 10 * 0.3 * (4.5 + 6) / 2 * 1e-3
    assert updates == 2
    assert predict(config, calibration).seconds == pytest.approx(steps + updates * size * 1e-7, rel=1e-3)


def test_a_longer_context_at_the_same_tokens_costs_what_the_machine_says(calibration):
    short, long = (small("dense", f"model.n_positions={n}", f"train.batch_size={512 // n}") for n in (128, 256))
    assert predict(short, calibration).seconds == pytest.approx(predict(long, calibration).seconds, rel=1e-6)
    rows = [
        Row(row.step, row.seconds * (2 if row.step.context > CONTEXT else 1), row.blocks, row.head)
        for row in calibration.rows
    ]
    slow = Calibration(machine(), rows, 0, "", 0, 0)
    # At width 192, four times the context takes 3 layers of 9 ms and 6 ms longer: a third of that at twice it, for
    # 2 layers instead of 3, 96 columns instead of 192, and half the tokens.
    extra = 10 * (3 * 9 + 6) * 1e-3 / 3 * (2 / 3) * (96 / 192) / 2
    assert predict(long, slow).seconds - predict(short, slow).seconds == pytest.approx(extra, rel=1e-6)


def test_it_is_kept_for_this_machine_and_these_versions(calibration, capsys):
    shape = ("model.n_layer=4", "model.n_embd=64", "model.n_positions=128", "data.vocab_size=1024")
    shape += ("train.batch_size=8", "train.num_steps=1000")
    command = ["plan", "--profile", "small", "--method", "dense", *(word for key in shape for word in ("--set", key))]
    assert main(command) == 0 and "time here: not known" in capsys.readouterr().out
    file = calibration.save()
    kept = load_calibration(machine())
    assert kept.rows == calibration.rows
    assert main([*command, "--price", "3.6"]) == 0
    # 1000 steps of 4 layers of 1 ms and 2 ms
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("time here: 6.0 s (4.8 to 7.2), ") and ", cost 0.01; of training alone" in line
    other = machine() | {"versions": {"torch": "1.0"}}
    assert load_calibration(other) is None
    file.write_text("{")
    assert load_calibration(machine()) is None and main(command) == 0
    assert "time here: not known" in capsys.readouterr().out


def test_each_kind_of_step_is_timed_even_where_there_is_no_time_to_time_it_twice(monkeypatch):
    timed = []
    monkeypatch.setattr(bench, "_time", lambda step: timed.append(step) or Row(step, 1.0, 1.0, 1.0))
    monkeypatch.setattr(bench, "LIMIT", 0)
    bench.calibrate()
    assert timed == list(bench.list_steps()) and len(set(timed)) == len(timed)


def test_of_two_times_of_a_kind_the_faster_counts_and_noise_leaves_no_part_without_time(monkeypatch):
    times = iter([2.0] * len(list(bench.list_steps())) + [1.0] * len(list(bench.list_steps())))
    monkeypatch.setattr(bench, "_time", lambda step: Row(step, next(times), step.density, step.density))
    flat = bench.calibrate()
    assert {row.seconds for row in flat.rows} == {1.0}
    # Three layers took as long as one: a layer is half of a twentieth of that, the rest is what is left. A twentieth of
    # it all is proportional to the tokens, and half of those are asked for.
    layer, rest, head = 0.025, 0.975, 0.05 / 3
    steady = 2 * layer + rest + head
    assert predict(small("dense"), flat).seconds == pytest.approx(10 * steady * (0.95 + 0.05 / 2))


@pytest.mark.slow
def test_plan_calibrates(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(bench, "WIDTHS", (16, 32, 64))
    monkeypatch.setattr(bench, "ENOUGH", 0)
    monkeypatch.setattr(bench, "PRECISIONS", ("bf16",))
    assert main(["plan", "machine"]) == 0
    assert "kinds of step in" in capsys.readouterr().out
    steps = {row.step for row in load_calibration(machine()).rows}
    assert {Step(16, "bf16", 1), Step(64, "bf16", 3, 0.1, "update")} <= steps
    assert all(row.seconds > 0 for row in load_calibration(machine()).rows)


@pytest.mark.parametrize(("load", "is_busy"), [(18.0, True), (0.1, False)])
def test_what_was_timed_beside_other_work_is_marked(load, is_busy, calibration, monkeypatch, capsys):
    kept = []
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("replication.bench.limits.keep_limits", lambda: kept.append(1))
    monkeypatch.setattr(bench, "calibrate", lambda busy: replace(calibration, machine=machine(), busy=busy))
    assert main(["plan", "machine"]) == 0
    assert ("this machine was busy (18.0 processes" in capsys.readouterr().err) is is_busy and (not kept) is is_busy
    assert main(["plan", "--profile", "smoke", "--method", "mst"]) == 0
    assert ("timed while this machine was busy (18.0" in capsys.readouterr().out) is is_busy


@pytest.mark.parametrize(
    ("arguments", "says"),
    [([], "--method is missing"), (["--method", "mst", "--price", "-1"], "--price is -1.0; allowed: 0 or more")],
)
def test_what_it_cannot_plan_is_one_line(arguments, says, capsys):
    assert main(["plan", "--profile", "smoke", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
