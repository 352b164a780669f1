"""Token shards: a corpus prepared once, memory-mapped by every run."""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replication.data.tokenizer import END_OF_TEXT, make_tokenizer, save_tokenizer
from replication.errors import DamagedError, UserError
from replication.fields import DataConfig
from replication.files import check_sha256, read_json, sha256, write_json, write_sealed, writing

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer

_FORMAT = 2
_BATCH_DOCUMENTS = 32  # books, too: a token takes some 100 bytes on its way


class PreparedData:
    """A prepared corpus: `{train,validation,test}.bin`, `tokenizer/` and `manifest.json` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Source, versions, vocabulary; per split: documents, characters, tokens and the shard's sha256; the sha256 of
        the tokenizer's files; and the held-out documents that are training documents too."""
        return read_json(self.folder / "manifest.json")

    @property
    def tokenizer_folder(self) -> Path:
        """A Hugging Face tokenizer folder."""
        return self.folder / "tokenizer"

    @property
    def shards(self) -> dict[str, str]:
        """sha256 of what a run trains and validates on: by it the run knows its text."""
        return {split: self.manifest["splits"][split]["sha256"] for split in ("train", "validation")}

    @property
    def vocab_size(self) -> int:
        """Entries of the tokenizer, before the model pads them."""
        return self.manifest["vocab_size"]

    def tokens(self, split: str) -> np.memmap:
        """[tokens] uint16, read-only; every document is followed by `<|endoftext|>`."""
        return np.memmap(self.folder / f"{split}.bin", dtype=np.uint16, mode="r")

    def parts(self, validation_part: str) -> tuple[np.ndarray, np.ndarray]:
        """What a run trains on and what it validates on, each [tokens] uint16.

        Args:
            validation_part: `validation`, the split; or `tuning` (ours): as many tokens from the end of the training
                split, which is then trained on without them. So what is tuned never sees what tables compare.
        """
        train, validation = self.tokens("train"), self.tokens("validation")
        if validation_part == "validation":
            return train, validation
        size = min(len(validation), len(train) // 2)
        return train[:-size], train[-size:]

    def is_complete(self) -> bool:
        """Whether everything that the manifest lists is there, in full length.

        Raises:
            DamagedError: the manifest is there and is not as it was written.
        """
        if not (self.folder / "manifest.json").exists():
            return False
        files = [self.folder / name for name in self._sums()]
        lengths = {f"{split}.bin": 2 * facts["tokens"] for split, facts in self.manifest["splits"].items()}
        return all(
            file.is_file() and file.stat().st_size == lengths.get(file.name, file.stat().st_size) for file in files
        )

    def verify(self) -> None:
        """Compare every file with the sha256 in the manifest; a version of a file that was compared before is trusted.

        Raises:
            DamagedError: a file differs.
        """
        record = self.folder / "verified.json"
        versions = {name: _version(self.folder / name) for name in self._sums()}
        if _read_record(record) == versions:
            return
        for name, expected in self._sums().items():
            check_sha256(self.folder / name, expected)
        with suppress(UserError):  # where the folder is read-only, each run compares
            write_json(record, versions)

    def _sums(self) -> dict[str, str]:
        shards = {f"{split}.bin": facts["sha256"] for split, facts in self.manifest["splits"].items()}
        return shards | {f"tokenizer/{name}": digest for name, digest in self.manifest["tokenizer_files"].items()}


def _version(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_record(file: Path) -> Any:
    try:
        return read_json(file)
    except DamagedError:  # or not there
        return None


def prepare(config: DataConfig, data_dir: Path | str) -> PreparedData:
    """The tokenized corpus under `data_dir`; made when it is not there, which takes seconds to hours by size.

    Any number of processes may prepare the same corpus at once: each works apart, and the first to finish stays.

    Raises:
        UserError: whatever is wrong with the corpus or the tokenizer; `data_dir` is then as it was.
        DamagedError: a prepared file is not as it was written.
    """
    data_dir = Path(data_dir)
    fingerprint = _fingerprint(config)
    prepared = PreparedData(data_dir / fingerprint)
    try:
        if not prepared.is_complete():
            with _staging(data_dir, prepared) as staging:
                _build(config, fingerprint, staging)
        prepared = PreparedData(prepared.folder)
        prepared.verify()
    except DamagedError as error:
        raise DamagedError(f"{error}; remove {prepared.folder} to have it prepared anew") from None
    return prepared


def _fingerprint(config: DataConfig) -> str:
    facts = {
        "format": _FORMAT,
        "config": asdict(config),
        "files": [_file_version(file) for file in (*config.files, *config.validation_files)],
    }
    if config.source == "stdlib":
        facts["python"] = platform.python_version()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _file_version(file: str) -> tuple[str, int, int] | None:
    try:
        stat = Path(file).stat()
    except OSError:  # the corpus says what is wrong with the file, when it reads it
        return None
    return str(Path(file).resolve()), stat.st_size, stat.st_mtime_ns


@contextmanager
def _staging(data_dir: Path, prepared: PreparedData) -> Iterator[Path]:
    """A folder beside `prepared` that takes its place at the end, unless another process was first."""
    existed = data_dir.exists()
    with writing(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{prepared.folder.name}-", dir=data_dir))
    try:
        yield staging
        staging.chmod(0o755)
        try:
            staging.replace(prepared.folder)
        except OSError:
            if not PreparedData(prepared.folder).is_complete():
                shutil.rmtree(prepared.folder, ignore_errors=True)
                staging.replace(prepared.folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not existed and not any(data_dir.iterdir()):
            data_dir.rmdir()


def _build(config: DataConfig, fingerprint: str, folder: Path) -> None:
    # `datasets` takes a second to import, and a prepared corpus does without
    from replication.data.corpus import held_out_in_training, load_corpus

    corpus = load_corpus(config)
    repeated = held_out_in_training(corpus)
    for split, count in repeated.items():
        if count:
            print(
                f"data: {count} of {len(corpus[split])} {split} documents are training documents too, word for word",
                file=sys.stderr,
            )
    tokenizer = make_tokenizer(
        config, (text for batch in corpus["train"].iter(_BATCH_DOCUMENTS) for text in batch["text"])
    )
    size = tokenizer.get_vocab_size()
    if size > 2**16:
        raise UserError(
            f"data.tokenizer={config.tokenizer} has {size} entries; allowed: at most 65536, as shards are uint16"
        )
    save_tokenizer(tokenizer, folder / "tokenizer")
    manifest = {
        "fingerprint": fingerprint,
        "source": config.source,
        "config": asdict(config),
        "vocab_size": size,
        "end_of_text_id": tokenizer.token_to_id(END_OF_TEXT),
        "tokenizer_files": {file.name: sha256(file) for file in sorted((folder / "tokenizer").iterdir())},
        "held_out_in_training": repeated,
        "splits": {
            split: _write_shard(documents, tokenizer, folder / f"{split}.bin") for split, documents in corpus.items()
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("datasets", "numpy", "tokenizers")},
        },
    }
    write_sealed(folder / "manifest.json", manifest)


def _write_shard(documents: "Dataset", tokenizer: "Tokenizer", file: Path) -> dict[str, Any]:
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    tokenizer.encode_special_tokens = True  # a document that spells a special token out does not contain it
    characters = tokens = 0
    digest = hashlib.sha256()
    with file.open("wb") as shard:
        for batch in documents.iter(_BATCH_DOCUMENTS):
            encodings = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
            ids = np.concatenate([[*encoding.ids, end_of_text] for encoding in encodings]).astype(np.uint16)
            shard.write(ids.tobytes())
            digest.update(ids.tobytes())
            characters += sum(map(len, batch["text"]))
            tokens += len(ids)
    return {"documents": len(documents), "characters": characters, "tokens": tokens, "sha256": digest.hexdigest()}
