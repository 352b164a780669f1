"""One side of a comparison: the finished runs of a folder, or the scores of a checkpoint, as numbers to compare."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replication.analysis.curves import validation_curve
from replication.analysis.scores import higher_of, score_values
from replication.config.keys import flatten
from replication.config.run_config import NO_RESULT, build_config
from replication.runs.finding import check_whole
from replication.runs.folder import UNREADABLE, RunFolder
from replication.system.errors import UserError
from replication.system.files import Json, explain_damage, read_json

LOSS, SPEED, MEMORY = "validation loss", "tokens/s", "peak memory"
PLACES = ("seed-*", "*/seed-*", "*/*/seed-*", "*")  # of runs, in a folder of an arm, a profile, results; of any runs
UNCOMPARED = {"profile", "arm", "seed", *NO_RESULT}  # of the settings
SCORED = "scored"  # the arm of a checkpoint's scores


@dataclass(frozen=True)
class Measured:
    """What a run, or a checkpoint that was scored, is compared by.

    Attributes:
        values: metric -> value: `LOSS` (nats per token), `<task>/<metric>`, `SPEED`, `MEMORY` (bytes).
        higher: of these, the metrics whose higher value is the better one.
        flops: counting convention or component -> FLOPs of the whole run.
        curve: (FLOPs so far under head_counted_full, validation loss) at each evaluation.
        settings: dotted key -> value, of what a run's result depends on.
        evaluation_sets: task -> sha256 of what it was scored on, where that is known.
    """

    profile: str
    arm: str
    seed: int
    values: dict[str, float]
    higher: frozenset[str]
    flops: dict[str, int] = field(default_factory=dict)
    curve: tuple[tuple[float, float], ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    environment: Json = field(default_factory=dict)
    evaluation_sets: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.arm}/seed-{self.seed}"


def read_side(folder: Path) -> tuple[list[Measured], dict[Path, str]]:
    """What there is to compare in a folder of results, of a profile, an arm or a run, or in one of lm-eval's JSON.

    Returns:
        That, and of each run that is left out, as it is not finished or damaged: its folder -> a line.

    Raises:
        UserError: there is no such folder, or nothing in it to compare.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; allowed: one of results, of a run, or of lm-eval's scores")
    found: list[Measured] = []
    left_out: dict[Path, str] = {}
    for run in _runs(folder):
        try:
            found.append(_measure(run))
        except (UserError, *UNREADABLE) as error:
            problem = error if isinstance(error, UserError) else f"{run.path} is damaged: it is not a run's"
            left_out[run.path] = str(problem)
    if not found and not left_out:
        found = _scores(folder)
    if not found:
        reasons = f" ({'; '.join(left_out.values())})" if left_out else ""
        raise UserError(
            f"{folder} holds nothing to compare{reasons}; "
            "allowed: a folder with finished runs, or with what `evaluate --out` wrote"
        )
    return found, left_out


def _runs(folder: Path) -> Iterator[RunFolder]:
    if (folder / "status.json").exists():
        yield RunFolder(folder)
        return
    for pattern in PLACES:
        runs = [RunFolder(path) for path in sorted(folder.glob(pattern)) if path.is_dir()]
        runs = [run for run in runs if run.entries() and (pattern != "*" or (run.path / "status.json").exists())]
        if runs:
            yield from runs
            return


def _measure(run: RunFolder) -> Measured:
    """Raises UserError: the run is not finished, or damaged."""
    status = run.status()
    if not status:
        raise explain_damage(run.path / "status.json", "it is missing")
    if status["status"] != "finished":
        raise UserError(f"{run.path} is {status['status']}, at step {status.get('step', 0)}")
    check_whole(run)
    rows, config, counts, evals = run.metrics(), run.config(), run.flops(), run.evals()
    memory = [row["memory_bytes"] for row in rows if "memory_bytes" in row]
    values = {LOSS: rows[-1]["validation_loss"], SPEED: status["tokens_per_second"]}
    values |= {MEMORY: max(memory)} if memory else {}
    scores, higher = _read_scores(evals)
    return Measured(
        **{key: config[key] for key in ("profile", "arm", "seed")},
        values=values | scores,
        higher=higher | {SPEED},
        flops={**{name: count["flops"] for name, count in counts["conventions"].items()}, **counts["components"]},
        curve=tuple(validation_curve(rows)),
        settings=_settings(config),
        environment=run.environment()
        | {"lm_eval": sorted({str(raw.get("lm_eval_version")) for raw in evals.values()})},
        evaluation_sets=_sets(evals),
    )


def _settings(config: Json) -> dict[str, Any]:
    try:
        settings = flatten(build_config(config).to_dict())  # a key added since then has its default
    except UserError:  # of another version
        settings = flatten(config)
    return {key: value for key, value in settings.items() if key not in UNCOMPARED}


def _scores(folder: Path) -> list[Measured]:
    """A checkpoint's, as `evaluate --out` leaves them: a file a task. Raises DamagedError."""
    raws = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
    raws = {task: raw for task, raw in raws.items() if isinstance(raw, dict) and isinstance(raw.get("results"), dict)}
    try:
        values, higher = _read_scores(raws)
    except UNREADABLE:
        raise explain_damage(folder, "its JSON is not lm-eval's") from None
    return [Measured("", SCORED, 0, values, higher, evaluation_sets=_sets(raws))] if values else []


def _read_scores(raws: dict[str, Json]) -> tuple[dict[str, float], frozenset[str]]:
    """`task/metric` -> value; and those whose higher value is better, by lm-eval's own word where it left one."""
    values = {name: value for raw in raws.values() for name, value in score_values(raw)}
    return values, frozenset(set().union(*map(higher_of, raws.values())))


def _sets(raws: dict[str, Json]) -> dict[str, str]:
    return {task: raw["evaluation_set"] for task, raw in raws.items() if raw.get("evaluation_set")}
