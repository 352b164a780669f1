"""How many runs at a time, and with how many threads each."""

from types import SimpleNamespace

import pytest
from synthetic_runs import edit_json, write_runs

from replication.bench.calibration import list_steps
from replication.campaign import sharing
from replication.campaign.pipeline import Job, _threads
from replication.campaign.sharing import share
from replication.cli import main
from replication.config.profiles import load_config
from replication.forecast.predict import Calibration, Row
from replication.runs.folder import RunFolder
from replication.system.machine import machine


@pytest.mark.parametrize(
    ("runs", "cores", "expected"),
    [
        (33, 2, (2, 1, "a core each")),
        (16, 16, (16, 1, "a core each")),
        (3, 16, (3, 5, "all cores")),
        (1, 2, (1, 2, "all cores")),
    ],
)
def test_without_calibrations_every_core_has_work(runs, cores, expected, monkeypatch):
    monkeypatch.setattr(sharing, "load_calibration", lambda machine: None)
    assert share([object()] * runs, cores, {"threads": cores}) == expected


@pytest.fixture
def timed(monkeypatch):
    """timed(seconds of a run by threads): what a calibration for so many threads would say of it."""

    def calibrate(seconds, busy=""):
        known = {threads: SimpleNamespace(each=each, busy=busy) for threads, each in seconds.items()}
        monkeypatch.setattr(sharing, "load_calibration", lambda machine: known.get(machine["threads"]))
        monkeypatch.setattr(sharing, "predict", lambda run, known: SimpleNamespace(seconds=run * known.each))

    return calibrate


@pytest.mark.parametrize(
    ("two_threads", "runs", "expected"),
    [
        (0.6, [1, 1, 1], (1, 2)),  # 1.8 against 2: the third run would leave a core idle
        (0.6, [1, 1], (2, 1)),  # 1.2 against 1
        (0.9, [1, 1, 1], (2, 1)),  # 2.7 against 2
        (0.6, [1, 1, 2], (1, 2)),  # 2.4 against 3: the long one begins when a short one has ended
        (0.6, [2, 1, 1], (2, 1)),  # 2.4 against 2
    ],
)
def test_what_ends_first_by_hand(two_threads, runs, expected, timed):
    timed({1: 1.0, 2: two_threads})
    assert share(runs, 2, {"threads": 2})[:2] == expected


def test_it_says_what_it_is_faster_than(timed):
    timed({1: 1.0, 2: 0.6})
    assert share([1, 1, 1], 2, {})[2] == "by this machine's calibration 1.11× as fast as 2 with 1"


def test_what_was_timed_beside_other_work_decides_nothing(timed):
    timed({1: 1.0, 2: 0.6}, busy="this machine was busy")
    assert share([1, 1, 1], 2, {}) == (2, 1, "a core each")


def test_one_calibration_alone_decides_nothing(timed):
    timed({2: 0.1})
    assert share([1] * 8, 2, {}) == (2, 1, "a core each")


@pytest.mark.parametrize("seconds", [None, 0.0, -1.0, float("nan"), "a"])
def test_a_calibration_that_cannot_predict_is_as_none_and_plan_names_it(seconds, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    steps = () if seconds is None else list_steps()  # None: as an earlier version, which timed other steps
    rows = [Row(step, seconds, step.density, step.density) for step in steps]
    here = machine()
    for threads in {1, 2, here["threads"]}:
        Calibration(here | {"threads": threads}, rows, 0.0, "", 0, 0.0).save()
    assert share([load_config("smoke", "mst", 0)] * 4, 2, here) == (2, 1, "a core each")
    assert main(["plan", "--profile", "smoke", "--method", "mst"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is damaged, or of an earlier version; allowed: as `plan machine` writes it anew" in line


@pytest.mark.parametrize(
    ("cores", "begun", "expected"), [(2, 1, (2, 1)), (2, 2, (1, 2)), (16, 5, (3, 5)), (16, 1, (16, 1)), (5, 3, (1, 5))]
)
def test_runs_go_on_with_the_threads_that_some_have_had_where_the_cores_allow(cores, begun, expected, timed):
    timed({cores: 0.1, cores // 2: 9.0} if begun == 1 else {})
    assert share([1], cores, {}, begun)[:2] == expected


def test_the_threads_of_a_run_count_where_it_was_begun_on_this_processor(tmp_path):
    write_runs(tmp_path, {"dense": [3.9], "mst": [4.0]})
    folders = [tmp_path / "small" / arm / "seed-0" for arm in ("set", "dense", "mst")]  # the first is not there
    for folder, processor, threads in zip(folders[1:], ("another", "this"), (8, 3)):
        edit_json(folder / "environment.json", "processor", processor)
        edit_json(folder / "environment.json", "threads", threads)
    jobs = [Job(None, RunFolder(folder)) for folder in folders]
    assert _threads(jobs, {"processor": "this"}) == 3
    assert _threads(jobs[:2], {"processor": "this"}) is None
    (folders[2] / "environment.json").write_text("{")
    assert _threads(jobs, {"processor": "this"}) is None
