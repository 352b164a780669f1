"""What the command line does, for code of one's own: count, train, load, evaluate."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.system.errors import UserError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

    from replication.runs.folder import RunFolder


def count(profile: str, method: str, **settings: Any) -> dict[str, dict[str, float]]:
    """FLOPs of a training run, without training: `{"head_counted_full": {"dense_flops": …, "flops": …, "reduction":
    …}, …}`, a counting convention each (docs/flops.md). `reduction` is dense ÷ method.

    Args:
        profile: a size, by name or by the path of its file.
        method: an arm of it, as in `replicate --methods`.
        settings: fields of the configuration, `__` for the dot: `sparsity__sparsity=0.9`.

    Raises:
        UserError: an unknown name, or a value out of range, in one line.
    """
    from replication.flops.plan import plan

    return plan(_config(profile, method, 0, settings))["conventions"]


def train(
    profile: str,
    method: str,
    out: Path | str,
    *,
    seed: int = 0,
    data_dir: Path | str = "data",
    resume: bool = False,
    progress: bool = False,
    **settings: Any,
) -> "RunFolder":
    """Train one run, as `python -m replication train` does; a finished one is left as it is.

    Args:
        profile, method, settings: as in `count`.
        out: the run folder; new, empty, or one of this configuration.
        seed: of the first weights, the masks and the batches.
        data_dir: where prepared text is, or goes.
        resume: go on with an interrupted run.
        progress: show a bar.

    Returns:
        The run's folder: `.metrics()`, `.topology()`, `.flops()`, `.masks()`, `.checkpoint`.

    Raises:
        UserError: bad settings, unusable text, or a folder that holds something else, in one line.
        TrainingError: the loss diverged; the last good state is kept.
    """
    from replication.training.trainer import train as train_run

    return train_run(_config(profile, method, seed, settings), Path(out), Path(data_dir), resume, progress)


def load(folder: Path | str) -> tuple["GPT2LMHeadModel", "PreTrainedTokenizerBase"]:
    """A run's model, in evaluation mode, and its tokenizer.

    Args:
        folder: a run's, or its `checkpoint/`.

    Raises:
        UserError: it holds no whole checkpoint.
    """
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from replication.eval.zero_shot import check_files

    checkpoint = _checkpoint(folder)
    check_files(checkpoint)
    model = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def evaluate(folder: Path | str, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Zero-shot scores of a run by lm-eval: `{task: {metric: value}}` under lm-eval's names.

    Args:
        folder: a run's, or a GPT-2 checkpoint's in Hugging Face form.
        tasks: of ours (eval/README.md) or any of lm-eval's.

    Raises:
        UserError: it holds no whole checkpoint; an unknown task; an evaluation set that was not prepared.
    """
    from replication.eval.zero_shot import check_tasks, score

    check_tasks(list(tasks))
    return score(_checkpoint(folder), list(tasks))


def _config(profile: str, method: str, seed: int, settings: dict[str, Any]) -> Any:
    from replication.config.profiles import load_config, resolve_name

    pairs = [f"{key.replace('__', '.')}={_text(value)}" for key, value in settings.items()]
    return load_config(resolve_name(profile), method, seed, pairs)


def _text(value: Any) -> str:
    """A value as `--set` takes it."""
    try:
        return json.dumps(value)
    except TypeError:
        raise UserError(f"a setting is {value!r}; allowed: numbers, text, true or false, lists of them") from None


def _checkpoint(folder: Path | str) -> Path:
    """The checkpoint's folder, of a run's or of its own."""
    inside = Path(folder) / "checkpoint"
    return inside if inside.is_dir() else Path(folder)
