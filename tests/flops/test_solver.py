"""The schedule solver, from constant sparsity worked out by hand to the profiles' own schedules."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import replication
from replication.cli import main
from replication.config.profiles import load_config
from replication.flops.plan import plan
from replication.flops.solver import render, solve
from replication.system.errors import UserError

PROFILES = Path(replication.__file__).parent / "config" / "profiles"


def test_constant_sparsity_by_hand():
    # blocks only, no dense gradients: the reduction is 1 / density
    family = solve(load_config("small", "static"), 4, "blocks_only", {})
    (solution,) = family.solutions
    assert solution.values == {
        "sparsity": pytest.approx(0.75, abs=0.03)
    }  # Erdős–Rényi shares differ between blocks and head
    family = solve(load_config("small", "static", overrides=["sparsity.distribution=uniform"]), 4, "blocks_only")
    assert family.solutions[0].values == {"sparsity": pytest.approx(0.75, abs=0.0011)}  # whole weights, rounded up
    assert family.solutions[0].reduction == pytest.approx(4, rel=0.005)


@pytest.mark.parametrize("arm", ["static", "rigl_dense_head"])
def test_mean_density_of_a_quarter_by_hand(arm):
    family = solve(load_config("small", arm), 4, "mean_density")
    assert family.solutions[0].values == {"sparsity": pytest.approx(0.75, abs=0.0011)}  # rounded to what saves more
    assert family.solutions[0].reduction == pytest.approx(1 / (1 - family.solutions[0].values["sparsity"]), rel=1e-4)
    with pytest.raises(UserError, match=r"the free knobs span 1\.00× to [\d.]+×$"):  # nothing that is counted remains
        render(solve(load_config("small", arm), 1e6, "mean_density"))


def test_ceiling_by_hand():
    # paper, head dense and counted, attention full: (169.87 + 37.75 + 77.27) / (37.75 + 77.27) MFLOP a token (PAPER,
    # derived)
    family = solve(load_config("paper", "static", overrides=["sparsity.mask_lm_head=false"]), 2.2)
    assert family.ceiling["dense"] == pytest.approx((169.87 + 37.75 + 77.27) / (37.75 + 77.27), abs=0.001)
    assert family.ceiling["sparse"] == pytest.approx(
        (169.87 + 37.75 + 77.27) / (37.75 * 126528 / 1024**2 + 77.27), abs=0.001
    )


def test_every_solution_reaches_the_target():
    config = load_config("text", "mst")
    family = solve(config, 4, fixed={"warmup_end": 0.05})
    assert {solution.varied for solution in family.solutions} >= {("ultra_sparsity",), ("final_sparsity",)}
    for solution in family.solutions:
        assert solution.values["warmup_end"] == 0.05
        overrides = [f"mst.{name}={value}" for name, value in solution.values.items()]
        assert (
            plan(load_config("text", "mst", overrides=overrides))["conventions"]["head_counted_full"]["reduction"]
            == solution.reduction
        )
        assert solution.reduction == pytest.approx(4, rel=0.01)
    assert family.lowest < 4 < family.highest


def test_a_profile_has_the_schedule_that_its_command_finds(profile, capsys):
    text = (PROFILES / f"{profile}.yaml").read_text()
    (command,) = re.findall(r"# 4x under head_counted_full: python -m replication (.*)\n", text)
    assert main([*shlex.split(command), "--json"]) == 0
    (solution,) = yaml.safe_load(capsys.readouterr().out)["solutions"]
    chosen = load_config(profile, "mst").mst
    assert solution["values"] == {name: getattr(chosen, name) for name in solution["values"]}
    assert 4 <= solution["reduction"] < 4.03


def test_arms_at_msts_flops_are_what_their_commands_find(profile, capsys):
    text = (PROFILES / f"{profile}.yaml").read_text()
    commands = re.findall(r"# python -m replication (plan .*--target-reduction 4.*)\n", text)
    assert len(commands) == {"smoke": 2, "small": 4, "paper": 5}.get(profile, 3)
    for command in map(shlex.split, commands):
        assert main([*command, "--json"]) == 0
        (solution,) = yaml.safe_load(capsys.readouterr().out)["solutions"]
        config = load_config(profile, command[command.index("--method") + 1])
        section = config.mst if config.method == "mst" else config.sparsity
        assert solution["values"] == {name: getattr(section, name) for name in solution["values"]}


def test_no_solution_is_said_plainly(capsys):
    family = solve(load_config("paper", "mst", overrides=["sparsity.mask_lm_head=false", "train.num_steps=6000"]), 4)
    assert family.solutions == [] and family.highest < 4
    problem = "--target-reduction is 4, which no setting reaches under head_counted_full"
    ceiling = r"2\.48× with dense attention, 3\.48× with sparse attention"
    with pytest.raises(UserError, match=f"^{problem}; .* {ceiling}$"):
        render(family)


@pytest.mark.parametrize(
    ("arm", "options", "line"),
    [
        ("mst", ["--target-reduction", "0.5"], "--target-reduction is 0.5; allowed: above 1"),
        ("mst", ["--target-reduction", "nan"], "--target-reduction is nan; allowed: above 1"),
        ("mst", ["--target-reduction", "99"], "--target-reduction is 99, which no setting reaches"),
        (
            "mst",
            ["--target-reduction", "4", "--convention", "blocks"],
            "--convention is 'blocks'; the nearest valid one is 'blocks_only'",
        ),
        (
            "mst",
            ["--target-reduction", "4", "--fix", "ultra=0.9"],
            "--fix is 'ultra'; the nearest valid one is 'ultra_sparsity'",
        ),
        (
            "mst",
            ["--target-reduction", "4", "--fix", "ultra_sparsity=high"],
            "--fix is 'ultra_sparsity=high'; allowed: NAME=NUMBER",
        ),
        ("mst", ["--target-reduction", "4", "--fix", "ultra_sparsity=2"], "mst.ultra_sparsity is 2.0; allowed"),
        ("dense", ["--target-reduction", "4"], "--method is 'dense', which trains densely"),
    ],
)
def test_bad_input_is_one_line(arm, options, line, capsys):
    assert main(["plan", "--method", arm, *options]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
