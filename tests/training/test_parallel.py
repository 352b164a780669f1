"""Several processes train the run of one up to rounding, and again the same when resumed.

Their sums are in another order, so that a millionth is all that losses may differ by, and masks not at all: until two
scores between which an update cuts lie within a millionth of each other. Those may change places, and from there on
the runs are two.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from training_runs import METHODS, outcome, set_up, torchrun

from replication.runs.folder import RunFolder
from replication.sparsity import topology
from replication.sparsity.algorithm import DynamicSparsityAlgorithm
from replication.training import steps, trainer

TOGETHER = Path(__file__).parents[1] / "train_together.py"
ACCUMULATED = "train.micro_batch_size=2"
BLOCKS = ("sparsity.block_shape=[2,4]", "sparsity.clip_norm=dense")
QUICK = {
    "mst, accumulated": ("mst", ACCUMULATED),
    # of single sequences, as two processes put others together in a micro-batch
    "rigl by magnitudes": ("rigl", "train.micro_batch_size=1", "sparsity.growth_gradient=magnitudes"),
    "mst in blocks": ("mst", ACCUMULATED, *BLOCKS),
}
SLOW = {f"{method} at once": (method,) for method in METHODS} | {
    **{f"{method}, accumulated": (method, ACCUMULATED) for method in METHODS if f"{method}, accumulated" not in QUICK},
    "set in blocks": ("set", *BLOCKS),
    "rigl in blocks": ("rigl", ACCUMULATED, *BLOCKS),
    "static in blocks": ("static", *BLOCKS),
    "mst by sparse kernels": ("mst", "train.kernels=sparse"),
    "rigl by sparse kernels, accumulated": ("rigl", ACCUMULATED, "train.kernels=sparse"),
}


@pytest.fixture(scope="module")
def together(overrides, data_dir, tmp_path_factory):
    """together(number of processes, name -> (method, settings), stop, resume at) -> name -> its run."""

    def train(num_processes, runs, stop=None):
        folder = tmp_path_factory.mktemp("together")
        jobs = [
            (method, [*overrides, "train.precision=fp32", *settings], str(folder / name), stop)
            for name, (method, *settings) in runs.items()
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        done = torchrun(num_processes, TOGETHER, folder / "jobs.json", data_dir)
        assert done.returncode == 0, done.stderr[:3000]
        return {name: RunFolder(folder / name) for name in runs}

    return train


class Cuts:
    """Remembers at which step two scores on both sides of a cut tied within a millionth, for the first time."""

    def __init__(self, patch):
        self.step, self.first_tie = 0, None
        update, select_largest = DynamicSparsityAlgorithm.update, topology.select_largest

        def updating(algorithm, step, *arguments):
            self.step = step
            return update(algorithm, step, *arguments)

        def selecting(scores, eligible, num, generator):
            if self.first_tie is None and is_tie(scores[eligible], num):
                self.first_tie = self.step
            return select_largest(scores, eligible, num, generator)

        patch.setattr(DynamicSparsityAlgorithm, "update", updating)
        patch.setattr(topology, "select_largest", selecting)


def is_tie(scores, num):
    """Do the last score that is taken and the first that is not lie within a millionth? Zeros are zeros everywhere."""
    if not 0 < num < len(scores):
        return False
    last, following = scores.sort(descending=True).values[num - 1 : num + 1].tolist()
    return abs(last) > 0 and abs(last - following) <= 1e-6 * abs(last)


@pytest.mark.parametrize(
    ("scores", "num", "expected"),
    [
        ([3.0, 2.0, 1.0], 1, False),
        ([1.0, 3.0, 3.0 + 1e-6], 1, True),
        ([1.0, 3.0, 3.0 + 1e-6], 2, False),
        ([1.0, 3.0, 3.0 + 1e-5], 1, False),
        ([0.0, 0.0, 1.0], 2, False),
        ([1.0, 1.0], 0, False),
        ([1.0, 1.0], 2, False),
    ],
)
def test_what_a_tie_is(scores, num, expected):
    assert is_tie(torch.tensor(scores), num) is expected


@pytest.fixture(scope="module")
def alone(tiny, data_dir, tmp_path_factory):
    """alone(method, *settings) -> the run that one process trains, and the step of its first tie, None without one."""

    def train(method, *settings):
        folder = tmp_path_factory.mktemp("alone") / "run"
        with pytest.MonkeyPatch.context() as patch:
            cuts = Cuts(patch)
            run = trainer.train(tiny(method, "train.precision=fp32", *settings), folder, data_dir, progress=False)
        return run, cuts.first_tie

    return train


def assert_same(ours, theirs, first_tie):
    """Losses within a millionth and equal masks; after a tie losses within a thousandth, and as many weights active."""
    for key in ("loss", "validation_loss"):
        for row, expected in zip(ours.metrics(), theirs.metrics(), strict=True):
            rel = 1e-6 if first_tie is None or row["step"] <= first_tie else 1e-3
            assert row.get(key) == (None if expected.get(key) is None else pytest.approx(expected[key], rel=rel))
    assert ours.flops() == theirs.flops()
    masks, expected = ours.masks(), theirs.masks()
    assert masks.keys() == expected.keys()
    for name in masks:
        assert masks[name].sum() == expected[name].sum() and (
            first_tie is not None or (masks[name] == expected[name]).all()
        )


def test_after_a_tie_masks_may_differ_and_before_it_nothing_may(alone, tmp_path):
    run, _ = alone("set")
    other, rows = RunFolder(tmp_path / "other"), run.metrics()
    other.path.mkdir()
    for name in ("config.yaml", "flops.json"):
        (other.path / name).write_bytes((run.path / name).read_bytes())
    for row in rows[-2:]:
        row["loss"] *= 1 + 1e-4
    other.append("metrics.jsonl", rows)
    other.write_masks(
        {name: ~mask if mask.mean() == 0.5 else mask[::-1, ::-1].copy() for name, mask in run.masks().items()}
    )
    assert_same(other, run, first_tie=rows[-3]["step"])
    for first_tie in (None, rows[-2]["step"]):
        with pytest.raises(AssertionError):
            assert_same(other, run, first_tie)


@pytest.fixture(scope="module")
def two(together):
    """What two processes train, by name; and a run whose processes disagree."""
    return together(2, QUICK | {"odd": ("odd",)})


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_train_the_run_of_one(name, two, alone):
    assert two[name].environment()["processes"] == 2
    assert_same(two[name], *alone(*QUICK[name]))


def test_masks_that_differ_stop_the_run_with_one_line(two):
    status = two["odd"].status()
    assert (status["status"], status["step"]) == ("failed", 3)
    assert status["reason"] == "masks after step 3 of rank 1 are not those of rank 0"


@pytest.mark.slow
def test_two_processes_train_the_run_of_one_in_other_ways_too(together, alone):
    for name, run in together(2, SLOW).items():
        assert_same(run, *alone(*SLOW[name]))


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_resume_bit_for_bit(num_processes, together):
    """Four round by a gradient's place in its bucket, and so need the same buckets again."""
    runs = {method: (method, ACCUMULATED, "model.n_embd=64") for method in METHODS}
    whole, resumed = together(num_processes, runs), together(num_processes, runs, stop=11)
    for name in runs:
        assert outcome(resumed[name]) == outcome(whole[name]), name


@pytest.fixture
def world_of_one():
    """This process as torchrun's only one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("method", METHODS)
def test_one_process_under_torchrun_trains_what_it_trains_alone(method, tiny, data_dir, tmp_path, world_of_one):
    state, other = (set_up(tiny(method, ACCUMULATED), data_dir, tmp_path) for _ in range(2))
    forward = steps.parallel_forward(state)
    assert forward is not state.model.transformer
    for _ in range(12):
        row, expected = trainer.train_step(state, forward), trainer.train_step(other, other.model.transformer)
        assert row == expected
    for ours, theirs in zip(state.model.parameters(), other.model.parameters()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("growth", "times"), [("mean", 1), ("magnitudes", 0), ("process_magnitudes", 0)])
def test_ddp_averages_once_a_step_and_not_before_growth_has_read(growth, times, tiny, data_dir, tmp_path, world_of_one):
    state = set_up(tiny("rigl", ACCUMULATED), data_dir, tmp_path)
    forward, averaged = steps.parallel_forward(state), []

    def count(_, bucket):
        averaged.extend(bucket.parameters())
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    forward.register_comm_hook(None, count)
    steps.accumulate_gradient(state, forward, growth)
    assert len(averaged) == times * len(state.trained)
