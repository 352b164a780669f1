"""The model as it was on the way (`eval.at`): what a run has of it, what it scored, when its weights go. No torch."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from replication.runs.folder import SNAPSHOTS, RunFolder, scores_in
from replication.system.files import Json, check_sha256

WEIGHTS, MASKS = "model.safetensors", "masks.safetensors"
# Of a snapshot's row in metrics.jsonl: losses over the whole validation split, in nats per token, under the attention
# pattern that the step was trained under and under dense attention; and the weights' sha256.
OWN_LOSS, DENSE_LOSS, SHA256 = "full_validation_loss_own", "full_validation_loss_dense", "snapshot_sha256"

LACKING = (
    "finished without some of the snapshots that eval.at asks for, or scored, and without their weights "
    "(eval.keep_weights keeps them); it stays as it is: to have them, train in another folder"
)


@dataclass(frozen=True)
class Snapshot:
    """The model after a step; after the last one it is the run's checkpoint.

    Attributes:
        row: of the step in `metrics.jsonl`.
    """

    run: RunFolder
    row: Json

    @property
    def step(self) -> int:
        return self.row["step"]

    @property
    def is_last(self) -> bool:
        return SHA256 not in self.row

    @property
    def folder(self) -> Path:
        return snapshot_folder(self.run, self.step)

    @property
    def weights(self) -> Path:
        """A plain Hugging Face folder, as long as it has `WEIGHTS`."""
        return self.run.checkpoint if self.is_last else self.folder

    @property
    def has_weights(self) -> bool:
        return (self.weights / WEIGHTS).exists()

    @property
    def sha256(self) -> str | None:
        """Of the weights, as they were written; None: it was not recorded."""
        of_run = self.run.status().get("sha256", {}) if self.is_last else {}
        return self.row.get(SHA256) or of_run.get(f"checkpoint/{WEIGHTS}")

    def check(self) -> None:
        """Raises DamagedError where the weights are not as they were written."""
        if self.sha256:
            check_sha256(self.weights / WEIGHTS, self.sha256)

    @property
    def patterns(self) -> list[str]:
        """Of the attention that the model is judged under: dense, and its own where that is another."""
        return list(dict.fromkeys(("dense", self.row["attention_pattern"])))

    def scores(self, pattern: str) -> Path:
        """Where lm-eval's output under an attention pattern is, one `<task>.json` per task."""
        is_checkpoints = self.is_last and pattern == "dense"
        return self.run.path / "eval" if is_checkpoints else self.folder / "eval" / pattern

    def evals(self, pattern: str) -> dict[str, Json]:
        """Task name -> lm-eval's own output. Raises DamagedError, as `RunFolder.evals`."""
        return scores_in(self.scores(pattern), self.sha256)

    def missing(self, tasks: Iterable[str]) -> dict[str, list[str]]:
        """Attention pattern -> the tasks that have not scored the model under it yet."""
        missing = {pattern: find_unscored(tasks, self.evals(pattern)) for pattern in self.patterns}
        return {pattern: left for pattern, left in missing.items() if left}

    def remove_weights(self) -> None:
        """Leave nothing but scores."""
        (self.folder / WEIGHTS).unlink(missing_ok=True)  # first: what is left of them is none
        for path in self.folder.iterdir():
            if path.name != "eval":
                path.unlink()
        if not (self.folder / "eval").exists():
            self.folder.rmdir()


def snapshot_folder(run: RunFolder, step: int) -> Path:
    return run.path / SNAPSHOTS / f"step-{step:06d}"


def snapshots_of(run: RunFolder) -> list[Snapshot]:
    """In order; of a run that was trained without `eval.at` none."""
    return [Snapshot(run, row) for row in run.metrics() if DENSE_LOSS in row]


def last_of(run: RunFolder) -> Snapshot:
    """The model after the last step, which is the checkpoint, of a run that is trained to its end."""
    return Snapshot(run, run.metrics()[-1])


def lacks(run: RunFolder, steps: Iterable[int], tasks: Sequence[str] = ()) -> bool:
    """Does a run have no snapshot of one of these steps, or one that a task has not scored?"""
    has = {snapshot.step: snapshot for snapshot in snapshots_of(run)}
    return any(step not in has or has[step].missing(tasks) for step in steps)


def find_unscored(tasks: Iterable[str], scores: Mapping[str, Json]) -> list[str]:
    """Those of the tasks without a score; a tag, and a group without a score of its own, has that of its tasks."""
    asked = {name: members for score in scores.values() for name, members in score.get("asked_as", {}).items()}
    return [task for task in tasks if task not in scores and not (task in asked and set(asked[task]) <= scores.keys())]


def remove_after(run: RunFolder, step: int) -> None:
    """Remove the snapshots of later steps, to which a run that goes on from `step` comes again, whole or not."""
    for folder in (run.path / SNAPSHOTS).glob("*step-*"):  # `.step-…` is one that was being written
        if folder.name.startswith(".") or int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
