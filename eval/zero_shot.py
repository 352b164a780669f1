"""Zero-shot scores of a checkpoint folder, by lm-eval's Python API."""

import contextlib
import difflib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from replication.config.fields import AttentionConfig
from replication.config.keys import nearest
from replication.eval.own_tasks import Loader, digest_of_task
from replication.system.errors import UserError, describe_error, out_of_memory
from replication.system.files import check_writable, read_json, read_text, sha256, write_sealed
from replication.system.streams import silence

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

MORE = 8  # entries that a tokenizer may have more than its model, all special (ours)
TASKS_FOLDER = Path(__file__).parent / "tasks"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # its files
_OLD_BUFFERS = (".attn.bias", ".attention.bias", ".masked_bias")  # of attention's mask, in checkpoints from before 2023

_tokenizers: dict[tuple[str, ...], Any] = {}  # that were used, by model type and what is in their files


def available_tasks() -> list[str]:
    """Our tasks, in `eval/tasks`; `score` takes any task of lm-eval besides."""
    return sorted(file.stem for file in TASKS_FOLDER.glob("*.yaml") if not file.stem.startswith("_"))


def score(
    checkpoint: Path | str,
    tasks: Sequence[str],
    out: Path | str | None = None,
    device: str | None = None,
    batch_size: int = 32,
    from_hub: bool = False,
    pattern: str = "dense",
    attention: AttentionConfig | None = None,
) -> dict[str, dict[str, float]]:
    """Scores by task and metric, under lm-eval's names, as in `{"embedded_code": {"word_perplexity,none": …}}`.

    Args:
        checkpoint: a Hugging Face model folder with its tokenizer, or with `from_hub` a model's name on the hub.
        out: where lm-eval's own output goes, one `<task>.json` per task.
        device: torch's name of it; None: the GPU where there is one.
        batch_size: sequences at a time; changes scores by rounding only.
        pattern: of the attention that a GPT-2 of ours is scored under, whatever it was saved with.
        attention: the pattern's window and stride; None: their defaults.

    Raises:
        UserError: a folder that is no whole checkpoint, an unknown task, an evaluation set that was not prepared.
    """
    if not from_hub:
        check_files(Path(checkpoint))
    if out is not None:
        check_writable(Path(out))  # now, not when all is scored
    if not from_hub and all(_is_local(task) for task in tasks):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # lm-eval looks every model up, a folder too
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    attended = (pattern, attention or AttentionConfig())
    raw = _evaluate(str(checkpoint), list(tasks), device or _default_device(), batch_size, *attended)
    asked_as = raw.pop("asked_as")
    if out is not None:
        for task in raw["results"]:
            asked = {name: members for name, members in asked_as.items() if task in members}
            source = {"asked_as": asked} if asked else {}
            source |= {"evaluation_set": evaluation_set(task), "checkpoint": _weights(Path(checkpoint))}
            source |= {"attention_pattern": pattern} if pattern != "dense" else {}
            write_sealed(Path(out) / f"{task}.json", select_task(raw, task) | source)
    return {
        task: {name: value for name, value in scores.items() if isinstance(value, float)}
        for task, scores in raw["results"].items()
    }


def check_tasks(tasks: Sequence[str]) -> None:
    """Check, before anything is scored, that it can be.

    Raises:
        UserError: a task that lm-eval does not know, one of the paper's sets that is neither here nor on the hub.
    """
    from replication.eval.tasks.utils import HUB, paper_set

    manager = task_manager(tasks)
    others = [task for task in tasks if task not in available_tasks()]
    with _one_line():
        for task in HUB.keys() & set(tasks):
            paper_set(task)
        for task in others:
            with contextlib.redirect_stderr(io.StringIO()):  # of the libraries that load it
                _load_task(manager, task)


def _load_task(manager: "TaskManager", task: str) -> None:
    """Raises UserError where another's task lacks its data, or is no task after all."""
    try:
        manager.load([task])
    except Exception as error:  # whatever lm-eval, `datasets` and the task's own code raise
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"task {task} cannot be loaded: {problem}") from None


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """A missing evaluation set ends lm-eval's own command (see tasks/utils.py); here it is a UserError."""
    try:
        yield
    except SystemExit as missing:
        raise UserError(str(missing).removeprefix("error: ")) from None


def _is_local(task: str) -> bool:
    """Whether a task needs no hub."""
    return task in available_tasks() and (not task.startswith("paper_") or _evaluation_file(task).is_file())


def evaluation_set(task: str) -> str | None:
    """sha256 of the rows that a task of ours reads, from a local file or the hub, and of all that a user's own task is;
    None: lm-eval's task.

    Scores on two sets do not compare.
    """
    if task not in available_tasks():
        manager = _index(with_defaults=False) if _own_folders() else None
        return digest_of_task(manager, task) if manager and task in manager.all_tasks else None
    from replication.eval.tasks import utils

    with _one_line():
        splits = (utils.paper_set if task.startswith("paper_") else utils.evaluation_set)(task)
    rows = {split: list(rows) for split, rows in splits.items()}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _weights(checkpoint: Path) -> str | None:
    """sha256 of a local model's weights; None: they are in several files, or on the hub."""
    file = checkpoint / "model.safetensors"
    return sha256(file) if file.is_file() else None


def _evaluation_file(task: str) -> Path:
    """As tasks/utils.py has it; importing that imports the hub's libraries, which read HF_HUB_OFFLINE then."""
    data = Path(os.environ.get("REPLICATION_DATA") or "data")
    return data / "eval" / f"{task}.jsonl"


def check_files(folder: Path) -> None:
    """Check that `folder` is a checkpoint.

    Raises:
        UserError: it lacks a model's configuration, or its weights as safetensors, which run no code.
    """
    weights = ("model.safetensors", "model.safetensors.index.json")
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in weights):
        raise UserError(
            f"checkpoint {folder} is not one; allowed: a Hugging Face folder with config.json and model.safetensors"
        )


def task_manager(tasks: Sequence[str]) -> "TaskManager":
    """lm-eval's index of ours and of one's own, and, as that takes ten seconds, of lm-eval's only where it must be.

    Raises:
        UserError: an unknown task, or a folder of one's own that is none.
    """
    manager = _index(with_defaults=False)
    known = list(manager.all_tasks)
    others = [task for task in tasks if task not in known]
    slips = [task for task in others if difflib.get_close_matches(task, known, n=1, cutoff=0.8)]
    if others and not slips:
        manager = _index(with_defaults=True)
    for task in others:
        if task not in manager.all_tasks:
            allowed = f"{', '.join(known)}, lm-eval's own tasks, and those of --include-path"
            raise UserError(f"task is {task!r}; {nearest(task, manager.all_tasks)}; allowed: {allowed}")
    return manager


def _index(with_defaults: bool) -> "TaskManager":
    from lm_eval.tasks import TaskManager

    folders = _own_folders()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include-path is {folder}, which is no folder; allowed: one with lm-eval tasks")
        for file in sorted(folder.glob("**/*.yaml")):
            _check_yaml(file)
    try:
        return TaskManager(include_path=[str(TASKS_FOLDER), *map(str, folders)], include_defaults=with_defaults)
    except Exception as error:  # of a task's file; they have no common class
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"--include-path {', '.join(map(str, folders))} cannot be read: {problem}") from None


def _own_folders() -> list[Path]:
    """Those of --include-path, in this process and in those that it starts."""
    return [Path(folder) for folder in os.environ.get("REPLICATION_TASKS", "").splitlines()]


def _check_yaml(file: Path) -> None:
    """Raises UserError where a task's file is no YAML; lm-eval passes over it without a word."""
    try:
        yaml.load(read_text(file), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--include-path has {file}, which is no YAML: {' '.join(str(error).split())}") from None


def _attend(loaded: "HFLM", pattern: str, attention: AttentionConfig) -> None:
    """Switch a GPT-2's attention to a pattern, as training does."""
    from replication.model.attention import IMPLEMENTATION, set_attention_pattern

    loaded.model.set_attn_implementation(IMPLEMENTATION)
    set_attention_pattern(loaded.model, pattern, attention)


def _evaluate(
    checkpoint: str, tasks: list[str], device: str, batch_size: int, pattern: str, attention: AttentionConfig
) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    manager = task_manager(tasks)
    model = _load(checkpoint, device, batch_size)
    if pattern != "dense":
        _attend(model, pattern, attention)
    try:
        with _one_line(), out_of_memory(), silence():  # lm-eval's warnings and progress bars, and what its git says
            raw = simple_evaluate(
                model,
                tasks=tasks,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
                batch_size=batch_size,
                device=device,
            )
    except UserError:
        raise
    except Exception as error:  # lm-eval's own checks, and what tasks' code raises
        raise UserError(
            f"{', '.join(tasks)} cannot be scored ({describe_error(error)}); "
            "allowed: tasks of which lm-eval can score this checkpoint"
        ) from None
    return raw | {"asked_as": group_by_request(manager, tasks, raw)}


def group_by_request(manager: "TaskManager", tasks: Sequence[str], raw: dict[str, Any]) -> dict[str, list[str]]:
    """Tag, or group without a score of its own -> the tasks that were scored for it."""
    names = [task for task in tasks if task not in raw["results"]]
    members = {name: manager.task_index[name].tags or raw["group_subtasks"].get(name, ()) for name in names}
    return {name: sorted(set(own) & raw["results"].keys()) for name, own in members.items()}


def _tokenizer(checkpoint: str) -> Any:
    """A checkpoint's, for lm-eval; None: one in another form, or on the hub, which lm-eval finds.

    Checkpoints of one type, by which transformers may read them in another way, with the same files share one:
    `tokenizers` never frees what it caches for one that is gone.
    """
    files = [file for file in (Path(checkpoint) / name for name in _TOKENIZER) if file.is_file()]
    if not files or files[0].name != _TOKENIZER[0]:
        return None
    model_type = str(read_json(Path(checkpoint) / "config.json").get("model_type"))
    key = (model_type, *(f"{file.name} {sha256(file)}" for file in files))
    if key not in _tokenizers:
        from transformers import AutoTokenizer

        _tokenizers[key] = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    return _tokenizers[key]


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(checkpoint: str, device: str, batch_size: int) -> "HFLM":
    """The model for lm-eval, once it is known to be whole.

    Raises:
        UserError: it cannot be loaded, its tensors are not those of its configuration, or its tokenizer is another
            model's.
    """
    from lm_eval.models.huggingface import HFLM

    try:
        with contextlib.redirect_stderr(io.StringIO()):
            problem = _problem(checkpoint)
            if problem is None:
                loaded = HFLM(checkpoint, tokenizer=_tokenizer(checkpoint), device=device, batch_size=batch_size)
                problem = _not_finite(loaded)
            if problem is None:
                return loaded
    except Exception as error:  # transformers' and its dependencies' failures have no common class
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    allowed = "a complete Hugging Face folder with its tokenizer, or a name that the hub serves"
    raise UserError(f"checkpoint {checkpoint} cannot be loaded: {problem}; allowed: {allowed}")


def _problem(checkpoint: str) -> str | None:
    """What is not whole, if anything.

    No weight is read, only the names and shapes of what is stored (transformers' meta device).
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    names, layers = read_tensor_names(Path(checkpoint)), config.get_text_config().num_hidden_layers
    if names is not None and layers > len(names):  # a million of them take a while, on any device
        return f"config.json asks for {layers} layers, and the weights are {len(names)} tensors"
    model_class = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM  # as lm-eval chooses
    form = {"device_map": "meta", "ignore_mismatched_sizes": True, "use_safetensors": True, "trust_remote_code": False}
    _, found = model_class.from_pretrained(checkpoint, output_loading_info=True, **form)
    for kind, what in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "not of config.json's model"),
        ("mismatched_keys", "of another shape"),
    ):
        tensors = sorted(
            name for key in found[kind] if not (name := key if isinstance(key, str) else key[0]).endswith(_OLD_BUFFERS)
        )
        if tensors:
            return f"{len(tensors)} tensors, such as {tensors[0]}, are {what}"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    return _beyond(tokenizer, config.get_text_config().vocab_size)


def _beyond(tokenizer: Any, rows: int) -> str | None:
    """What of a tokenizer is not of a model with so many rows in its embedding, if anything."""
    if not _fits(len(tokenizer), rows):
        return f"its tokenizer has {len(tokenizer)} entries, and its model {rows}"
    special = set(tokenizer.all_special_tokens)
    for word, number in tokenizer.get_vocab().items():
        if number >= rows + (MORE if word in special else 0):
            return f"its tokenizer's entry {word!r} is number {number}, and its model has those below {rows}"
    return None


def _not_finite(loaded: "HFLM") -> str | None:
    name = next((name for name, param in loaded.model.named_parameters() if not param.isfinite().all()), None)
    return f"{name} holds values that are not finite" if name else None


def _fits(entries: int, rows: int) -> bool:
    """May a model's embedding of `rows` rows be of a tokenizer with `entries`? (ours)

    It is padded, by less than a tenth or to a multiple of 128; or the tokenizer has a few special tokens more, as that
    of Gemma 3.
    """
    return 2 <= entries <= rows + MORE and rows < max(entries + 128, entries / 0.9)


def read_tensor_names(folder: Path) -> list[str] | None:
    """Names of the tensors in a folder's safetensors; None: it is no folder, but a name on the hub."""
    from safetensors import safe_open

    if not folder.is_dir():
        return None
    if (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", "pt") as weights:
            return list(weights.keys())
    return list(read_json(folder / "model.safetensors.index.json")["weight_map"])


def select_task(raw: dict[str, Any], task: str) -> dict[str, Any]:
    """lm-eval's output as plain values, without the other tasks' entries."""
    from lm_eval.utils import handle_non_serializable

    others = raw["results"].keys() - {task}
    own = {
        key: {name: entry for name, entry in value.items() if name not in others} if isinstance(value, dict) else value
        for key, value in raw.items()
    }
    text = json.dumps(own, default=handle_non_serializable)
    folders = [TASKS_FOLDER.parents[1], *(folder.parent for folder in _own_folders())]
    model = str(raw["config"].get("model") or "")
    folders += [Path(model).parent] if Path(model).is_absolute() else []
    for folder in folders:  # logs are shared: they name no folder of this machine
        text = text.replace(json.dumps(f"{folder}{os.sep}")[1:-1], "")
    return json.loads(text)
