"""GPT-2's tokenizer from vocab.json and merges.txt, and every file that is not its.

The ids are those of transformers' and of OpenAI's algorithm on up to 10 000 odd strings.
"""

import json
import os
import random
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from tokenizers import pre_tokenizers
from transformers import GPT2Tokenizer

from replication.config.fields import DataConfig
from replication.data import prepare
from replication.data.tokenizer import END_OF_TEXT, copy_tokenizer, load_tokenizer, make_tokenizer
from replication.system.errors import UserError

NUM_STRINGS = 10_000
PLANES = [
    (0, 0x7F),
    (0x80, 0x7FF),
    (0x800, 0xD7FF),
    (0xE000, 0xFFFF),
    *((plane << 16, (plane << 16) + 0xFFFF) for plane in range(1, 17)),
]
PIECES = [
    "'s",
    "'ll",
    " n't",
    "  ",
    "\t",
    "\r\n",
    "\x00",
    "\x1f",
    "\x85",
    "\u00a0",
    "\u2028",
    "\ufeff",
    "\u200d",
    "e\u0301",
    "ß",
    "２",
    "½",
    " the",
    "don't",
    "$1,000.00",
    "<|endoftext",
    "👩‍👩‍👧",
]


def odd_strings():
    """Each plane of Unicode, control characters, contractions, long runs of one character, and mixtures.

    The same on every machine.
    """
    draw = random.Random(0)

    def char():
        low, high = draw.choice(PLANES)
        return chr(draw.randint(low, high))

    def piece():
        kind = draw.randrange(4)
        if kind == 0:
            return draw.choice(PIECES)
        if kind == 1:
            return char() * draw.choice((1, 2, 3, 50))
        return (
            "".join(char() for _ in range(draw.randint(1, 6)))
            if kind == 2
            else "".join(draw.choices("abcdefgh ABC 0123 .,!?'\n", k=draw.randint(1, 12)))
        )

    return ["".join(piece() for _ in range(draw.randint(0, 8))) for _ in range(NUM_STRINGS - 3)] + [
        " " * 5000,
        "a" * 5000,
        "\n\n \n" * 500,
    ]


@pytest.fixture(scope="session")
def gpt2_folder(corpus_file, tmp_path_factory):
    """Files in GPT-2's form, with its last place for <|endoftext|>; or GPT-2's own, in the folder $GPT2_FOLDER."""
    if "GPT2_FOLDER" in os.environ:
        return Path(os.environ["GPT2_FOLDER"])
    model = json.loads(
        make_tokenizer(
            DataConfig(vocab_size=600), [corpus_file.read_text(encoding="utf-8"), *odd_strings()[:2000]]
        ).to_str()
    )["model"]
    return write_files(
        tmp_path_factory.mktemp("gpt2"),
        [token for token in model["vocab"] if token != END_OF_TEXT] + [END_OF_TEXT],
        model["merges"],
    )


def write_files(folder, tokens, merges):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(" ".join(merge) + "\n" for merge in merges), encoding="utf-8"
    )
    return folder


def openai_encoder(folder):
    """OpenAI's algorithm in plain Python: split by the pattern, bytes to letters, then the earliest merge first."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges) if line}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + place) for place, byte in enumerate(byte for byte in range(256) if byte not in visible)
    }
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    @cache
    def merged(word):
        parts = [letters[byte] for byte in word.encode()]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
            if pair not in ranks:
                break
            place, joined = 0, []
            while place < len(parts):
                hit = tuple(parts[place : place + 2]) == pair
                joined.append("".join(pair) if hit else parts[place])
                place += 1 + hit
            parts = joined
        return [vocab[part] for part in parts]

    return lambda text: [index for word in pattern.findall(text) for index in merged(word)]


def test_ids_are_transformers_and_come_back_whole(gpt2_folder):
    ours = make_tokenizer(DataConfig(tokenizer="gpt2", gpt2_folder=str(gpt2_folder)), [])
    theirs, strings = GPT2Tokenizer.from_pretrained(gpt2_folder), odd_strings()
    assert len({unicodedata.category(char) for text in strings for char in text}) >= 28 and len(strings) == NUM_STRINGS
    ids = [encoding.ids for encoding in ours.encode_batch(strings)]
    assert ids == theirs(strings)["input_ids"]
    assert ours.decode_batch(ids, skip_special_tokens=False) == strings


def test_ids_are_openais(gpt2_folder):
    ours = make_tokenizer(DataConfig(tokenizer="gpt2", gpt2_folder=str(gpt2_folder)), [])
    encode = openai_encoder(gpt2_folder)
    strings = [text for text in odd_strings() if len(text) < 1000]  # plain Python takes long over long words
    # Which characters are letters changes with Unicode's version, which differs between libraries: only those of every
    # version.
    known = [text for text in strings if not any(unicodedata.category(char) == "Cn" for char in text)]
    assert len(known) > 2500
    assert [encoding.ids for encoding in ours.encode_batch(known)] == [encode(text) for text in known]


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(
    ("tokens", "merges", "problem"),
    [
        ([*ALPHABET, "ab", "zz", END_OF_TEXT], [("a", "b")], "no merge forms 1 entries such as 'zz'"),
        ([*ALPHABET, END_OF_TEXT], [("a", "b")], "Token `ab` out of vocabulary"),
        ([*ALPHABET[1:], "ab", END_OF_TEXT], [("a", "b")], "1 bytes or merges such as '!' are no entries"),
    ],
)
def test_files_that_disagree_are_one_line(tmp_path, corpus_file, tokens, merges, problem):
    folder = write_files(tmp_path / "gpt2", tokens, merges)
    with pytest.raises(UserError, match="data.gpt2_folder=.*allowed: ") as error:
        prepare(
            DataConfig(source="files", files=(str(corpus_file),), tokenizer="gpt2", gpt2_folder=str(folder)),
            tmp_path / "data",
        )
    assert problem in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_ids_with_holes_are_one_line(tmp_path):
    folder = write_files(tmp_path, [*ALPHABET, END_OF_TEXT], [])
    (folder / "vocab.json").write_text(
        json.dumps({token: 2 * index for index, token in enumerate([*ALPHABET, END_OF_TEXT])})
    )
    with pytest.raises(UserError, match="the ids of the 257 entries are not 0 to 256"):
        make_tokenizer(DataConfig(tokenizer="gpt2", gpt2_folder=str(folder)), [])


def test_a_checkpoints_copy_is_read_by_transformers_4_and_truncates_to_the_models_context(checkpoint, tmp_path):
    """transformers 4.57 does not know the class that 5 writes. The original is shared by models of all contexts."""
    before = {file.name: file.read_bytes() for file in checkpoint.iterdir()}
    (prepared := tmp_path / "prepared").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (prepared / name).write_bytes(before[name])
    (copy := tmp_path / "copy").mkdir()
    copy_tokenizer(prepared, copy, context=32)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast" and settings["model_max_length"] == 32
    original, copied = load_tokenizer(prepared), load_tokenizer(copy)
    text = "a sparse model grows again " * 20
    assert len(copied(text, truncation=True).input_ids) == 32 < len(original(text, truncation=True).input_ids)
    assert copied(text).input_ids == original(text).input_ids and copied.eos_token == original.eos_token == END_OF_TEXT
    assert {name: (prepared / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")} == {
        name: before[name] for name in ("tokenizer.json", "tokenizer_config.json")
    }
