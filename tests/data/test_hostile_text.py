"""Two hundred texts that nobody should write: tokenised and back as they were, or refused by name."""

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replication.config.fields import DataConfig
from replication.data import load_tokenizer, prepare
from replication.data.readers import UnreadableError, documents, is_blank
from replication.data.tokenizer import END_OF_TEXT, make_tokenizer
from replication.system.errors import UserError

NUM = 200
BY_HAND = [
    *("\0", "a\0b", "\x01\x02\x1b[2J\x7f\x80\x9f", "\ufeff", "\ufeff\ufeffx", "x\ufeff", "\ufffe\uffff", "\U0010ffff"),
    *(
        "\n" * 5000,
        "\r",
        "\r\n\r\n",
        "a\rb\r\nc\nd",
        "\n\r\n",
        "\u2028\u2029\x85\x0b\x0c",
        " " * 5000,
        "\t \u3000 \xa0",
    ),
    *("\u202eright to left\u202c", "שלום עולם", "مرحبا بالعالم", "\u200f\u200e\u2066x\u2069", "a" + "\u0301" * 2000),
    *("👨‍👩‍👧‍👦🏳️‍🌈🇩🇪", "🏽" * 100, "Z̸͎͝a̷͠l̶̛g̵͝o̴", "ﷺ" * 100, "ǅǈ ß ẞ İ ı ſ", "e\u0301 \u00e9", "가 \u1100\u1161"),
    *(
        END_OF_TEXT,
        f"x{END_OF_TEXT}y",
        f"{END_OF_TEXT}" * 50,
        "<|endoftext",
        "<|pad|><s></s>[MASK]",
        "Ġ Ċ ĉ",
        "Ā" * 300,
    ),
    *("x" * 20_000, "=" * 20_000, "ab" * 10_000, "0" * 20_000, "don't" * 3000, '"' * 5000, "\\" * 5000, "{" * 5000),
    *(
        "[" * 5000,
        '{"text": "x"}',
        "null",
        "NaN",
        "-1",
        "true",
        "%s %d {} {0}",
        "$(touch x) `touch x`",
        "'; DROP TABLE x;--",
    ),
    *("\ud800", "x\udfffy", "\udcff" * 3, "\ud83d", "\ude00\ud83d", "a\ud800\udc00b"),
]
INVALID = [
    b"\xff\xfe\x00",
    b"\xc3",
    b"a\xc3\x28",
    b"\xe2\x82",
    b"\xf0\x28\x8c\x28",
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf5" * 9,
]
PLANES = [(0, 0x20), (0x20, 0x7F), (0x80, 0x300), (0x300, 0x370), (0x590, 0x700), (0x2000, 0x2100), (0x4E00, 0x9FFF)]
PLANES += [(0xD7F0, 0xE010), (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]


def drawn(num):
    """Texts of characters from a few planes each, the same every time."""
    draw = random.Random(0)
    for _ in range(num):
        planes = draw.sample(PLANES, draw.randint(1, 4))
        yield "".join(chr(draw.randrange(*draw.choice(planes))) for _ in range(draw.choice([1, 3, 40, 700])))


TEXTS = [*BY_HAND, *drawn(NUM - len(BY_HAND))]


def as_read(text):
    """What the reader makes of a document, by its own description."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def is_utf8(text):
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(DataConfig(vocab_size=400), [text for text in TEXTS if is_utf8(text)])


def test_there_are_two_hundred():
    assert len(TEXTS) == NUM


def test_every_text_comes_back_from_its_tokens(tokenizer):
    tokenizer.encode_special_tokens = True
    for text in filter(is_utf8, TEXTS):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.token_to_id(END_OF_TEXT) not in ids


def write_jsonl(file, text):
    file.write_text(json.dumps({"text": text, "other": 1}) + "\n" + json.dumps({"text": "y", "other": ["a"]}) + "\n")


def write_parquet(file, text):
    raw = text.encode("utf-8", "surrogatepass")
    column = pa.array([raw, b"y"]).cast(pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, column.buffers())}), file)


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_a_row_is_read_as_it_is_or_refused_by_its_place(write, tmp_path):
    file = tmp_path / f"it's $(x).{write.__name__.removeprefix('write_')}"
    for text in TEXTS:
        write(file, text)
        text = json.loads(json.dumps(text)) if write is write_jsonl else text  # two halves, escaped, are a whole
        try:
            found = list(documents(file, "text"))
        except UnreadableError as error:
            assert not is_utf8(text) and re.search("UTF-8|cannot be read", str(error)), text[:20]
        else:
            assert is_utf8(text) and found == [as_read(text), "y"][is_blank(text) :], text[:20]


def test_a_file_of_text_is_read_as_it_is_or_refused(tmp_path):
    file = tmp_path / "x.txt"
    for raw in [*(text.encode("utf-8", "surrogatepass") for text in TEXTS), *INVALID]:
        file.write_bytes(raw)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            with pytest.raises(UnreadableError, match="is not UTF-8"):
                list(documents(file, "text"))
            continue
        text = as_read(text)  # the file's mark; a document of its own may have another
        lines = text.split("\n")
        if END_OF_TEXT not in [line.strip() for line in lines]:
            found = list(documents(file, "text"))
            assert found == [] if is_blank(text) else found == [as_read(text)], raw[:20]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_marks_and_ends_of_lines_mean_the_same_in_every_format(mark, end, tmp_path):
    text, jsonl = tmp_path / "x.txt", tmp_path / "x.jsonl"
    text.write_bytes(mark + end.join([b"a", b"b", END_OF_TEXT.encode(), b"c"]))
    rows = [json.dumps({"text": part}).encode() for part in (f"a{end.decode()}b{end.decode()}", "c")]
    jsonl.write_bytes(mark + end.join(rows))
    assert list(documents(text, "")) == list(documents(jsonl, "text")) == ["a\nb\n", "c"]


def test_prepared_tokens_hold_every_document(tmp_path):
    texts = [text for text in TEXTS if is_utf8(text) and not is_blank(text)]
    file = tmp_path / "all.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shares = {"validation_fraction": 0.2, "test_fraction": 0.2}
    prepared = prepare(DataConfig(source="files", files=(str(file),), vocab_size=400, **shares), tmp_path / "data")
    tokenizer, found = load_tokenizer(prepared.tokenizer_folder), []
    for split in ("train", "validation", "test"):
        document = []
        for token in prepared.tokens(split)[:].tolist():
            if token == prepared.manifest["end_of_text_id"]:
                found.append(tokenizer.decode(document))
                document = []
            else:
                document.append(token)
        assert not document
    assert sorted(found) == sorted(map(as_read, texts))


def test_a_text_that_cannot_be_is_refused_with_its_file_and_line(tmp_path):
    file = tmp_path / "x.jsonl"
    for row in (
        '{"text": "\\ud800"}',
        '{"text": 1' + "0" * 5000 + "}",
        '{"text": ' + "[" * 5000,
        '{"text": NaN}',
        "[]",
    ):
        file.write_text('{"text": "fine"}\n' + row + "\n")
        with pytest.raises(UserError, match=f"^data.files: {file} .*line 2") as error:
            prepare(DataConfig(source="files", files=(str(file),)), tmp_path / "data")
        assert len(str(error.value).splitlines()) == 1
