"""From a source of text to train, validation and test documents."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from replication.data.readers import END_OF_TEXT, ENDINGS, READERS_VERSION, documents, is_blank
from replication.data.stdlib import stdlib_documents
from replication.errors import UserError
from replication.fields import DataConfig
from replication.files import sha256

SPLITS = ("train", "validation", "test")


def load_corpus(config: DataConfig) -> DatasetDict:
    """The corpus as splits train, validation, test with columns `path` (a document's identity) and `text`.

    A document's split is a hash of its identity: its path in the standard library, its file's name and its index
    there, or its index in the hub's split. Blank documents are none, and have no index.

    Raises:
        UserError: a file that is missing, empty, not UTF-8, of an unsupported ending or without the text column;
            an unreachable hub; a split without documents; held-out documents that are all training documents.
    """
    held_out = config.validation_fraction, config.test_fraction
    if config.source == "stdlib":
        paths, texts = zip(*stdlib_documents())
        corpus = _split(Dataset.from_dict({"path": paths, "text": texts}), *held_out)
    elif config.source == "hub":
        corpus = _split(_load_hub(config), *held_out)
    elif config.validation_files:
        _check_apart(config)
        halves = _split(_load_files("data.validation_files", config.validation_files, config.text_column), 0.5, 0.5)
        corpus = {**halves, "train": _load_files("data.files", config.files, config.text_column)}
    else:
        corpus = _split(_load_files("data.files", config.files, config.text_column), *held_out)
    for split in SPLITS:
        if not len(corpus[split]):
            raise UserError(_no_documents(config, split, {name: len(part) for name, part in corpus.items()}))
    return DatasetDict({split: corpus[split] for split in SPLITS})


def held_out_in_training(corpus: DatasetDict) -> dict[str, int]:
    """How many documents of the validation and test splits are training documents too, word for word.

    Raises:
        UserError: all of a split's are, so that it holds nothing out.
    """
    held_out = {split: [_digest(text) for text in corpus[split]["text"]] for split in SPLITS[1:]}
    wanted = set().union(*held_out.values())
    seen = {digest for text in corpus["train"]["text"] if (digest := _digest(text)) in wanted}
    counts = {split: sum(digest in seen for digest in digests) for split, digests in held_out.items()}
    for split, count in counts.items():
        if count == len(held_out[split]):
            raise UserError(
                f"data: every document of the {split} split ({count}) is a training document too; "
                "allowed: held-out text that is not trained on"
            )
    return counts


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.strip().encode()).digest()[:16]


def _check_apart(config: DataConfig) -> None:
    """Raises UserError where a file is given for training and for validation, under whichever name."""
    for held_out in config.validation_files:
        for file in config.files:
            if _is_same(Path(file), Path(held_out)):
                raise UserError(
                    f"data.validation_files: {held_out} is the training file {file}; "
                    "allowed: files that are not trained on"
                )


def _is_same(a: Path, b: Path) -> bool:
    if not (a.is_file() and b.is_file()):  # what is wrong with them is said when they are read
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size > 0 and sha256(a) == sha256(b))


def split_of(identity: str, validation_fraction: float, test_fraction: float) -> str:
    """The side that a document is on, from the sha256 of its identity alone (ours)."""
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    if share < test_fraction:
        return "test"
    return "validation" if share < test_fraction + validation_fraction else "train"


def _split(documents: Dataset, validation_fraction: float, test_fraction: float) -> dict[str, Dataset]:
    rows = {split: [] for split in SPLITS}
    for index, path in enumerate(documents["path"]):
        rows[split_of(path, validation_fraction, test_fraction)].append(index)
    return {split: documents.select(indices) for split, indices in rows.items()}


def _no_documents(config: DataConfig, split: str, counts: dict[str, int]) -> str:
    key = "data.validation_files" if config.validation_files and split != "train" else f"data.{config.source}"
    return (
        f"{key} leaves the {split} split without documents ({sum(counts.values())} in all); allowed: more documents "
        f"(in a text file, a line {END_OF_TEXT} ends each), or other data.validation_fraction and data.test_fraction"
    )


def _load_hub(config: DataConfig) -> Dataset:
    name = config.hub_name
    try:
        rows = load_dataset(name, config.hub_config, split=config.hub_split)
    except Exception as error:  # the hub's failures have no common class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.hub_name={name} (data.hub_config={config.hub_config}, data.hub_split={config.hub_split}) "
            f"cannot be loaded: {reason}; allowed: a data set that the hub serves, or local files with "
            f"data.source=files data.files=[…] ({', '.join(ENDINGS)})"
        ) from None
    column = config.text_column
    if column not in rows.column_names:
        raise UserError(
            f"data.hub_name={name} has no column data.text_column={column}; allowed: {', '.join(rows.column_names)}"
        )
    kind = getattr(rows.features[column], "dtype", "structures")
    if kind not in ("string", "large_string") or rows.data.column(column).null_count:
        raise UserError(
            f"data.hub_name={name}: data.text_column={column} holds {kind} or nulls; allowed: a string in each row"
        )
    texts = (
        rows.select_columns([column]).rename_column(column, "text")
        if column != "text"
        else rows.select_columns(["text"])
    )
    return _with_paths(texts.filter(lambda text: not is_blank(text), input_columns="text"), name)


def _load_files(key: str, files: tuple[str, ...], column: str) -> Dataset:
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong with a file, our one line says
    return concatenate_datasets([_load_file(f"{key}: {file}", Path(file), column) for file in files])


def _load_file(what: str, file: Path, column: str) -> Dataset:
    if not file.is_file():
        raise UserError(f"{what} does not exist or is not a file; allowed: existing files")
    if not file.name.endswith(ENDINGS):
        raise UserError(f"{what} has an unsupported ending; allowed: {', '.join(ENDINGS)}")
    file, stat = file.resolve(), file.stat()
    # `datasets` keeps one cache for all projects, by these arguments: they tell a file from every other, and from
    # itself once it changed
    version = (READERS_VERSION, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino)
    arguments = {"file": str(file), "column": column, "version": version}
    try:
        texts = Dataset.from_generator(
            _rows, datasets.Features({"text": datasets.Value("string")}), gen_kwargs=arguments
        )
    except DatasetGenerationError as error:
        raise UserError(
            f"{what} {error.__cause__}; allowed: {', '.join(ENDINGS)} in UTF-8, with a string in each row"
        ) from None
    except ValueError:  # `datasets` has no empty data set
        raise UserError(f"{what} is empty; allowed: files with text") from None
    return _with_paths(texts, file.name)


def _rows(file: str, column: str, version: tuple[int, ...]) -> Iterator[dict[str, str]]:
    for text in documents(Path(file), column):
        yield {"text": text}


def _with_paths(texts: Dataset, name: str) -> Dataset:
    """Beside the texts the documents' identities; no text is copied."""
    return texts.add_column("path", [f"{name}:{index}" for index in range(len(texts))])
