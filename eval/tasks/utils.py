"""Where the tasks find their text; lm-eval loads this file by its path, so it imports nothing of the project."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results as process_results  # for the tasks
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer as wikitext_detokenizer  # too

Rows = list[dict[str, Any]]

# task -> data set on the hub, its configuration, its revision and its splits. Where a data set is a loading script,
# which `datasets` no longer runs, the revision is the hub's own conversion to parquet.
HUB = {
    "paper_lambada": ("EleutherAI/lambada_openai", "default", None, ("test",)),
    "paper_wikitext2": ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", None, ("test",)),
    "paper_wikitext103": ("EleutherAI/wikitext_document_level", "wikitext-103-raw-v1", None, ("test",)),
    "paper_ptb": ("ptb-text-only/ptb_text_only", "penn_treebank", "refs/convert/parquet", ("test",)),
    "paper_lm1b": ("billion-word-benchmark/lm1b", "plain_text", "refs/convert/parquet", ("test",)),
    **{
        f"paper_glue_{name}": ("nyu-mll/glue", name, None, ("train", "validation"))
        for name in ("cola", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
    },
    "paper_glue_mnli": ("nyu-mll/glue", "mnli", None, ("train", "validation_matched")),
}
TIMEOUT = 5.0  # seconds, for the hub's first answer


def evaluation_file(name: str) -> Path:
    """`$REPLICATION_DATA/eval/<name>.jsonl`, by default under `data/` here, as of the commands."""
    folder = Path(os.environ.get("REPLICATION_DATA") or "data")
    return folder / "eval" / f"{name}.jsonl"


def evaluation_set(name: str, **_: Any) -> dict[str, datasets.Dataset]:
    """{"test": rows {"text"}} of `evaluation_file(name)`.

    Raises:
        SystemExit: with one line, where the file is missing, as lm-eval's own command shows it.
    """
    file = evaluation_file(name)
    if not file.is_file():
        raise SystemExit(
            f"error: {name} has no evaluation set {file}; run `python -m replication data` first, "
            "or set REPLICATION_DATA to its data folder"
        )
    return {"test": datasets.Dataset.from_list(read_rows(file))}


def paper_set(name: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Split -> rows of one of the paper's tasks: of `evaluation_file(name)` where there is one, else of the hub.

    Raises:
        SystemExit: with one line, where neither can be had.
    """
    file = evaluation_file(name)
    rows = read_rows(file) if file.is_file() else list(_hub_rows(name))
    splits = {row.pop("split", "test"): [] for row in map(dict, rows)}
    for row in rows:
        splits[row.pop("split", "test")].append(row)
    return {split: datasets.Dataset.from_list(part) for split, part in splits.items()}


def read_rows(file: Path) -> Rows:
    with file.open(encoding="utf-8") as lines:
        return list(map(json.loads, lines))


def articles(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """{"page"} of each article of a WikiText file.

    It is cut before its first-level heading, as EleutherAI/wikitext_document_level cuts it.
    """
    page: list[str] = []
    for line in lines:
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "".join(page).strip():
                yield {"page": "\n".join(page)}
            page = []
        page.append(line)
    yield {"page": "\n".join(page)}


def joined(sentences: Iterable[str]) -> Rows:
    """One row {"page"}: Penn Treebank's sentences follow each other in its articles (ours: scored as one text)."""
    return [{"page": "\n".join(sentence.strip() for sentence in sentences)}]


def apart(sentences: Iterable[str]) -> Rows:
    """A row {"page"} for each sentence: the One Billion Word benchmark has shuffled them."""
    return [{"page": sentence.strip()} for sentence in sentences]


def ptb_detokenizer(doc: dict[str, str]) -> str:
    """Penn Treebank's text with its spaces taken out, after Megatron-LM's.

    Every N becomes 1, also beside another N or a line's end, and keeps its spaces (ours).
    """
    text = doc["page"].replace(" '", "'").replace(" n't", "n't").replace(" \n", "\n").replace("\n ", "\n")
    return re.sub(r"(?<!\S)N(?!\S)", "1", text).replace("$ 1", "$1").replace("# 1", "#1")


def lm1b_detokenizer(doc: dict[str, str]) -> str:
    """A One Billion Word sentence with its spaces taken out.

    In the manner of the discrete-diffusion literature (SEDD); the rules are ours.
    """
    text = re.sub(r" ('\w+|n't)", r"\1", doc["page"])
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    return re.sub(r'" ([^"]*?) ?"', r'"\1"', text)


def _hub_rows(name: str) -> Iterator[dict[str, Any]]:
    path, config, revision, splits = HUB[name]
    _go_offline_if_unreachable()
    try:
        loaded = {split: datasets.load_dataset(path, config, revision=revision, split=split) for split in splits}
    except Exception as error:  # the hub's failures have no common class
        reason = str(error).strip().partition("\n")[0]
        raise SystemExit(
            f"error: {name}: the hub's {path} ({config}) cannot be loaded: {reason}; give its file instead: "
            f"python -m replication data --eval-file {name}=FILE (eval/README.md names it)"
        ) from None
    if name in ("paper_ptb", "paper_lm1b"):
        (split,) = loaded.values()
        yield from joined(split["sentence"]) if name == "paper_ptb" else apart(split["text"])
    else:
        for split, rows in loaded.items():
            for row in rows:
                row.pop("idx", None)  # GLUE's number of the row, which its files do not have
                yield row | ({"split": split.removesuffix("_matched")} if len(splits) > 1 else {})


def _go_offline_if_unreachable() -> None:
    """The hub's libraries retry for half a minute before they say so; offline, what is cached still loads."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # of whichever HTTP library is in use, and offline mode itself
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def compare_pair(doc: dict[str, str], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """BLiMP's: 1 where the good sentence is the likelier, a half where both are as likely (ours); with its groups."""
    (good, _), (bad, _) = results
    correct = 1.0 if good > bad else 0.5 if good == bad else 0.0
    groups = {"by_paradigm": doc["UID"], "by_term": doc["linguistics_term"], "by_field": doc["field"]}
    return {"acc": correct} | {name: (group, correct) for name, group in groups.items()}


def mean_by_group(items: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Group -> mean."""
    groups: dict[str, list[float]] = {}
    for group, value in items:
        groups.setdefault(group, []).append(value)
    return {group: sum(values) / len(values) for group, values in sorted(groups.items())}


def last_word(doc: dict[str, str], results: list[tuple[float, bool]]) -> dict[str, Any]:
    """The last word's metrics: lambada_openai's, and bits per byte (ours).

    The latter tell apart models that guess no word.
    """
    ((loglikelihood, is_greedy),) = results
    num_bytes = len(f" {doc['text'].split(' ')[-1]}".encode())
    return {"perplexity": loglikelihood, "acc": int(is_greedy), "bits_per_byte": (loglikelihood, num_bytes)}
