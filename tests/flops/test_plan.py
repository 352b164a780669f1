"""A run must train what its method's name says: schedules that would not, and plans that agree with what is charged."""

import pytest

from replication.config.profiles import load_config, profile_arms
from replication.data import prepare
from replication.flops.plan import check_schedule, plan, plan_phases
from replication.methods import build_algorithm
from replication.model.gpt2 import build_model, select_masked_shapes
from replication.runs.finding import find_runs
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.training import trainer
from replication.training.world import join

COARSE = [
    "train.num_steps=40",
    "train.warmup_steps=4",
    "mst.warmup_end=0.1",
    "mst.ultra_sparsity=0.979",
    "mst.final_sparsity=0.8",
]  # an update every 4


def test_every_arm_that_ships_can_be_trained(profile):
    for arm in profile_arms(profile):
        config = load_config(profile, arm)
        phases = plan_phases(config)
        assert not check_schedule(config)
        assert sum(phase.flops_share for phase in phases) == pytest.approx(1)
        assert all(phase.num_updates >= 10 for phase in phases if phase.is_ramp), f"{arm}: a ramp of few updates"
        assert all(phase.largest_cut <= 1 / 3 for phase in phases), f"{arm}: an update that removes more than a third"


def test_msts_arms_save_four_times_under_their_readings_convention(profile):
    solved = {"mst": "head_counted_full", "mst_dense_head": "head_excluded_causal"}
    solved |= {"mst_density": "mean_density", "mst_density_dense_head": "mean_density"}
    for arm, convention in solved.items():
        if arm in profile_arms(profile):
            assert 3.995 <= plan(load_config(profile, arm))["conventions"][convention]["reduction"] <= 4.03


def test_each_ramp_of_the_paper_profile_has_hundreds_of_updates():
    phases = plan_phases(load_config("paper", "mst"))
    assert [(phase.name, phase.num_updates) for phase in phases] == [
        ("warm-up", 599),
        ("ultra-sparsification", 3048),
        ("restoration", 2352),
    ]
    assert all(phase.largest_cut <= 0.3 for phase in phases)


def test_phases_by_hand():
    # 40 steps, an update every 4: none in the warm-up before 4; 4, 8 … 28 before 32; 32 and 36 in restoration.
    phases = plan_phases(load_config("smoke", "mst", 0, COARSE))
    assert [(phase.name, phase.start, phase.end, phase.num_updates) for phase in phases] == [
        ("warm-up", 0, 4, 0),
        ("ultra-sparsification", 4, 32, 7),
        ("restoration", 32, 40, 2),
    ]
    assert [phase.is_ramp for phase in phases] == [True, False, True] and phases[
        1
    ].largest_cut > 0.97  # from dense to 0.979 in one blow


def test_the_plan_and_the_log_agree_on_the_updates_of_each_phase(tiny, data_dir, tmp_path):
    config = tiny("mst")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    steps = sorted({row["step"] for row in run.topology()})
    assert [sum(phase.start <= step < phase.end for step in steps) for phase in plan_phases(config)] == [
        phase.num_updates for phase in plan_phases(config)
    ]


@pytest.mark.parametrize(("profile", "arm"), [("small", "mst"), ("small", "mst_dense_head"), ("text", "mst")])
def test_the_plan_and_the_committed_logs_agree_on_the_updates_of_each_phase(profile, arm, request):
    for run in find_runs(request.config.rootpath / "results" / "reference", profile):
        if run.path.parent.name == arm:
            steps = sorted({row["step"] for row in run.topology()})
            phases = plan_phases(load_config(profile, arm))
            assert [sum(phase.start <= step < phase.end for step in steps) for phase in phases] == [
                phase.num_updates for phase in phases
            ]


def test_a_ramp_of_few_updates_is_said():
    remarks = check_schedule(load_config("smoke", "mst", 0, COARSE))
    assert remarks == [
        "warm-up (steps 0 to 4) has 0 topology updates, fewer than 5: its ramp of the sparsity is a few jumps",
        "restoration (steps 32 to 40) has 2 topology updates, fewer than 5: its ramp of the sparsity is a few jumps",
    ]


# `COARSE`: MST's ultra-sparsification from 4 on, restoration from 32 on.
REFUSED = [
    (
        "rigl",
        ["sparsity.update_freq=40"],
        "sparsity.update_freq is 40: no topology update falls within the 40 steps, and rigl would not evolve",
    ),
    (
        "set",
        ["sparsity.update_start_step=37"],
        "no topology update falls within the 40 steps, and set would not evolve",
    ),
    ("rigl", ["sparsity.update_end_step=4"], "no topology update falls within the 40 steps, and rigl would not evolve"),
    ("mst", ["sparsity.update_freq=100"], "no topology update falls within the 40 steps, and mst would not evolve"),
    (
        "mst",
        ["sparsity.update_freq=33"],
        r"falls within ultra-sparsification \(steps 4 to 32\), which stays at sparsity 0; allowed: .*, such as 8",
    ),
    ("mst", ["sparsity.update_start_step=32"], "falls within ultra-sparsification"),
    (
        "mst",
        ["sparsity.update_freq=5", "mst.sparsity_steps=[[0, 0], [1, 0.5], [2, 0.6], [30, 0.9]]"],
        "the stretch of mst.sparsity_steps from 1 ",
    ),
    (
        "rigl",
        ["sparsity.sparsity=0.99999"],
        "sparsity.sparsity is 0.99999, which leaves no weight of the blocks active",
    ),
    (
        "static",
        ["model.n_embd=1", "model.n_head=1", "sparsity.sparsity=0.99"],
        "sparsity.sparsity is 0.99, which leaves no weight",
    ),
    (
        "mst",
        ["mst.ultra_sparsity=0.99999"],
        "mst.ultra_sparsity is 0.99999, which leaves no weight of the blocks active",
    ),
]


@pytest.mark.parametrize(("arm", "overrides", "says"), REFUSED)
def test_a_schedule_that_trains_another_method_is_refused_at_the_start(arm, overrides, says, tmp_path, capsys):
    config = load_config("smoke", arm, 0, [*COARSE, *overrides])
    with pytest.raises(UserError, match=says) as error:
        trainer.train(config, tmp_path / "run", tmp_path / "data")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arm", "overrides"),
    [
        ("static", ["sparsity.update_freq=40"]),  # never updates
        ("dense", ["sparsity.sparsity=0.99999"]),  # masks nothing
        ("mst", ["sparsity.update_freq=5", "mst.sparsity_steps=[[0, 0], [10, 0.5], [20, 0.8]]"]),
        ("mst", ["mst.restoration_start=1.0"]),
        ("mst", ["mst.sparsity_variation=false"]),
    ],
)
def test_what_does_as_it_says_is_not(arm, overrides):
    check_schedule(load_config("smoke", arm, 0, [*COARSE, *overrides]))


def test_a_restoration_without_an_update_is_said(tiny, data_dir, tmp_path, capsys):
    # updates: 15 of 20, restoration from 16 on
    config = tiny("mst", "sparsity.update_freq=15", "mst.restoration_start=0.8")
    remark, *_ = check_schedule(config)
    assert remark == (
        "sparsity.update_freq is 15: no topology update falls within restoration (steps 16 to 20), "
        "which stays at sparsity 0.979"
    )
    trainer.train(config, tmp_path / "run", data_dir, progress=False)
    assert remark in capsys.readouterr().err


@pytest.mark.parametrize(("vocab", "width"), [(384, 128), (320, 64), (448, 96)])
@pytest.mark.parametrize("method", ["rigl", "mst"])
def test_the_plan_counts_each_layer_as_the_trainer_does(vocab, width, method):
    """Whatever the order in which they list the layers, and however many counts tie."""
    config = load_config("smoke", method, 0, [f"data.vocab_size={vocab}", f"model.n_embd={width}", "model.n_layer=3"])
    planned, trained = build_algorithm(config), build_algorithm(config)
    shapes = select_masked_shapes(config)
    trained.apply(build_model(config, 0), lambda name, _: name in shapes)
    for step in range(40):
        assert trained.target_nnz(step) == planned.distribution(shapes, planned.schedules.sparsity.sparsity(step))


def test_the_ledger_of_a_run_with_ties_is_its_plan(tiny, data_dir, tmp_path):
    config = tiny("rigl", "data.vocab_size=384", "model.n_embd=128")
    state = trainer.setup(config, RunFolder(tmp_path), join(), prepare(config.data, data_dir))
    for _ in range(config.train.steps):
        trainer.train_step(state, state.model.transformer)
    assert state.ledger.report(state.algorithm.nnz) == plan(config)
