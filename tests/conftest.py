"""A tiny corpus, and tiny configurations on it, for the tests that train."""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from replication.config import load_config

_WORDS = "the a sparse dense weight mask grows drops step model learns little every layer head token slowly again and of in".split()


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="record the golden curves anew")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory):
    """A text file of 240 short documents, the same on every machine."""
    draw = random.Random(0)
    documents = ("".join(" ".join(draw.choices(_WORDS, k=12)) + ".\n" for _ in range(8)) for _ in range(240))
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text("<|endoftext|>\n".join(documents), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the tests' prepared data goes."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def overrides(corpus_file):
    """The smoke profile on the tiny corpus, 20 steps; a dropping and growing update every 3 steps."""
    return [
        "data.source=files",
        f"data.files=[{corpus_file}]",
        "data.validation_fraction=0.2",
        "data.vocab_size=320",
        "train.num_steps=20",
        "train.eval_freq=10",
        "train.eval_batches=2",
        "train.log_freq=1",
        "train.checkpoint_freq=8",
        "sparsity.update_freq=3",
    ]


@pytest.fixture(scope="session")
def tiny(overrides):
    """tiny(method, *more overrides) -> RunConfig."""
    return lambda method, *more, seed=0: load_config("smoke", method, seed, [*overrides, *more])
