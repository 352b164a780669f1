"""Several processes of one run: what they agree on before a step is taken, and what is said where they do not."""

import re

import pytest
from training_runs import torchrun

from replication.cli import main
from replication.system.errors import DamagedError, MethodError, UserError
from replication.system.launcher import read_launcher
from replication.training.world import _difference, _problem

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PLACE = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def launcher(monkeypatch):
    """launcher(**variables): the environment that one leaves."""

    def set_up(**variables):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_up


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "0"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", **PLACE}, (1, 2)),
    ],
)
def test_a_launcher_says_which_process_this_is(variables, expected, launcher):
    launcher(**variables)
    assert read_launcher() == expected


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        (
            {"RANK": "1"},
            "RANK is '1', but there is no launcher that set it (WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set)",
        ),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE is '2', but there is no launcher that set it (RANK, MASTER_ADDR, MASTER_PORT",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2", **PLACE}, "RANK is '2', WORLD_SIZE is '2', but there is no launcher"),
        ({"RANK": "one"}, "RANK is 'one', but"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **PLACE}, "RANK is '-1'"),
    ],
)
@pytest.mark.parametrize("command", [("plan", "--method", "typo"), ("train", "--method", "set", "--out", "nowhere")])
def test_variables_of_a_launcher_that_is_not_there_are_one_line(variables, says, command, launcher, capsys):
    launcher(**variables)
    assert main([*command, "--profile", "smoke"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {says}")


def test_what_differs_is_named_with_both_values():
    same = {"seed": 0, "train.learning_rate": 0.1}
    assert _difference([same, dict(same)]) is None
    line = str(_difference([same, same, same | {"train.learning_rate": 0.2, "method own": "a"}]))
    assert line.startswith(
        "train.learning_rate is 0.1 in rank 0 and 0.2 in rank 2; method own is None in rank 0 and a in"
    )


def test_the_problem_of_the_first_that_has_one_is_every_ones():
    assert _problem([None, None]) is None
    found = _problem([None, (MethodError, "it fails"), (UserError, "another")])
    assert (type(found), str(found)) == (MethodError, "rank 1: it fails")
    both = _problem([(DamagedError, "a file"), (DamagedError, "a file")])
    assert (type(both), str(both)) == (DamagedError, "a file")


# ---- two processes

SCRIPT = """
import os, sys
from replication.__main__ import main
rank = os.environ["RANK"]
own = sys.argv[sys.argv.index("--") + 1:]
sys.argv = [sys.argv[0], *sys.argv[1:sys.argv.index("--")], *(own if rank == "1" else [])]
sys.exit(main())
"""
DIFFERENT = {
    "a setting": (["--set", "train.learning_rate=0.5"], "train.learning_rate is .* in rank 0 and 0.5 in rank 1"),
    "when it is judged": (["--set", "train.eval_freq=7"], "train.eval_freq is 10 in rank 0 and 7 in rank 1"),
    "precision": (["--set", "train.precision=bf16"], "train.precision is fp32 in rank 0 and bf16 in rank 1"),
    "a seed": (["--seed", "3"], "seed is 0 in rank 0 and 3 in rank 1"),
    "a text": (["--set", "data.files=[{other}]"], "the train shard is .* in rank 0 and .* in rank 1"),
    "bad input": (["--set", "train.batch_sise=3"], "rank 1: unknown configuration key 'train.batch_sise'"),
    "a plug-in that is not there": (["--plugin", "nothing.py"], "rank 1: --plugin nothing.py is no file"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("own", "says"), DIFFERENT.values(), ids=list(DIFFERENT))
def test_two_processes_that_are_not_of_one_run_are_refused_in_one_line(own, says, overrides, data_dir, tmp_path):
    script, other = tmp_path / "script.py", tmp_path / "other.txt"
    script.write_text(SCRIPT)
    other.write_text("<|endoftext|>\n".join(f"a line of number {number}\n" * 30 for number in range(200)))
    settings = [part for pair in overrides for part in ("--set", pair)]
    command = ["train", "--profile", "smoke", "--method", "set", "--out", str(tmp_path / "run"), *settings]
    done = torchrun(2, script, *command, "--data-dir", data_dir, "--", *(part.format(other=other) for part in own))
    assert done.returncode != 0 and not (tmp_path / "run" / "metrics.jsonl").exists()
    lines = [line for line in done.stderr.splitlines() if "error: " in line and "torch" not in line]
    assert len(lines) == 1 and re.search(f"^error: {says}", lines[0]), done.stderr[:3000]
    assert "[rank" not in done.stderr  # as torch begins each line of a traceback
