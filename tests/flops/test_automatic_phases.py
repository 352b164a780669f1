"""Phases that start themselves: the loss decides when, the FLOPs are the promised ones, and a resumed run agrees."""

import pytest
from training_runs import outcome, resume, train_to

from replication.cli import main
from replication.config.profiles import load_config
from replication.flops.automatic_phases import PhaseTrigger
from replication.flops.plan import check_schedule, plan
from replication.runs.folder import RunFolder
from replication.sparsity.schedules import ThreePhaseSparsity
from replication.system.errors import UserError
from replication.training import trainer

AUTO = [
    "mst.phases=auto",
    "train.num_steps=100",
    "train.checkpoint_freq=7",
    "train.eval_freq=100",
    "sparsity.update_freq=2",
    "sparsity.drop_fraction=0.03",
    "mst.warmup_end=0.1",
    "mst.restoration_start=0.6",
    "mst.restoration_end=0.9",
    "mst.ultra_sparsity=0.9",
    "mst.final_sparsity=0.3",
]


def test_the_ramp_after_dense_steps_by_hand():
    # A cubic over 4 steps from step 4 on: half-way 7/8 of the way is gone.
    sparsity = ThreePhaseSparsity(8, 20, 30, 0.8, 0.4, warmup_start=4).sparsity
    assert [sparsity(step) for step in (0, 3, 4, 6, 8, 19)] == pytest.approx([0, 0, 0, 0.7, 0.8, 0.8])


def trigger(slope=0.1, *more):
    return PhaseTrigger(load_config("smoke", "mst", 0, [*AUTO, f"mst.slope={slope}", *more]))


def test_the_slope_by_hand():
    # Windows of 2 of 100 steps; their means, 4.5 and 3.5, lie 2 hundredths of training apart.
    watcher = trigger()
    assert (watcher.window, watcher.earliest) == (2, 4) and watcher.latest > 8
    for step, loss in enumerate([9.0, 5.0, 4.0, 4.0, 3.0], start=1):
        assert watcher.observe(step, loss) is None
    assert watcher.slope() == 0.5


def test_the_ramp_begins_where_the_loss_flattens_or_at_the_latest():
    flat, steep = trigger(), trigger()
    said = [flat.observe(step, loss) for step, loss in enumerate([5.0, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0], start=1)]
    assert [step for step, reason in enumerate(said, start=1) if reason] == [6] and "falls by 0 nats" in said[5]
    assert round(flat.decided.mst.warmup_start * 100) == 6
    reasons = {step: reason for step in range(1, 101) if (reason := steep.observe(step, 100.0 - step))}
    first, second = reasons.items()
    assert first[0] == steep.latest and "although the loss falls by 1 nats" in first[1]
    assert second[0] == round(steep.decided.mst.restoration_start * 100) and "what is left" in second[1]


@pytest.mark.parametrize("arm", ["mst", "mst_dense_head"])
@pytest.mark.parametrize("profile", ["small", pytest.param("text", marks=pytest.mark.slow)])
def test_the_flops_are_the_promised_ones_whenever_the_ramp_begins(profile, arm):
    convention = "head_counted_full" if arm == "mst" else "head_excluded_causal"
    promised = plan(load_config(profile, arm))["conventions"][convention]["reduction"]
    watcher = PhaseTrigger(load_config(profile, arm, 0, ["mst.phases=auto"]))
    for step in range(watcher.earliest, watcher.latest + 1, 5):
        decided = watcher.phases_from(step)
        assert plan(decided)["conventions"][convention]["reduction"] == pytest.approx(promised, rel=1e-3)
        assert decided.mst.final_sparsity <= decided.mst.ultra_sparsity and not check_schedule(decided)


@pytest.mark.parametrize("slope", [0, 0.5, *(pytest.param(slope, marks=pytest.mark.slow) for slope in (0.05, 1, 100))])
def test_a_trained_run_keeps_its_promise_whatever_the_threshold(slope, tiny, data_dir, tmp_path):
    config = tiny("mst", *AUTO, f"mst.slope={slope}")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    promised = plan(tiny("mst", *AUTO, "mst.phases=fixed"))["conventions"]["head_counted_full"]["reduction"]
    assert run.flops()["conventions"]["head_counted_full"]["reduction"] == pytest.approx(promised, rel=5e-3)
    reasons = {row["step"]: row["reason"] for row in run.metrics() if "reason" in row}
    began = next(iter(reasons))
    assert len(reasons) == 2 and next(row["step"] for row in run.topology()) > began
    watcher = PhaseTrigger(config)
    assert began == {0: watcher.latest, 100: watcher.earliest}.get(slope, began)
    assert run.flops()["conventions"] == plan(watcher.phases_from(began))["conventions"]


@pytest.fixture(scope="module")
def config(tiny):
    return tiny("mst", *AUTO, "mst.slope=0")


@pytest.fixture(scope="module")
def whole(config, data_dir, tmp_path_factory):
    return outcome(trainer.train(config, tmp_path_factory.mktemp("whole") / "run", data_dir, progress=False))


# dense, sparse, in restoration
@pytest.mark.parametrize("step", [25, *(pytest.param(step, marks=pytest.mark.slow) for step in (10, 92))])
def test_a_resumed_run_decides_the_same(step, config, whole, data_dir, tmp_path):
    train_to(step, config, tmp_path / "run", data_dir)
    assert outcome(resume(config, RunFolder(tmp_path / "run"), data_dir)) == whole


@pytest.mark.parametrize(
    ("override", "says"),
    {
        "mst.slope=-1": "mst.slope is -1.0; allowed: 0 or more",
        "mst.drop_fractions=[0.1,0.1,0.1]": "mst.drop_fractions is (0.1, 0.1, 0.1); allowed: none where mst.phases",
        "mst.sparsity_variation=false": "mst.sparsity_variation is False; allowed: true where mst.phases is auto",
        "mst.phases=sometimes": "mst.phases is 'sometimes'; allowed: ",
        "mst.restoration_start=0.9": "mst.phases is 'auto'; allowed: 'fixed' here, as the FLOPs",
    }.items(),
)
def test_what_does_not_go_with_them_is_one_line(override, says):
    with pytest.raises(UserError) as caught:
        check_schedule(load_config("smoke", "mst", 0, [*AUTO, override]))
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


def test_plan_tells_the_bounds(capsys):
    sets = [part for pair in AUTO for part in ("--set", pair)]
    assert main(["plan", "--profile", "smoke", "--method", "mst", *sets]) == 0
    watcher = trigger()
    bounds = f"warm-up's ramp begins after {watcher.earliest} to {watcher.latest} steps, restoration after "
    assert bounds in capsys.readouterr().out
