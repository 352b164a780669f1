"""What a method, a metric or a schedule from outside must do: a run by one that does not has failed, in one line."""

import json
import re
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from replication.cli import main
from replication.methods import METHODS, Method
from replication.runs.folder import RunFolder
from replication.sparsity.algorithm import DynamicSparsityAlgorithm
from replication.sparsity.metrics import METRICS, register_metric
from replication.sparsity.schedules import DropFraction
from replication.sparsity.topology import update_topology
from replication.system.errors import MethodError, TrainingError, UserError
from replication.training import trainer

WEIGHT = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 0.0, 0.0, 0.0]])  # two of four are dropped, 0 and 1
MASK = WEIGHT != 0


def update(places):
    """With a growth that gives these, whatever it is asked for."""

    class Mine:
        def grow(self, *_):
            return places

    generator = torch.Generator().manual_seed(0)
    grow = Mine().grow
    return update_topology(
        WEIGHT, MASK, None, target_nnz=4, drop_fraction=0.5, grow=grow, generator=generator, layer="head"
    )


WRONG = {
    "none": (None, "nothing (None) as the places"),
    "a list": ([4, 5], "list as the places"),
    "float": (torch.tensor([4.0, 5.0]), "2 of float32 on cpu as the places"),
    "int32": (torch.tensor([4, 5], dtype=torch.int32), "2 of int32 on cpu as the places"),
    "a mask": (~MASK, "2×4 of bool on cpu as the places"),
    "pairs": (torch.tensor([[1, 0], [1, 1]]), "2×2 of int64 on cpu as the places"),
    "on another device": (torch.tensor([4, 5], device="meta"), "2 of int64 on meta as the places"),
    "too few": (torch.tensor([4]), "1 places"),
    "too many": (torch.tensor([4, 5, 6]), "3 places"),
    "repeated": (torch.tensor([4, 4]), "1 places that are distinct and were inactive"),
    "active": (torch.tensor([4, 3]), "1 places that are distinct and were inactive"),
    "beyond the end": (torch.tensor([4, 8]), "places 4 to 8 of the 8"),
    "before the start": (torch.tensor([-1, 4]), "places -1 to 4 of the 8"),
}


@pytest.mark.parametrize(("places", "says"), WRONG.values(), ids=list(WRONG))
def test_growth_gives_as_many_distinct_eligible_places_as_it_is_asked_for(places, says):
    with pytest.raises(
        MethodError, match=rf"^Mine\.grow gave {re.escape(says)} of head, and was asked for 2; allowed: "
    ):
        update(places)


def test_what_was_just_dropped_may_grow_again():
    assert update(torch.tensor([1, 7])).mask.int().tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


# ---- in training


class Own(DynamicSparsityAlgorithm):
    """At random, as asked."""


class Few(Own):
    def grow(self, gradient, eligible, num, generator):
        return super().grow(gradient, eligible, num, generator)[: num // 2]


class Exits(Own):
    def grow(self, gradient, eligible, num, generator):
        sys.exit()


class Raises(Own):
    def grow(self, gradient, eligible, num, generator):
        raise ValueError("mine\nand more")


class Forgets(Own):
    """Says that it has what it had."""

    def update(self, step, optimizer, gradients=None):
        before = dict(self.nnz)
        rows = super().update(step, optimizer, gradients)
        self.nnz = before | {name: count + 1 for name, count in before.items()}
        return rows


class Activates(Own):
    """Has a mask of its own."""

    def update(self, step, optimizer, gradients=None):
        next(iter(self.masks.values()))[0] = True
        return []


@dataclass(frozen=True)
class Mine(DropFraction):
    """A schedule that gives something from step 3 on."""

    gives: object = float("nan")

    def drop_fraction(self, step):
        if step < 3:
            return 0.3
        if isinstance(self.gives, type):
            raise self.gives("so")
        return self.gives


def with_schedule(gives):
    return lambda config, constant: replace(constant, drop_fraction=Mine(((0, 0.3),), config.train.steps, gives))


FAILS = {
    "few": (Method(Few), r"Few\.grow gave \d+ places of transformer\..*, and was asked for \d+;"),
    "exits": (Method(Exits), r"Exits\.grow fails \(SystemExit: \)"),
    "raises": (Method(Raises), r"Raises\.grow fails \(ValueError: mine\)"),
    "forgets": (Method(Forgets), r"Forgets left (\d+) active weights in .* after step 3 and says \d+, where .* \1;"),
    "activates": (
        Method(Activates),
        r"Activates left \d+ active weights in .* after step 3 and says (\d+), where .* \1;",
    ),
    "schedule nan": (
        Method(Own, with_schedule(float("nan"))),
        "Mine gives the drop fraction nan at step 3; allowed: 0 to 1",
    ),
    "schedule none": (Method(Own, with_schedule(None)), "Mine gives the drop fraction None at step 3"),
    "schedule 2": (Method(Own, with_schedule(2)), "Mine gives the drop fraction 2 at step 3"),
    "schedule exits": (Method(Own, with_schedule(SystemExit)), r"Mine\.drop_fraction fails \(SystemExit: so\)"),
    "schedule raises": (Method(Own, with_schedule(KeyError)), r"Mine\.drop_fraction fails \(KeyError: 'so'\)"),
}


@pytest.mark.parametrize(("made", "says"), FAILS.values(), ids=list(FAILS))
def test_a_run_by_what_does_not_as_it_must_has_failed_in_one_line(made, says, tiny, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", made)
    with pytest.raises(TrainingError, match=says) as raised:
        trainer.train(replace(tiny("set"), method="mine"), tmp_path / "run", data_dir, progress=False)
    assert isinstance(raised.value, UserError) and "\n" not in str(raised.value)
    status = RunFolder(tmp_path / "run").status()
    assert (status["status"], status["kind"], status["step"]) == ("failed", "MethodError", 3)
    assert status["reason"] == str(raised.value)


def test_sys_exit_in_a_metric_fails_the_run(tiny, data_dir, tmp_path):
    def leaves_of_a_test(layer):
        sys.exit(0)

    register_metric()(leaves_of_a_test)
    try:
        with pytest.raises(MethodError, match=r"leaves_of_a_test fails \(SystemExit: 0\)"):
            config = tiny("set", "sparsity.metrics=[leaves_of_a_test]")
            trainer.train(config, tmp_path / "run", data_dir, progress=False)
    finally:
        del METRICS["leaves_of_a_test"]
    assert RunFolder(tmp_path / "run").status()["status"] == "failed"


def test_train_says_it_and_exits_with_1(overrides, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_PLUGINS", "")
    monkeypatch.setattr("replication.methods.METHODS", dict(METHODS))
    (tmp_path / "few.py").write_text(
        "from replication.methods import Method, register\n"
        "from replication.sparsity.algorithm import DynamicSparsityAlgorithm\n"
        "class Nothing(DynamicSparsityAlgorithm):\n"
        "    def grow(self, gradient, eligible, num, generator):\n        pass\n"
        "register('nothing', Method(Nothing))\n"
    )
    (tmp_path / "mine.yaml").write_text("extends: smoke\narms: {nothing: {}}\n")
    own = ["--profile", str(tmp_path / "mine.yaml"), "--plugin", str(tmp_path / "few.py"), "--method", "nothing"]
    settings = [part for pair in overrides for part in ("--set", pair)]
    assert main(["train", *own, *settings, "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("failed: Nothing.grow gave nothing (None)") and "is kept" not in line
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["code"].keys() == {"method nothing"}
