"""Preparing a corpus: a stream of documents, tokenized on all cores, written shard by shard, resumed after the last.

What is held in memory is a batch of documents, whatever the corpus's size; nothing of its text is written again.
"""

import hashlib
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from replication.data.corpus import SPLITS, Document, no_documents, read_corpus
from replication.data.staging import PROGRESS
from replication.data.tokenizer import END_OF_TEXT, make_tokenizer, save_tokenizer
from replication.data.tokens import KIND
from replication.errors import UserError
from replication.fields import DataConfig
from replication.files import Json, read_json, sha256, write_json, write_sealed
from replication.interrupts import tell

_SEGMENT_TOKENS = 2**27  # of all splits, after which each split's shard ends: 256 MiB
_BATCH_CHARACTERS = 2**20  # of documents that are tokenized together
_TRAINED_CHARACTERS = 2**28  # of the training split, from its beginning, that a tokenizer of ours is trained on


def build(config: DataConfig, fingerprint: str, folder: Path) -> None:
    """Write shards, tokenizer and manifest into `folder`, after those of its shards that are whole already.

    Raises:
        UserError: whatever is wrong with the corpus or the tokenizer.
    """
    progress = read_json(folder / PROGRESS) if (folder / PROGRESS).exists() else {"documents": 0, "segments": []}
    tokenizer = _tokenizer(config, folder / "tokenizer", is_new=not progress["segments"])
    write_shards(config, tokenizer, folder, progress)
    splits = {split: _facts(split, progress["segments"]) for split in SPLITS}
    (folder / PROGRESS).unlink(missing_ok=True)
    for split in SPLITS:
        if not splits[split]["documents"]:
            raise UserError(no_documents(config, split, {name: facts["documents"] for name, facts in splits.items()}))
    manifest = {
        "fingerprint": fingerprint,
        "source": config.source,
        "config": asdict(config),
        "vocab_size": tokenizer.get_vocab_size(),
        "end_of_text_id": tokenizer.token_to_id(END_OF_TEXT),
        "tokenizer_files": {file.name: sha256(file) for file in sorted((folder / "tokenizer").iterdir())},
        "held_out_in_training": _held_out_in_training(folder, splits),
        "splits": splits,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("datasets", "numpy", "tokenizers")},
        },
    }
    write_sealed(folder / "manifest.json", manifest)


def write_shards(config: DataConfig, tokenizer: Tokenizer, folder: Path, progress: Json) -> None:
    """Tokenize the documents after those of `progress`, which is kept up to date, in the folder too."""
    documents = islice(read_corpus(config), progress["documents"], None)
    encoded = _encoded(_batches(documents), tokenizer)
    while segment := _write_segment(encoded, tokenizer.token_to_id(END_OF_TEXT), folder, len(progress["segments"])):
        progress["segments"].append(segment)
        progress["documents"] += sum(facts["documents"] for facts in segment.values())
        write_json(folder / PROGRESS, progress)
        if sum(facts["tokens"] for facts in segment.values()) >= _SEGMENT_TOKENS:
            tell(f"data: {progress['documents']:,} documents are tokenized")


def shard_name(split: str, segment: int) -> str:
    return f"{split}-{segment}.bin" if segment else f"{split}.bin"


def _tokenizer(config: DataConfig, folder: Path, is_new: bool) -> Tokenizer:
    """The corpus's, kept in `folder`."""
    if is_new:
        tokenizer = make_tokenizer(config, _beginning(read_corpus(config)))
        if tokenizer.get_vocab_size() > 2**16:
            raise UserError(
                f"data.tokenizer={config.tokenizer} has {tokenizer.get_vocab_size()} entries; "
                "allowed: at most 65536, as shards are uint16"
            )
        save_tokenizer(tokenizer, folder)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a document that spells a special token out does not contain it
    return tokenizer


def _beginning(documents: Iterable[Document]) -> Iterator[str]:
    """Texts of the training split, as many as a tokenizer is trained on."""
    characters = 0
    for document in documents:
        if document.split == "train":
            yield document.text
            characters += len(document.text)
            if characters >= _TRAINED_CHARACTERS:
                return


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(batches: Iterable[list[Document]], tokenizer: Tokenizer) -> Iterator[list[tuple[Document, list[int]]]]:
    """The batches with their tokens. One is tokenized, on all cores, while the next is read."""

    def encode(batch: list[Document]) -> list[Any]:
        return tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)

    with ThreadPoolExecutor(1) as pool:
        waiting: list[Any] = []
        for batch in batches:
            waiting.append((batch, pool.submit(encode, batch)))
            if len(waiting) > 1:
                yield _tokens(*waiting.pop(0))
        for left in waiting:
            yield _tokens(*left)


def _tokens(batch: list[Document], encodings: Any) -> list[tuple[Document, list[int]]]:
    return [(document, encoding.ids) for document, encoding in zip(batch, encodings.result())]


def _write_segment(
    encoded: Iterator[list[tuple[Document, list[int]]]], end_of_text: int, folder: Path, number: int
) -> dict[str, Json]:
    """A shard of each split that documents fell to, and what each holds; empty: there are no more documents."""
    files, hashes = {}, defaultdict(hashlib.sha256)
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    digests: dict[str, list[int]] = defaultdict(list)
    try:
        for batch in encoded:
            ids: dict[str, list[int]] = defaultdict(list)
            for document, own in batch:
                ids[document.split] += [*own, end_of_text]
                facts[document.split] += Counter(documents=1, characters=len(document.text))
                digests[document.split].append(_digest(document.text))
            for split, row in ids.items():
                written = np.array(row, KIND).tobytes()
                if split not in files:
                    files[split] = (folder / shard_name(split, number)).open("wb")
                files[split].write(written)
                hashes[split].update(written)
                facts[split]["tokens"] += len(row)
            if sum(one["tokens"] for one in facts.values()) >= _SEGMENT_TOKENS:
                break
    finally:
        for file in files.values():
            file.close()
    for split, row in digests.items():
        np.save(folder / f"{split}-{number}.digests.npy", np.array(row, np.uint64))
    return {split: {**facts[split], "sha256": hashes[split].hexdigest()} for split in files}


def _digest(text: str) -> int:
    """64 bits, by which texts are told apart."""
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def _facts(split: str, segments: list[dict[str, Json]]) -> Json:
    """Of a split as a whole: its sha256 is that of its shard, or of its shards' one after another."""
    own = {number: segment[split] for number, segment in enumerate(segments) if split in segment}
    shards = [
        {"file": shard_name(split, number), "tokens": facts["tokens"], "sha256": facts["sha256"]}
        for number, facts in own.items()
    ]
    digests = [shard["sha256"] for shard in shards]
    sums = {key: sum(facts[key] for facts in own.values()) for key in ("documents", "characters", "tokens")}
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {**sums, "sha256": whole, "shards": shards}


def _held_out_in_training(folder: Path, splits: dict[str, Json]) -> dict[str, int]:
    """How many documents of the validation and test splits are training documents too, word for word; said where
    there are.

    Raises:
        UserError: all of a split's are, so that it holds nothing out.
    """
    found = {split: sorted(folder.glob(f"{split}-*.digests.npy")) for split in SPLITS}
    held_out = {split: np.concatenate([np.load(file) for file in found[split]]) for split in SPLITS[1:]}
    repeated = {split: np.zeros(len(own), bool) for split, own in held_out.items()}
    for file in found["train"]:
        trained = np.load(file)
        for split, own in held_out.items():
            repeated[split] |= np.isin(own, trained)
    for file in [file for files in found.values() for file in files]:
        file.unlink()
    counts = {split: int(own.sum()) for split, own in repeated.items()}
    for split, count in counts.items():
        if count == splits[split]["documents"]:
            raise UserError(
                f"data: every document of the {split} split ({count}) is a training document too; "
                "allowed: held-out text that is not trained on"
            )
        if count:
            tell(
                f"data: {count} of {splits[split]['documents']} {split} documents are training documents too, "
                "word for word"
            )
    return counts
