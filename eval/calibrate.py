"""Does the pipeline score a known model as others do? Its scores against the references of replication/paper.yaml."""

from dataclasses import dataclass
from pathlib import Path

from replication import paper
from replication.config.keys import check_known
from replication.eval.zero_shot import score


@dataclass(frozen=True)
class Reading:
    """One score beside its reference; `tolerance` is the largest difference that counts as the same (ours)."""

    task: str
    metric: str
    value: float
    reference: float
    tolerance: float
    source: str

    @property
    def is_within(self) -> bool:
        return abs(self.value - self.reference) <= self.tolerance


def calibrate(model: str, reference: str) -> list[Reading]:
    """Score a model on the tasks for which `reference` has values.

    Args:
        model: a Hugging Face model folder, or a name on the hub.
        reference: the model, in paper.yaml, whose values it should have.

    Raises:
        UserError: no references of that name, a folder that holds no model, a model or evaluation set that the hub
            does not give.
    """
    references = paper.load()["references"]
    check_known("--reference", reference, sorted({entry["model"] for entry in references}))
    wanted = [entry for entry in references if entry["model"] == reference]
    scores = score(model, list(dict.fromkeys(entry["task"] for entry in wanted)), from_hub=not Path(model).exists())
    return [
        Reading(
            entry["task"],
            entry["metric"],
            scores[entry["task"]][f"{entry['metric']},none"],
            entry["value"],
            entry["tolerance"],
            entry["source"],
        )
        for entry in wanted
    ]


def render(readings: list[Reading]) -> str:
    """For the terminal, a line per reading."""
    return "\n".join(
        f"{reading.task}  {reading.metric}  {reading.value:.6g}, "
        f"reference {reading.reference:g} ± {reading.tolerance:g} ({reading.source}): "
        f"{'within' if reading.is_within else 'outside'} tolerance"
        for reading in readings
    )
