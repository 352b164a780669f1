"""What holds at a step: every schedule at its edges, and MST's from a configuration."""

import pytest

from replication.config.profiles import load_config
from replication.flops.plan import plan
from replication.methods import build_algorithm
from replication.sparsity.schedules import (
    AttentionSwitch,
    ConstantSparsity,
    DropFraction,
    Phases,
    StepSparsity,
    ThreePhaseSparsity,
    UpdateSteps,
)


def schedules(*overrides, method="mst"):
    return build_algorithm(
        load_config(
            "small",
            method,
            0,
            [
                "train.num_steps=100",
                "train.warmup_steps=0",
                "sparsity.update_freq=5",
                "sparsity.drop_fraction=0.3",
                *overrides,
            ],
        )
    ).schedules


def test_constant():
    assert [ConstantSparsity(0.8).sparsity(step) for step in (0, 5, 10**6)] == [0.8] * 3


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0),
        (5, 0.8 * 0.875),
        (9, 0.8 * (1 - 0.1**3)),
        (10, 0.8),
        (69, 0.8),
        (70, 0.8),
        (80, 0.7),
        (90, 0.6),
        (99, 0.6),
    ],
)
def test_three_phases(step, expected):
    assert ThreePhaseSparsity(10, 70, 90, 0.8, 0.6).sparsity(step) == pytest.approx(expected)


def test_empty_phases_give_way():
    assert ThreePhaseSparsity(0, 0, 0, 0.8, 0.6).sparsity(0) == 0.6
    assert ThreePhaseSparsity(0, 10, 10, 0.8, 0.6).sparsity(0) == 0.8
    assert ThreePhaseSparsity(0, 10, 10, 0.8, 0.6).sparsity(10) == 0.6


def test_step_list():
    schedule = StepSparsity(((0, 0.0), (3, 0.9), (7, 0.5)))
    assert [schedule.sparsity(step) for step in range(9)] == [0, 0, 0, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5]


def test_drop_fraction_is_a_cosine_to_zero():
    schedule = DropFraction(((0, 0.3),), 100)
    assert [schedule.drop_fraction(step) for step in (0, 50, 100, 200)] == pytest.approx([0.3, 0.15, 0, 0])


def test_drop_fraction_restarts_with_a_value_of_its_own():
    schedule = DropFraction(((0, 0.2), (10, 0.4), (30, 0.1)), 40)
    assert [schedule.drop_fraction(step) for step in (0, 5, 10, 20, 30, 35, 40)] == pytest.approx(
        [0.2, 0.1, 0.4, 0.2, 0.1, 0.05, 0]
    )


def test_update_steps():
    assert [step for step in range(20) if UpdateSteps(4, 0, 17).is_update(step)] == [4, 8, 12, 16]
    assert [step for step in range(20) if UpdateSteps(4, 8, 16).is_update(step)] == [8, 12]


def test_attention_switch_and_phases():
    switch = AttentionSwitch("sparse", 2, 4)
    assert [switch.pattern_at(step) for step in range(5)] == ["dense", "dense", "sparse", "sparse", "dense"]
    assert [Phases(((0, "a"), (2, "b"))).phase(step) for step in range(4)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_baselines_hold_80_percent_and_attend_densely(method):
    found = schedules(method=method)
    assert {found.sparsity.sparsity(step) for step in range(100)} == {0.8}
    assert {found.attention.pattern_at(step) for step in range(100)} == {"dense"}
    assert found.drop_fraction.drop_fraction(0) == 0.3


def test_msts_phases():
    found = schedules(
        "mst.warmup_end=0.2",
        "mst.restoration_start=0.6",
        "mst.restoration_end=0.8",
        "mst.ultra_sparsity=0.9",
        "mst.final_sparsity=0.5",
    )
    assert [found.phases.phase(step) for step in (0, 19, 20, 59, 60, 99)] == ["warm-up"] * 2 + [
        "ultra-sparsification"
    ] * 2 + ["restoration"] * 2
    assert [found.sparsity.sparsity(step) for step in (0, 20, 60, 70, 80)] == pytest.approx([0, 0.9, 0.9, 0.7, 0.5])
    assert [found.attention.pattern_at(step) for step in (19, 20, 59, 60)] == ["dense", "sparse", "sparse", "dense"]


def test_msts_step_list_attention_steps_and_drop_restarts():
    found = schedules(
        "mst.sparsity_steps=[[0, 0.0], [30, 0.95]]",
        "attention.start_step=5",
        "attention.end_step=7",
        "mst.drop_fractions=[0.1, 0.2, 0.4]",
        "mst.warmup_end=0.1",
    )
    assert [found.sparsity.sparsity(step) for step in (0, 29, 30, 99)] == [0, 0, 0.95, 0.95]
    assert [step for step in range(100) if found.attention.pattern_at(step) != "dense"] == [5, 6]
    assert [found.drop_fraction.drop_fraction(step) for step in (0, 10, 75)] == pytest.approx([0.1, 0.2, 0.4])


def test_without_hybrid_attention_all_is_dense():
    assert {schedules("mst.hybrid_attention=false").attention.pattern_at(step) for step in range(100)} == {"dense"}


def test_without_sparsity_variation_sparsity_is_constant_at_equal_flops():
    base = ["train.num_steps=2000", "train.warmup_steps=0", "sparsity.update_freq=10"]
    varied, constant = (
        plan(load_config("small", "mst", 0, [*base, f"mst.sparsity_variation={on}"])) for on in (True, False)
    )
    assert constant["final_sparsity"] == pytest.approx(varied["mean_sparsity"], abs=1e-5)
    for name, count in varied["conventions"].items():
        assert constant["conventions"][name]["flops"] == pytest.approx(count["flops"], rel=0.005), name


@pytest.mark.parametrize(
    ("growth", "fraction", "needs_gradient"), [("mixed", 0.25, True), ("gradient", 0.0, True), ("random", 1.0, False)]
)
def test_growth_ablation(growth, fraction, needs_gradient):
    algorithm = build_algorithm(load_config("small", "mst", 0, [f"mst.growth={growth}"]))
    assert (algorithm.random_fraction, algorithm.needs_gradient) == (fraction, needs_gradient)
