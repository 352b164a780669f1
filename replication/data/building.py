"""Preparing a corpus: a stream of documents, tokenized on all cores, written shard by shard, resumed after the last.

What is held in memory is a batch of documents, and of a long one a piece at a time is tokenized, whatever the corpus's
size; nothing of its text is written again.
"""

import hashlib
import platform
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from replication.config.fields import DataConfig
from replication.data.corpus import SPLITS, Document, describe_few, no_documents, read_corpus, size_of_few
from replication.data.sources import ChangedError
from replication.data.staging import PROGRESS
from replication.data.tokenizer import END_OF_TEXT, entries_asked_for, make_tokenizer, save_tokenizer
from replication.data.tokens import KIND
from replication.system.errors import DamagedError, UserError
from replication.system.files import (
    SEAL,
    Json,
    check_sha256,
    explain_damage,
    parse_json,
    read_json,
    read_text,
    sha256,
    write_sealed,
)
from replication.system.signals import tell

_SEGMENT_TOKENS = 2**27  # of all splits, after which each split's shard ends: 256 MiB
_BATCH_CHARACTERS = 2**20  # of documents that are tokenized together
_TRAINED_CHARACTERS = 2**28  # of the training split, from its beginning, that a tokenizer of ours is trained on
_PIECE_CHARACTERS = 2**18  # of a document that are tokenized together, where it can be cut
_CUT = re.compile(r"(?<=\w)[ \n](?=\w)")  # before it a word ends and after it one begins, whatever is around


def build(config: DataConfig, fingerprint: str, folder: Path, check: Callable[[bool], None]) -> None:
    """Write shards, tokenizer and manifest into `folder`, after those of its shards that are whole already.

    Args:
        check: raises ChangedError where the text is not what it was; True: whatever the files' times say.

    Raises:
        UserError: whatever is wrong with the corpus or the tokenizer.
        ChangedError: the text was changed meanwhile; nothing is gone on with then.
    """
    size = size_of_few(config)
    if size is not None:
        tell(describe_few(config, size))
    progress = _progress(folder)
    tokenizer = _tokenizer(config, size, folder / "tokenizer", is_new=not progress["segments"])
    progress["tokenizer_files"] = _tokenizer_files(folder)
    try:
        write_shards(config, tokenizer, folder, progress, size, check)
        check(True)
    except ChangedError:
        (folder / PROGRESS).unlink(missing_ok=True)
        raise
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
        "tokenizer_files": _tokenizer_files(folder),
        "held_out_in_training": _count_held_out_in_training(folder, splits),
        "splits": splits,
        **({} if size is None else {"held_out": "by size"}),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("datasets", "numpy", "tokenizers")},
        },
    }
    write_sealed(folder / "manifest.json", manifest)


def _progress(folder: Path) -> Json:
    """How far somebody came in `folder` who died; where it is not as they left it, that is said and removed."""
    anew: Json = {"documents": 0, "segments": [], "tokenizer_files": {}}
    if not (folder / PROGRESS).exists():
        return anew
    try:
        if SEAL not in parse_json(folder / PROGRESS, read_text(folder / PROGRESS)):
            raise explain_damage(folder / PROGRESS, "it has no seal")
        progress = read_json(folder / PROGRESS)
        files = {f"tokenizer/{name}": digest for name, digest in progress["tokenizer_files"].items()}
        for number, segment in enumerate(progress["segments"]):
            for split, facts in segment.items():
                files |= {shard_name(split, number): facts["sha256"], _digests_name(split, number): facts["digests"]}
        for name, digest in files.items():
            check_sha256(folder / name, digest)
        return progress
    except (DamagedError, KeyError, TypeError, AttributeError) as error:
        problem = (
            error if isinstance(error, DamagedError) else explain_damage(folder / PROGRESS, "it is of another version")
        )
        tell(f"data: {problem}; what was prepared so far is prepared anew")
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    return anew


def write_shards(
    config: DataConfig,
    tokenizer: Tokenizer,
    folder: Path,
    progress: Json,
    size: int | None = None,
    check: Callable[[bool], None] = lambda _: None,
) -> None:
    """Tokenize the documents after those of `progress`, which is kept up to date, in the folder too."""
    documents = islice(read_corpus(config, size), progress["documents"], None)
    encoded = _encode_ahead(_batches(documents), tokenizer)
    end_of_text: Any = tokenizer.token_to_id(END_OF_TEXT)  # which every tokenizer of ours has
    while segment := _write_segment(encoded, end_of_text, folder, len(progress["segments"])):
        progress["segments"].append(segment)
        progress["documents"] += sum(facts["documents"] for facts in segment.values())
        check(False)
        write_sealed(folder / PROGRESS, progress)
        if sum(facts["tokens"] for facts in segment.values()) >= _SEGMENT_TOKENS:
            tell(f"data: {progress['documents']:,} documents are tokenized")


def shard_name(split: str, segment: int) -> str:
    return f"{split}-{segment}.bin" if segment else f"{split}.bin"


def _digests_name(split: str, segment: int) -> str:
    return f"{split}-{segment}.digests.npy"


def _tokenizer_files(folder: Path) -> dict[str, str]:
    """Name -> sha256."""
    return {file.name: sha256(file) for file in sorted((folder / "tokenizer").iterdir())}


def _tokenizer(config: DataConfig, size: int | None, folder: Path, is_new: bool) -> Tokenizer:
    """The corpus's, kept in `folder`."""
    if is_new:
        tokenizer = make_tokenizer(config, _beginning(read_corpus(config, size)))
        if tokenizer.get_vocab_size() > 2**16:
            raise UserError(
                f"data.tokenizer={config.tokenizer} has {tokenizer.get_vocab_size()} entries; "
                "allowed: at most 65536, as shards are uint16"
            )
        entries, asked_for = tokenizer.get_vocab_size(), entries_asked_for(config)
        if entries < asked_for:
            key = "vocab_size" if config.tokenizer == "bpe" else "tokenizer"
            tell(
                f"data: the tokenizer has {entries} entries of the {asked_for} that data.{key} asks for, as there is "
                f"no more to merge; models are made for {entries}"
            )
        save_tokenizer(tokenizer, folder)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # a document that spells a special token out does not contain it
    return tokenizer


def _beginning(documents: Iterable[Document]) -> Iterator[str]:
    """Texts of the training split, long ones in pieces, as many as a tokenizer is trained on."""
    characters = 0
    for document in documents:
        if document.split == "train":
            yield from _pieces(document.text)
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


def _encode_ahead(
    batches: Iterable[list[Document]], tokenizer: Tokenizer
) -> Iterator[list[tuple[Document, np.ndarray]]]:
    """The batches with their tokens. One is tokenized, on all cores, while the next is read."""
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future] = []
        for batch in batches:
            waiting.append(pool.submit(_encode, batch, tokenizer))
            if len(waiting) > 1:
                yield waiting.pop(0).result()
        for left in waiting:
            yield left.result()


def _encode(batch: list[Document], tokenizer: Tokenizer) -> list[tuple[Document, np.ndarray]]:
    """[tokens] of each document. A long one is tokenized piece by piece, as that takes a hundred bytes a character."""
    pieces = [[document._replace(text=piece) for piece in _pieces(document.text)] for document in batch]

    def encode() -> Iterator[np.ndarray]:
        for some in _batches(chain.from_iterable(pieces)):
            texts = [piece.text for piece in some]
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                yield np.array(encoding.ids, KIND)

    ids = encode()
    return [(document, np.concatenate(list(islice(ids, len(own))))) for document, own in zip(batch, pieces)]


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces whose tokens are together its own."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS and (cut := _CUT.search(text, start + _PIECE_CHARACTERS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _write_segment(
    encoded: Iterator[list[tuple[Document, np.ndarray]]], end_of_text: int, folder: Path, number: int
) -> dict[str, Json]:
    """A shard of each split that documents fell to, and what each holds; empty: there are no more documents."""
    files: dict[str, IO[bytes]] = {}
    hashes: dict[str, Any] = defaultdict(hashlib.sha256)
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    digests: dict[str, list[int]] = defaultdict(list)
    try:
        for batch in encoded:
            ids: dict[str, list[np.ndarray]] = defaultdict(list)
            for document, own in batch:
                ids[document.split] += [own, np.array([end_of_text], KIND)]
                facts[document.split] += Counter(documents=1, characters=len(document.text))
                digests[document.split].append(_digest(document.text))
            for split, rows in ids.items():
                written = np.concatenate(rows).tobytes()
                if split not in files:
                    files[split] = (folder / shard_name(split, number)).open("wb")
                files[split].write(written)
                hashes[split].update(written)
                facts[split]["tokens"] += len(written) // KIND.itemsize
            if sum(one["tokens"] for one in facts.values()) >= _SEGMENT_TOKENS:
                break
    finally:
        for file in files.values():
            file.close()
    sums = {}
    for split, row in digests.items():
        np.save(folder / _digests_name(split, number), np.array(row, np.uint64))
        sums[split] = sha256(folder / _digests_name(split, number))
    return {split: {**facts[split], "sha256": hashes[split].hexdigest(), "digests": sums[split]} for split in files}


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


def _count_held_out_in_training(folder: Path, splits: dict[str, Json]) -> dict[str, int]:
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
