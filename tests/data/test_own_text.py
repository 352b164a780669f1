"""Text of one's own: few documents, long ones, files that change or never end, and what is prepared by halves."""

import dataclasses
import gzip
import json
import os

import numpy as np
import pytest

from replication.config.fields import DataConfig
from replication.config.run_config import RunConfig
from replication.data import building, load_tokenizer, prepare, readers
from replication.data.corpus import read_corpus, remarks, size_of_few
from replication.data.staging import PROGRESS
from replication.model.gpt2 import matrix_shapes
from replication.system.errors import UserError

LINE = "It was a dark and stormy night, the {}th of them, and the rain fell in torrents.\n"


def config_of(*files, **others):
    options = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300}
    return DataConfig(source="files", files=tuple(map(str, files)), **options | others)


def written(file, documents):
    text = "<|endoftext|>\n".join(documents)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def splits_of(config, size):
    found = {}
    for document in read_corpus(config, size):
        found.setdefault(document.split, []).append(document.text)
    return found


# ---- few documents


def test_one_document_is_cut_by_size_where_the_shares_say(tmp_path):
    """Ten characters at 0.2 and 0.3: five, two and three of them."""
    file = written(tmp_path / "one.txt", ["abcdefghij"])
    config = config_of(file, test_fraction=0.3)
    assert size_of_few(config) == 10
    assert splits_of(config, 10) == {"train": ["abcde"], "validation": ["fg"], "test": ["hij"]}


def test_where_a_split_ends_within_a_document_that_is_cut_in_two(tmp_path):
    config = config_of(written(tmp_path / "few.txt", ["abcd\n", "efgh\n", "ijkl\n", "mnopq"]))
    expected = {"train": ["abcd\n", "efgh\n", "ij"], "validation": ["kl\n", "m"], "test": ["nopq"]}
    assert size_of_few(config) == 20 and splits_of(config, 20) == expected


@pytest.mark.parametrize("name", ["corpus.txt.gz", "mybooks.txt.gz"])
def test_the_name_of_a_file_decides_nothing_where_documents_are_few(tmp_path, name):
    """By hash the first has no validation document, and the second has one."""
    file = written(tmp_path / name, [LINE.format(n) * 40 for n in range(13)])
    config = config_of(file, validation_fraction=0.05, test_fraction=0.05)
    found = splits_of(config, size_of_few(config))
    assert {split: len(texts) for split, texts in found.items()} == {"train": 12, "validation": 2, "test": 1}
    assert [remarks(config)[0].partition(":")[0]] == ["data"]


def test_enough_documents_are_divided_by_hash_as_ever(tmp_path):
    config = config_of(written(tmp_path / "book.txt", [LINE.format(n) for n in range(60)]))
    assert size_of_few(config) is None and remarks(config) == []
    assert "held_out" not in prepare(config, tmp_path / "data").manifest


def test_one_held_out_file_of_one_document_is_halved(tmp_path):
    held_out = written(tmp_path / "held.txt", ["abcdefgh"])
    config = config_of(written(tmp_path / "train.txt", ["train\n"]), validation_files=(str(held_out),))
    found = splits_of(config, size_of_few(config))
    assert found == {"train": ["train\n"], "validation": ["abcd"], "test": ["efgh"]}


def test_it_is_said_before_anything_is_tokenized(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(building, "make_tokenizer", lambda *_: pytest.fail(capsys.readouterr().err))
    config = config_of(written(tmp_path / "one.txt", [LINE * 40]))
    with pytest.raises(pytest.fail.Exception, match="too few documents to be held out whole.*last 0.2 and 0.2 of"):
        prepare(config, tmp_path / "data")


# ---- long documents


def test_pieces_of_a_long_document_have_its_tokens(tmp_path, monkeypatch):
    text = LINE.format(7) * 30 + " \n\n odd  spaces\t , don't 12 34's 日本語 x\x1c y\x85z _ a_b " * 9
    config = config_of(written(tmp_path / "one.txt", [text]), validation_fraction=0.1, test_fraction=0.1)
    whole = prepare(config, tmp_path / "whole")
    monkeypatch.setattr(building, "_PIECE_CHARACTERS", 40)
    assert len(list(building._pieces(text))) > 30 and "".join(building._pieces(text)) == text
    pieces = prepare(config, tmp_path / "pieces")
    assert pieces.manifest["splits"] == whole.manifest["splits"]
    assert pieces.manifest["tokenizer_files"] == whole.manifest["tokenizer_files"]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.txt.gz", gzip.compress(bytes(200), mtime=0), "document 1"),
        ("b.txt", b"short\n<|endoftext|>\n" + b"0\n" * 60, "document 2"),
        ("c.jsonl", b'{"text": "short"}\n{"text": "' + b"a" * 120 + b'"}\n', "line 2"),
    ],
)
def test_what_would_fill_memory_is_refused_by_its_place(tmp_path, monkeypatch, name, content, place):
    monkeypatch.setattr(readers, "LONGEST", 100)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read: {place} is longer than 100"):
        prepare(config_of(tmp_path / name), tmp_path / "data")
    assert not (tmp_path / "data").exists()


# ---- files that are none, or change


@pytest.mark.parametrize("kind", ["pipe", "device", "circle"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind):
    file = tmp_path / "text.txt"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("/dev/zero" if kind == "device" else file)
    with pytest.raises(UserError, match=r"text.txt does not exist or is not a file"):
        prepare(config_of(file), tmp_path / "data")


@pytest.mark.parametrize("moment", ["_tokenizer", "write_shards", "_write_segment"])
def test_a_file_that_changes_while_it_is_read_leaves_nothing(tmp_path, monkeypatch, moment):
    file = written(tmp_path / "book.txt", [LINE.format(n) for n in range(60)])
    text, before = file.read_text(), getattr(building, moment)

    def change(*arguments, **named):
        file.write_text(text.replace("dark", "DARK"))
        return before(*arguments, **named)

    monkeypatch.setattr(building, moment, change)
    with pytest.raises(UserError, match=r"book.txt was changed while it was read.*allowed: a file that nobody"):
        prepare(config_of(file), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    monkeypatch.undo()
    file.write_text(text)
    tokens = prepare(config_of(file), tmp_path / "data")
    assert "dark" in load_tokenizer(tokens.tokenizer_folder).decode(tokens.tokens("train")[:200])


@pytest.mark.parametrize("what", ["documents", "seal", "shard", "tokenizer"])
def test_a_half_made_preparation_that_was_altered_begins_anew(tmp_path, monkeypatch, capsys, what):
    class Killed(BaseException):
        """Not to be caught."""

    file = written(tmp_path / "book.txt", [LINE.format(n) for n in range(60)])
    whole = prepare(config_of(file), tmp_path / "whole").manifest["splits"]
    monkeypatch.setattr(building, "_SEGMENT_TOKENS", 500)
    monkeypatch.setattr(building, "_BATCH_CHARACTERS", 500)
    segments, write = [], building._write_segment

    def until_the_second(*arguments):
        if segments:
            raise Killed
        segments.append(write(*arguments))
        return segments[-1]

    monkeypatch.setattr(building, "_write_segment", until_the_second)
    with pytest.raises(Killed):
        prepare(config_of(file), tmp_path / "data")
    monkeypatch.undo()
    progress = next((tmp_path / "data").glob(f".*/{PROGRESS}"))
    facts = json.loads(progress.read_text())
    if what == "documents":
        progress.write_text(json.dumps(facts | {"documents": facts["documents"] - 3}))
    elif what == "seal":
        progress.write_text(json.dumps({key: value for key, value in facts.items() if key != "seal"}))
    else:
        altered = progress.with_name("train.bin") if what == "shard" else progress.parent / "tokenizer/tokenizer.json"
        altered.write_bytes(altered.read_bytes()[:-1] + b" ")
    capsys.readouterr()
    assert prepare(config_of(file), tmp_path / "data").manifest["splits"] == whole
    assert "what was prepared so far is prepared anew" in capsys.readouterr().err


# ---- the tokenizer's size


def test_the_model_is_made_for_the_entries_that_the_tokenizer_has(tmp_path, capsys):
    """Sums of two digits have few words: all are merged before 400 entries are reached."""
    sums = [f"{a} + {b} = {a + b}\n" for a in range(10) for b in range(10)]
    prepared = prepare(config_of(written(tmp_path / "sums.txt", sums), vocab_size=512), tmp_path / "data")
    entries = prepared.vocab_size
    assert entries < 320
    assert f"data: the tokenizer has {entries} entries of the 512 that data.vocab_size" in capsys.readouterr().err
    config = RunConfig("smoke", "dense", "dense", data=DataConfig(vocab_size=512))
    assert matrix_shapes(config)["transformer.wte.weight"][0] == 512
    made = dataclasses.replace(config, entries=entries)
    assert matrix_shapes(made)["transformer.wte.weight"][0] == 320
    assert int(np.max(prepared.tokens("train")[:])) < entries
