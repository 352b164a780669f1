"""Token shards: a corpus prepared once, read by every run."""

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from replication.config.fields import DataConfig
from replication.data.sources import Sources
from replication.data.staging import staging
from replication.data.tokens import KIND, Tokens
from replication.system.errors import DamagedError, UserError
from replication.system.files import Json, check_sha256, read_json, write_json

_FORMAT = 4  # of the shards, and of how texts are read


class PreparedData:
    """A prepared corpus: `{train,validation,test}.bin` (a large one's go on as `train-1.bin`, …), `tokenizer/` and
    `manifest.json` in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Source, versions, vocabulary; the sha256 of the tokenizer's files; the held-out documents that are training
        documents too; per split: documents, characters, tokens, sha256, and each shard's file, tokens and sha256."""
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

    def tokens(self, split: str) -> Tokens:
        """Every document is followed by `<|endoftext|>`."""
        shards = self.manifest["splits"][split]["shards"]
        return Tokens([(self.folder / shard["file"], shard["tokens"]) for shard in shards])

    def parts(self, validation_part: str) -> tuple[Tokens, Tokens]:
        """What a run trains on and what it validates on.

        Args:
            validation_part: `validation`, the split; or `tuning` (ours): as many tokens from the end of the training
                split, which is then trained on without them. So what is tuned never sees what tables compare.
        """
        train, validation = self.tokens("train"), self.tokens("validation")
        if validation_part == "validation":
            return train, validation
        size = min(len(validation), len(train) // 2)
        return train.between(0, len(train) - size), train.between(len(train) - size, len(train))

    def is_complete(self) -> bool:
        """Whether everything that the manifest lists is there, in full length.

        Raises:
            DamagedError: the manifest is there and is not as it was written.
        """
        if not (self.folder / "manifest.json").exists():
            return False
        files = [self.folder / name for name in self._sums()]
        lengths = {shard["file"]: KIND.itemsize * shard["tokens"] for shard in self._shards()}
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
        shards = {shard["file"]: shard["sha256"] for shard in self._shards()}
        return shards | {f"tokenizer/{name}": digest for name, digest in self.manifest["tokenizer_files"].items()}

    def _shards(self) -> list[Json]:
        return [shard for facts in self.manifest["splits"].values() for shard in facts["shards"]]


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

    Any number of processes may prepare the same corpus at once: each works apart, and the first to finish stays. After
    one that was killed the next goes on, from its last whole shard.

    Raises:
        UserError: whatever is wrong with the corpus or the tokenizer, or a file that changed while it was read;
            `data_dir` is then as it was.
        DamagedError: a prepared file is not as it was written.
    """
    data_dir = Path(data_dir)
    sources = Sources(data_dir)
    fingerprint = _fingerprint(config, sources)
    prepared = PreparedData(data_dir / fingerprint)
    try:
        if not prepared.is_complete():
            with staging(prepared.folder, PreparedData(prepared.folder).is_complete) as folder:
                # `datasets` takes a second to import, and a prepared corpus does without
                from replication.data.building import build

                build(config, fingerprint, folder, sources.check_unchanged)
        prepared = PreparedData(prepared.folder)
        prepared.verify()
        sources.keep()
    except DamagedError as error:
        raise DamagedError(f"{error}; remove {prepared.folder} to have it prepared anew") from None
    return prepared


def _fingerprint(config: DataConfig, sources: Sources) -> str:
    facts = {
        "format": _FORMAT,
        "config": asdict(config),
        "files": [sources.content(file) for file in (*config.files, *config.validation_files)],
    }
    if config.source == "stdlib":
        facts["python"] = platform.python_version()
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
