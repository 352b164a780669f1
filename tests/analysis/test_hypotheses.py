"""The study's cells and verdicts by hand: differences that are there are shown, and no more often than their level."""

import numpy as np
import pytest
from synthetic_runs import write_run

from replication.analysis.hypotheses import (
    EXPLORATORY,
    OPEN,
    OPPOSITE,
    REGISTERED,
    SHOWN,
    UNTESTED,
    Question,
    ask,
    judge,
    read_losses,
    read_registration,
    tabulate_cells,
)
from replication.runs.folder import RunFolder
from replication.system.files import read_json, sha256, write_sealed

POINTS = {"a5": (100, 5), "a20": (100, 20), "b5": (200, 5), "b20": (200, 20)}
ARMS = ("set_4x_dense_head", "rigl_4x_dense_head", "gmp_4x_dense_head")


def losses(**differences):
    """arm -> seed -> loss: dense 4.0, 4.01, 4.02; the arms that much from it, each with a noise of its own."""
    dense = {seed: 4 + 0.01 * seed for seed in range(3)}
    arms = {
        name: {seed: dense[seed] + by + 0.0005 * ((place + 1) * (seed + 1) % 7 - 3) for seed in dense}
        for place, (name, by) in enumerate(differences.items())
    }
    return {"dense": dense, **arms}


WHOLE = {
    point: losses(
        mst_dense_head=0.1 * (length == 20) - 0.05,
        mst=0.6,
        dense_narrow_dense_head=0.2,
        dense_shallow_dense_head=0.1,
        **dict.fromkeys(ARMS, 0.0),
    )
    for point, (_, length) in POINTS.items()
}


def verdicts(found, name):
    table = judge(ask(found, list(POINTS), POINTS, 0.04), 0.05)
    return table[table["hypothesis"] == name].set_index("point")["verdict"].to_dict()


def test_what_differs_is_shown():
    assert verdicts(WHOLE, "quality") == {"a5": SHOWN, "a20": OPPOSITE, "b5": SHOWN, "b20": OPPOSITE}
    assert verdicts(WHOLE, "method_set") == {"a5": SHOWN, "a20": OPPOSITE, "b5": SHOWN, "b20": OPPOSITE}
    assert set(verdicts(WHOLE, "capacity").values()) == set(verdicts(WHOLE, "head").values()) == {SHOWN}
    alternating = {point: dict(arms) for point, arms in WHOLE.items()}
    for point in ("a20", "b20"):  # else the two lengths' noise is the same, and leaves no spread
        alternating[point]["mst_dense_head"] = {seed: 4.05 + 0.01 * seed + 0.002 * seed for seed in range(3)}
    assert verdicts(alternating, "length") == {"a20": SHOWN, "b20": SHOWN}


def test_no_loss_is_believed_only_where_smaller_models_lose():
    found = {point: arms | {"dense_shallow_dense_head": arms["dense"]} for point, arms in WHOLE.items()}
    assert verdicts(found, "quality") == {"a5": OPEN, "a20": OPPOSITE, "b5": OPEN, "b20": OPPOSITE}


def test_the_rival_of_capacity_is_the_lower_of_the_two():
    found = {point: arms | {"dense_shallow_dense_head": arms["set_4x_dense_head"]} for point, arms in WHOLE.items()}
    assert verdicts(found, "capacity") == {"a5": SHOWN, "a20": OPPOSITE, "b5": SHOWN, "b20": OPPOSITE}


def test_what_is_not_there_is_not_tested():
    found = {"a5": {"dense": {0: 4.0}, "mst_dense_head": {0: 3.9}}}
    assert set(verdicts(found, "quality").values()) == {UNTESTED}
    assert verdicts(found, "capacity") == {} and set(verdicts(found, "length").values()) == {UNTESTED}


def test_where_nothing_differs_one_family_in_twenty_says_so():
    draw, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        asked = [Question("none", str(place), draw.normal(0, 0.01, 3)) for place in range(4)]
        wrong += SHOWN in set(judge(asked, 0.05)["verdict"])
    assert wrong <= 65  # 50 expected; 65 have a probability of 2 %


def test_cells_have_their_n_and_their_difference():
    cells = tabulate_cells({"a5": losses(mst=0.5)}, POINTS).set_index("arm")
    assert cells.loc["mst", "difference"] == pytest.approx(0.5, abs=0.002) and cells.loc["mst", "n"] == 3
    assert cells.loc["mst", "low"] < 0.5 < cells.loc["mst", "high"] and cells.loc["dense", "loss"] == pytest.approx(
        4.01
    )
    single = tabulate_cells({"a5": {"dense": {0: 4.0}, "mst": {0: 4.5}}}, POINTS).set_index("arm")
    assert single.loc["mst", "difference"] == 0.5 and np.isnan(single.loc["mst", "low"])


def test_a_point_is_registered_where_all_its_runs_are(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "small" / "dense" / f"seed-{seed}", "dense", seed, 4.0 + seed)
        run = RunFolder(tmp_path / "small" / "dense" / f"seed-{seed}")
        file, protocol = run.path / "environment.json", {"sha256": "f" * 64, "began": "2026-12-01T12:00:00+00:00"}
        write_sealed(file, read_json(file) | {"protocol": protocol})
        status = run.status()
        write_sealed(run.path / "status.json", status | {"sha256": status["sha256"] | {file.name: sha256(file)}})
    assert read_losses(tmp_path, ["small", "text"]) == {"small": {"dense": {0: 4.0, 1: 5.0}}}
    assert read_registration(tmp_path, "small", {"f" * 64}) == REGISTERED
    assert read_registration(tmp_path, "small", {"0" * 64}) == EXPLORATORY
    write_run(tmp_path / "small" / "mst" / "seed-0", "mst", 0, 4.0)
    assert read_registration(tmp_path, "small", {"f" * 64}) == EXPLORATORY
