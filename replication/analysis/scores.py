"""What lm-eval says of a checkpoint: its values by task and metric, and which of them are better when higher."""

from collections.abc import Iterable, Iterator

from replication.runs.folder import RunFolder

HIGHER_IS_BETTER = ("acc", "acc_norm", "f1", "exact_match", "mcc")  # where lm-eval did not say it


def score_values(raw: dict) -> Iterator[tuple[str, float]]:
    """`task/metric` and value; lm-eval writes `metric,filter`, and its error beside it as `metric_stderr,filter`."""
    for task, result in raw["results"].items():
        for key, value in result.items():
            metric, comma, _ = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                yield f"{task}/{metric}", float(value)


def higher_in(runs: Iterable[RunFolder]) -> list[str]:
    """Of the runs' `task/metric` those of which the higher value is better."""
    return sorted(set().union(*(higher_of(raw) for run in runs for raw in run.evals().values())))


def higher_of(raw: dict) -> set[str]:
    """The same of lm-eval's output, by its own word where it left one."""
    told = {
        f"{task}/{metric}": is_higher
        for task, metrics in raw.get("higher_is_better", {}).items()
        for metric, is_higher in metrics.items()
        if is_higher is not None
    }
    return {name for name, _ in score_values(raw) if told.get(name, name.split("/")[-1] in HIGHER_IS_BETTER)}
