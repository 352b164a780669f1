"""Documents come out the same whatever file they are in; what cannot be read is named with its line."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replication.config.profiles import load_config
from replication.data.corpus import read_corpus
from replication.data.readers import UnreadableError, documents

TEXTS = ["first\nof two lines\n", "second, café 🦙\n", "third\n"]
PLAIN = "<|endoftext|>\n".join(TEXTS)


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def texts(*rows):
    return jsonl(*({"text": row} for row in rows))


def parquet(column):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": list(range(len(column))), "text": column}), sink)
    return sink.getvalue().to_pybytes()


SAME = {
    "plain.txt": PLAIN.encode(),
    "bom.txt": b"\xef\xbb\xbf" + PLAIN.encode(),
    "crlf.txt": PLAIN.replace("\n", "\r\n").encode(),
    "blank.txt": ("<|endoftext|>\n \n<|endoftext|>\n" + PLAIN + "<|endoftext|>\n\n").encode(),
    "plain.txt.gz": gzip.compress(PLAIN.encode()),
    "bom_crlf.txt.gz": gzip.compress(b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").encode()),
    "rows.jsonl": texts(*TEXTS),
    "bom.jsonl": b"\xef\xbb\xbf" + texts(*TEXTS),
    "bom_in_text.jsonl": texts("\ufeff" + TEXTS[0], *TEXTS[1:]),
    "crlf.jsonl": texts(*(text.replace("\n", "\r\n") for text in TEXTS)).replace(b"\n", b"\r\n"),
    "old_mac.jsonl": texts(*(text.replace("\n", "\r") for text in TEXTS)),
    "blanks.jsonl": b"\n" + texts(TEXTS[0], "", "  \n", TEXTS[1], "\ufeff", "\r\n", TEXTS[2], "\t") + b"\n",
    "other_columns.jsonl": jsonl(
        *({"text": text, "meta": meta} for text, meta in zip(TEXTS, (0, "one", {"two": [None]})))
    ),
    "own_columns.jsonl": jsonl({"text": TEXTS[0]}, {"a": 1, "text": TEXTS[1]}, {"text": TEXTS[2], "b": {}}),
    "a[1].jsonl": texts(*TEXTS),
    "b*?.jsonl": texts(*TEXTS),
    "{c,d}.jsonl": texts(*TEXTS),
    "string.parquet": parquet(pa.array(TEXTS)),
    "large.parquet": parquet(pa.array(TEXTS, pa.large_string())),
    "view.parquet": parquet(pa.array(TEXTS, pa.string_view())),
    "dictionary.parquet": parquet(pa.array(TEXTS).dictionary_encode()),
    "blanks.parquet": parquet(pa.array([TEXTS[0], "", *TEXTS[1:], " \r\n"])),
    "e[1].parquet": parquet(pa.array(TEXTS)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_documents_in_every_form(name, tmp_path):
    (tmp_path / name).write_bytes(SAME[name])
    for other in ("a1", "b2", "c", "e1"):  # which a pattern would find
        (tmp_path / f"{other}.jsonl").write_bytes(texts("wrong"))
        (tmp_path / f"{other}.parquet").write_bytes(parquet(pa.array(["wrong"])))
    assert list(documents(tmp_path / name, "text")) == TEXTS


UNREADABLE = {
    "null.jsonl": (texts("a", None), "holds null in line 2 of data.text_column=text"),
    "number.jsonl": (b"\n" + texts("a", 3), "holds int in line 3 "),
    "surrogate.jsonl": (texts("a", "b", "\ud800"), "holds half of a surrogate pair in line 3"),
    "list.jsonl": (texts("a") + b"[1]\n", "line 2 is no JSON object"),
    "cut.jsonl": (texts("a", "b")[:-4], "line 2 is no JSON"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1 is no JSON"),
    "column.jsonl": (jsonl({"text": "a"}, {"body": "b"}), "no column data.text_column=text in line 2, only body"),
    "latin.jsonl": (texts("a") + '{"text": "é"}'.encode("latin-1"), "is not UTF-8 in line 2"),
    "latin.txt": ("é".encode("latin-1"), "is not UTF-8"),
    "cut.txt.gz": (gzip.compress(PLAIN.encode())[:-9], "cannot be read"),
    "null.parquet": (parquet(pa.array(["a", None])), "holds null in row 2 "),
    "number.parquet": (parquet(pa.array([1, 2])), "holds int64 in data.text_column=text, and no strings"),
    "cut.parquet": (parquet(pa.array(TEXTS))[:-9], "cannot be read"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_named_with_its_place(name, tmp_path):
    content, says = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableError, match=says) as error:
        list(documents(tmp_path / name, "text"))
    assert "\n" not in str(error.value)


def test_a_corpus_of_several_forms_and_the_files_that_were_named(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = ("large.parquet", "plain.txt", "a[1].jsonl", "view.parquet")
    for name in names:
        (tmp_path / name).write_bytes(SAME[name])
    (tmp_path / "a1.jsonl").write_bytes(texts(*(f"wrong {n}" for n in range(9))))
    (tmp_path / "held.txt").write_text("<|endoftext|>\n".join(f"{n}\n" for n in range(40)))
    files = [
        f"data.files={json.dumps([str(tmp_path / name) for name in names])}",
        f"data.validation_files={json.dumps([str(tmp_path / 'held.txt')])}",
    ]
    documents = read_corpus(load_config("smoke", "dense", 0, ["data.source=files", *files]).data)
    trained = [document for document in documents if document.split == "train"]
    assert [document.text for document in trained] == TEXTS * 4
    assert [document.identity for document in trained[:3]] == [f"large.parquet:{n}" for n in range(3)]
