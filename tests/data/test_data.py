"""Data: corpora and their splits, the tokenizer, shards; and every bad input."""

import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from replication.config.fields import DataConfig
from replication.data import Batches, building, load_tokenizer, pad_vocab_size, prepare
from replication.data.corpus import SPLITS, read_corpus, split_of
from replication.data.stdlib import stdlib_documents
from replication.system.errors import DamagedError, UserError

ODD = [
    "",
    " ",
    "\n\n\t x",
    "naïve café — 日本語 🦙",
    "a" * 300,
    "\x00\x7f\ufeff",
    "tabs\t\tand  spaces ",
    "don't , stop .",
    "e\u0301",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def book(tmp_path):
    """A text file of 60 documents."""
    file = tmp_path / "book.txt"
    file.write_text(
        "<|endoftext|>\n".join(f"Chapter {n}. It was a dark and stormy night, the {n}th.\n" for n in range(60))
    )
    return file


def by_split(config):
    """Split -> [(identity, text)]."""
    found = {split: [] for split in SPLITS}
    for split, identity, text in read_corpus(config):
        found[split].append((identity, text))
    return found


def files_config(*files, **others):
    options = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300}
    return DataConfig(source="files", files=tuple(map(str, files)), **options | others)


# ---- corpora


def test_stdlib_documents_are_sources_and_topics_without_tests_and_tables():
    documents = dict(stdlib_documents())
    paths = list(documents)
    modules = [path for path in paths if path.endswith(".py")]
    assert modules == sorted(modules)
    assert {"os.py", "json/decoder.py", "encodings/utf_8.py", "pydoc_data/topics/while"} <= set(paths)
    excluded = {"pydoc_data/topics.py", "html/entities.py", "encodings/cp1252.py", "stringprep.py"}
    assert not excluded & set(paths)
    assert not [
        path
        for path in paths
        if {"test", "tests", "idlelib", "site-packages", "_bundled"} & set(path.split("/"))
        or path.startswith(("/", "_sysconfigdata"))
    ]
    assert documents["os.py"] == Path(os.__file__).read_text(encoding="utf-8")
    assert len(set(documents.values())) == len(documents)


def test_split_is_the_sha256_of_the_identity():
    share = int(hashlib.sha256(b"os.py").hexdigest()[:16], 16) / 16**16
    assert split_of("os.py", 0.0, share + 1e-9) == "test"
    assert split_of("os.py", 1e-9 + 1e-9, share - 1e-9) == "validation"
    assert split_of("os.py", 0.0, share - 1e-9) == "train"
    shares = [split_of(f"document {n}", 0.05, 0.05) for n in range(4000)]
    assert 150 < shares.count("test") < 250 and 150 < shares.count("validation") < 250


def test_stdlib_has_no_text_on_two_sides():
    texts = [{text for _, text in documents} for documents in by_split(DataConfig()).values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    assert sum(map(len, texts)) == len(list(stdlib_documents()))


def test_text_files_split_at_end_of_text_lines(tmp_path):
    (tmp_path / "a.txt").write_text(
        "one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree, with <|endoftext|> inside\n<|endoftext|>\n"
    )
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("<|endoftext|>\nfour")
    (tmp_path / "held.txt").write_text("<|endoftext|>\n".join(f"{n}\n" for n in range(40)))
    corpus = by_split(
        files_config(tmp_path / "a.txt", tmp_path / "b.txt.gz", validation_files=(str(tmp_path / "held.txt"),))
    )
    assert corpus["train"] == [
        ("a.txt:0", "one\ntwo\n"),
        ("a.txt:1", "three, with <|endoftext|> inside\n"),
        ("b.txt.gz:0", "four"),
    ]
    halves = [{text for _, text in corpus[split]} for split in ("validation", "test")]
    assert (
        halves[0] | halves[1] == {f"{n}\n" for n in range(40)}
        and not halves[0] & halves[1]
        and min(map(len, halves)) > 8
    )


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_are_documents(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    frame = pd.DataFrame({"id": range(50), "body": [f"row {n}\n<|endoftext|>\n" for n in range(50)]})
    frame.to_parquet(file) if ending == "parquet" else frame.to_json(file, orient="records", lines=True)
    corpus = by_split(files_config(file, text_column="body"))
    rows = dict(document for documents in corpus.values() for document in documents)
    assert rows == {f"rows.{ending}:{n}": f"row {n}\n<|endoftext|>\n" for n in range(50)}
    assert [identity for identity, _ in corpus["test"]] == [
        path for path in (f"rows.{ending}:{n}" for n in range(50)) if split_of(path, 0.2, 0.2) == "test"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\n<|endoftext|>\n \n", "is empty"),
        ("empty.jsonl", b"", "is empty"),
        ("latin.txt", "café".encode("latin-1"), "is not UTF-8"),
        ("latin.txt.gz", gzip.compress("café".encode("latin-1"), mtime=0), "is not UTF-8"),
        ("latin.jsonl", '{"text": "café"}\n'.encode("latin-1"), "is not UTF-8"),
        ("not.txt.gz", b"not gzip", "cannot be read"),
        ("not.parquet", b"not parquet", "cannot be read"),
        ("not.jsonl", b"{not json\n", "cannot be read"),
        ("book.pdf", b"%PDF", "unsupported ending"),
        ("column.jsonl", b'{"body": "x"}\n', "no column data.text_column=text in line 1, only body"),
        ("number.jsonl", b'{"text": 1}\n', "holds int in line 1 .*a string in each row"),
        ("null.jsonl", b'{"text": "x"}\n{"text": null}\n', "holds null in line 2 "),
    ],
)
@pytest.mark.parametrize("key", ["files", "validation_files"])
def test_bad_files_are_one_clear_line_and_nothing_is_written(tmp_path, book, capsys, key, name, content, message):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    config = files_config(file) if key == "files" else files_config(book, validation_files=(str(file),))
    with pytest.raises(UserError, match=message) as error:
        prepare(config, tmp_path / "data")
    assert f"data.{key}: {file}" in str(error.value) and "\n" not in str(error.value)
    assert not capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_split_without_documents_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("ab")  # a fifth of which is no character
    with pytest.raises(UserError, match="split without documents"):
        prepare(files_config(tmp_path / "one.txt"), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_an_unreachable_hub_names_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.hub_name=some/where .*data.source=files data.files=") as error:
        prepare(DataConfig(source="hub", hub_name="some/where"), tmp_path / "data")
    assert "\n" not in str(error.value) and error.value.__cause__ is None
    with pytest.raises(UserError, match=r"data.gpt2_folder is null and the hub does not give vocab.json"):
        prepare(DataConfig(tokenizer="gpt2"), tmp_path / "data")


@pytest.mark.parametrize("how", ["same", "link", "copy", "other path"])
def test_validation_files_that_are_training_files_are_refused(tmp_path, book, how):
    held = {"same": book, "other path": tmp_path / "x" / ".." / "book.txt"}.get(how, tmp_path / "held.txt")
    (tmp_path / "x").mkdir()
    if how == "link":
        held.symlink_to(book)
    if how == "copy":
        held.write_bytes(book.read_bytes())
    with pytest.raises(
        UserError,
        match=f"^data.validation_files: {held} is the training file {book}; allowed: files that are not trained on$",
    ):
        prepare(files_config(book, validation_files=(str(held),)), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_held_out_documents_that_are_training_documents_are_counted_and_none_else_is_refused(tmp_path, book, capsys):
    documents = book.read_text().split("<|endoftext|>\n")
    held = tmp_path / "held.jsonl"
    fresh = [f"Fresh {n}.\n" for n in range(20)]
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    problem = r"every document of the validation split \(\d+\) is a training document too"
    with pytest.raises(UserError, match=rf"^data: {problem}; allowed: held-out text"):
        prepare(files_config(book, validation_files=(str(held),)), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    held.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*documents[:3], *fresh]))
    manifest = prepare(files_config(book, validation_files=(str(held),)), tmp_path / "data").manifest
    counts = manifest["held_out_in_training"]
    assert sum(counts.values()) == 3
    told = capsys.readouterr().err
    for split, count in counts.items():
        documents = manifest["splits"][split]["documents"]
        assert (
            f"data: {count} of {documents} {split} documents are training documents too, word for word" in told
        ) is (count > 0)


def test_a_corpus_of_one_document_over_and_over_holds_nothing_out(tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(["a a a\n"] * 200))
    with pytest.raises(UserError, match="every document of the validation split"):
        prepare(files_config(tmp_path / "a.txt"), tmp_path / "data")


def test_rows_of_the_hub_that_are_blank_are_no_documents(monkeypatch):
    rows = [text for n in range(50) for text in (f"row {n}", "", " \n")]
    monkeypatch.setattr(
        "replication.data.corpus.load_dataset", lambda *_, **__: Dataset.from_dict({"id": range(150), "body": rows})
    )
    config = DataConfig(source="hub", hub_name="wiki", text_column="body", validation_fraction=0.2, test_fraction=0.2)
    found = dict(document for documents in by_split(config).values() for document in documents)
    assert found == {f"wiki:{n}": f"row {n}" for n in range(50)}
    with pytest.raises(UserError, match="data.hub_name=wiki has no column data.text_column=text; allowed: id, body"):
        by_split(dataclasses.replace(config, text_column="text"))
    with pytest.raises(
        UserError, match="data.hub_name=wiki: data.text_column=id holds int; allowed: a string in each row"
    ):
        by_split(dataclasses.replace(config, text_column="id"))


# ---- tokenizer


def test_bpe_comes_back_whole_from_odd_strings(tmp_path, book):
    tokenizer = load_tokenizer(prepare(files_config(book), tmp_path / "data").tokenizer_folder)
    for text in ODD:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    roles = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token}
    assert roles == {"<|endoftext|>"} and len(tokenizer) == 300


def test_bpe_is_trained_on_the_training_split_alone_and_deterministic(tmp_path, book):
    held = tmp_path / "held.txt"
    held.write_text("<|endoftext|>\n".join(f"zyxwvu zyxwvu {n}\n" for n in range(20)))
    config = files_config(book, validation_files=(str(held),))
    models = [(prepare(config, tmp_path / name).tokenizer_folder / "tokenizer.json").read_text() for name in ("a", "b")]
    assert models[0] == models[1] and '"st' in models[0] and '"zy' not in models[0]


def test_gpt2_files_give_gpt2s_tokens(tmp_path, book):
    from transformers import GPT2Tokenizer

    model = json.loads(
        (prepare(files_config(book), tmp_path / "data").tokenizer_folder / "tokenizer.json").read_text()
    )["model"]
    folder = tmp_path / "gpt2"
    folder.mkdir()
    vocab = [token for token in model["vocab"] if token != "<|endoftext|>"] + ["<|endoftext|>"]  # its place in GPT-2
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in model["merges"]))
    prepared = prepare(files_config(book, tokenizer="gpt2", gpt2_folder=str(folder)), tmp_path / "data")
    ours, theirs = load_tokenizer(prepared.tokenizer_folder), GPT2Tokenizer.from_pretrained(folder)
    assert prepared.vocab_size == 300 and ours.eos_token_id == 299 == prepared.tokens("train")[:][-1]
    for text in ODD:
        assert ours.encode(text) == theirs.encode(text)


def test_bad_gpt2_files(tmp_path, book):
    config = files_config(book, tokenizer="gpt2", gpt2_folder=str(tmp_path))
    with pytest.raises(UserError, match="has no vocab.json"):
        prepare(config, tmp_path / "data")
    (tmp_path / "vocab.json").write_text("{}{")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(UserError, match="data.gpt2_folder=.*allowed"):
        prepare(config, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("size", "padded"), [(1, 64), (64, 64), (65, 128), (1024, 1024), (50257, 50304)])
def test_padded_vocab_size(size, padded):
    assert pad_vocab_size(size) == padded


# ---- shards


def test_shards_hold_the_documents_with_end_of_text_after_each(tmp_path, book):
    config = files_config(book)
    prepared, corpus = prepare(config, tmp_path / "data"), by_split(config)
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    for split, documents in corpus.items():
        tokens, facts = prepared.tokens(split), prepared.manifest["splits"][split]
        assert tokens[:].dtype == np.uint16
        assert tokenizer.decode(tokens[:].tolist()) == "".join(f"{text}<|endoftext|>" for _, text in documents)
        file = prepared.folder / f"{split}.bin"
        whole = {"tokens": len(tokens), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        counts = {"documents": len(documents), "characters": sum(len(text) for _, text in documents)}
        assert facts == counts | whole | {"shards": [{"file": file.name} | whole]}
    assert prepared.manifest["source"] == "files" and prepared.vocab_size == 300
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([prepared.folder.name, "sources"])


def test_a_special_token_spelled_out_in_a_document_is_text(tmp_path):
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join(f"{n}: say <|endoftext|> aloud\n" for n in range(30)))
    prepared = prepare(files_config(tmp_path / "a.txt"), tmp_path / "data")
    facts = prepared.manifest["splits"]["train"]
    end_of_text = load_tokenizer(prepared.tokenizer_folder).eos_token_id
    assert (prepared.tokens("train")[:] == end_of_text).sum() == facts["documents"]


def test_shards_are_reused_until_something_differs(tmp_path, book):
    prepared = prepare(files_config(book), tmp_path / "data")
    shard = prepared.folder / "train.bin"
    stamp = shard.stat().st_mtime_ns
    assert (
        prepare(files_config(book), tmp_path / "data").folder == prepared.folder and shard.stat().st_mtime_ns == stamp
    )
    assert prepare(files_config(book, vocab_size=310), tmp_path / "data").folder != prepared.folder
    os.truncate(shard, 10)
    assert (
        len(prepare(files_config(book), tmp_path / "data").tokens("train"))
        == prepared.manifest["splits"]["train"]["tokens"]
    )


def test_a_damaged_file_is_refused_by_name_with_what_helps(tmp_path, book):
    prepared = prepare(files_config(book), tmp_path / "data")
    for file in (
        "train.bin",
        "validation.bin",
        "test.bin",
        "manifest.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ):
        path = prepared.folder / file
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 8
        path.write_bytes(damaged)
        with pytest.raises(
            DamagedError, match=f"{path} is damaged .*; remove {prepared.folder} to have it prepared anew"
        ) as error:
            prepare(files_config(book), tmp_path / "data")
        assert "\n" not in str(error.value)
        path.write_bytes(whole)
        prepare(files_config(book), tmp_path / "data")


def test_a_version_of_a_file_is_compared_with_its_checksum_once(tmp_path, book, monkeypatch):
    from replication.data import shards

    compared = []
    monkeypatch.setattr(shards, "check_sha256", lambda path, digest: compared.append(path.name))
    prepared = prepare(files_config(book), tmp_path / "data")
    assert compared == ["train.bin", "validation.bin", "test.bin", *prepared.manifest["tokenizer_files"]]
    compared.clear()
    prepare(files_config(book), tmp_path / "data")
    assert not compared
    os.utime(prepared.folder / "train.bin")
    prepare(files_config(book), tmp_path / "data")
    assert "train.bin" in compared


def test_what_is_missing_is_prepared_anew(tmp_path, book):
    prepared = prepare(files_config(book), tmp_path / "data")
    digests = prepared.shards
    for name in ("validation.bin", "tokenizer/tokenizer.json", "manifest.json"):
        (prepared.folder / name).unlink()
        assert prepare(files_config(book), tmp_path / "data").shards == digests


def test_files_of_two_projects_with_one_name_size_and_time_are_two_texts(tmp_path, monkeypatch):
    texts = {}
    for letter in "ab":
        (tmp_path / letter).mkdir()
        monkeypatch.chdir(tmp_path / letter)
        Path("t.txt").write_text("<|endoftext|>\n".join(f"{letter * 30}{n:02}\n" for n in range(40)))
        os.utime("t.txt", (0, 0))
        prepared = prepare(files_config("t.txt"), "../data")
        texts[letter] = load_tokenizer(prepared.tokenizer_folder).decode(prepared.tokens("train")[:].tolist())
    assert "aaa" in texts["a"] and "a" not in texts["b"].replace("<|endoftext|>", "") and "bbb" in texts["b"]


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_changed_file_is_another_corpus(tmp_path, ending):
    file = tmp_path / f"rows.{ending}"
    shards = []
    for letter in "ab":
        lines = (
            json.dumps({"text": letter * 30 + str(n)}) if ending == "jsonl" else f"{letter * 30}{n}\n<|endoftext|>"
            for n in range(40)
        )
        file.write_text("\n".join(lines))
        shards.append(prepare(files_config(file), tmp_path / "data"))
    texts = [load_tokenizer(shard.tokenizer_folder).decode(shard.tokens("train")[:].tolist()) for shard in shards]
    assert "aaa" in texts[0] and "b" not in texts[0] and "bbb" in texts[1] and "aaa" not in texts[1]


def test_reuse_imports_neither_datasets_nor_transformers(tmp_path, book):
    prepared = prepare(files_config(book), tmp_path / "data")
    code = (
        "import sys; from replication.config.run_config import DataConfig; from replication.data import prepare\n"
        f"assert str(prepare({files_config(book)!r}, {str(tmp_path / 'data')!r}).folder) == {str(prepared.folder)!r}\n"
        "assert not {'torch', 'datasets', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.fixture
def in_pieces(monkeypatch):
    """A shard ends after some two hundred tokens, and documents are tokenized a few at a time."""
    monkeypatch.setattr(building, "_SEGMENT_TOKENS", 200)
    monkeypatch.setattr(building, "_BATCH_CHARACTERS", 100)


def test_a_large_corpus_is_the_same_tokens_in_several_shards(tmp_path, book, in_pieces, monkeypatch, capsys):
    pieces = prepare(files_config(book), tmp_path / "pieces")
    assert "documents are tokenized" in capsys.readouterr().err
    monkeypatch.undo()
    whole = prepare(files_config(book), tmp_path / "whole")
    shards = pieces.manifest["splits"]["train"]["shards"]
    assert [shard["file"] for shard in shards][:3] == ["train.bin", "train-1.bin", "train-2.bin"]
    ours, theirs = pieces.manifest["splits"]["train"], whole.manifest["splits"]["train"]
    assert {key: ours[key] for key in ("documents", "characters", "tokens")} == {
        key: theirs[key] for key in ("documents", "characters", "tokens")
    }
    assert ours["sha256"] == hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
    for split in SPLITS:
        tokens = whole.tokens(split)[:]
        assert (pieces.tokens(split)[:] == tokens).all() and len(pieces.tokens(split)) == len(tokens)
        assert (pieces.tokens(split).between(10, 90)[5:] == tokens[15:90]).all()
    edge = shards[0]["tokens"]
    assert (pieces.tokens("train")[edge - 3 : edge + 3] == whole.tokens("train")[edge - 3 : edge + 3]).all()
    for step in (1, 2, 3):
        batches = [Batches(data.tokens("train"), "train", 0, 8, 40).train_batch(step) for data in (pieces, whole)]
        assert (batches[0] == batches[1]).all()
    assert sorted(path.name for path in pieces.folder.iterdir() if "train" in path.name) == sorted(
        shard["file"] for shard in shards
    )


def test_who_was_killed_is_followed_from_the_last_whole_shard(tmp_path, book, in_pieces, monkeypatch):
    class Killed(BaseException):
        """Not to be caught."""

    whole = prepare(files_config(book), tmp_path / "whole").manifest["splits"]
    write, written = building._write_segment, []

    def until_the_third(*arguments):
        if len(written) == 2:
            raise Killed
        written.append(write(*arguments))
        return written[-1]

    monkeypatch.setattr(building, "_write_segment", until_the_third)
    with pytest.raises(Killed):
        prepare(files_config(book), tmp_path / "data")
    begun = next((tmp_path / "data").glob(".*/train.bin"))
    stamp = begun.stat().st_mtime_ns
    monkeypatch.setattr(building, "_write_segment", write)
    monkeypatch.setattr(building, "make_tokenizer", None)  # nor is the tokenizer made again
    prepare(files_config(book, vocab_size=300), tmp_path / "data")
    (folder,) = [path for path in (tmp_path / "data").iterdir() if path.name != "sources"]
    assert (folder / "train.bin").stat().st_mtime_ns == stamp
    assert json.loads((folder / "manifest.json").read_text())["splits"] == whole


def test_a_shard_that_is_gone_meanwhile_is_read_on_and_one_cut_short_is_named(tmp_path, book):
    prepared = prepare(files_config(book), tmp_path / "data")
    tokens = prepared.tokens("train")
    first = tokens[:4].tolist()
    os.truncate(prepared.folder / "train.bin", 6)
    assert tokens[:3].tolist() == first[:3]
    with pytest.raises(DamagedError, match=r"train.bin is damaged \(it is shorter than it was\)"):
        tokens[:4]
    (prepared.folder / "train.bin").unlink()
    assert tokens[:3].tolist() == first[:3]


@pytest.mark.slow
def test_two_processes_prepare_the_same_corpus_at_once(tmp_path, book):
    with get_context("spawn").Pool(2) as pool:
        folders = pool.starmap(prepare, [(files_config(book), tmp_path / "data")] * 2)
    assert folders[0].folder == folders[1].folder and folders[0].is_complete()
    assert {path.name for path in (tmp_path / "data").iterdir()} == {folders[0].folder.name, "sources"}
