"""A tiny corpus, and tiny configurations on it, for the tests that train."""

import os
import random
from collections import Counter

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from replication.config.profiles import load_config, profile_names

_WORDS = [
    "the",
    "a",
    "sparse",
    "dense",
    "weight",
    "mask",
    "grows",
    "drops",
    "step",
    "model",
    "learns",
    "little",
    "every",
    "layer",
    "head",
    "token",
    "slowly",
    "again",
    "and",
    "of",
    "in",
]


def pytest_addoption(parser):
    parser.addoption("--write-golden", action="store_true", help="record the golden curves anew")


def pytest_configure(config):
    """Where there is a GPU the other tests are of the CPU all the same, and so are the processes that they start."""
    if config.getoption("markexpr") != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_terminal_summary(terminalreporter):
    """Why tests were skipped, in one line."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    if reasons:
        said = "; ".join(f"{number}: {reason}" for reason, number in reasons.most_common())
        terminalreporter.write_line(f"skipped, of instructions up to {instructions()}: {said}")


def instructions():
    """The level that tests of kernels find here."""
    from replication.kernels.choice import level
    from replication.kernels.library import library

    return level() if library() else "none of ours"


@pytest.fixture(autouse=True)
def uncalibrated(tmp_path_factory, monkeypatch):
    """Which kernels a test trains with does not depend on whether somebody calibrated this machine."""
    nowhere = tmp_path_factory.getbasetemp() / "limits.json"
    monkeypatch.setattr("replication.kernels.choice.cache_file", lambda *_: nowhere)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name == "paper")) for name in profile_names()])
def profile(request):
    """Each profile that ships, by name."""
    return request.param


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
    """The smoke profile on the tiny corpus, 20 steps; a dropping and growing update instead of every third."""
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
        "train.batch_size=8",
        "train.warmup_steps=4",
        "sparsity.update_freq=3",
        "sparsity.drop_fraction=0.3",
        "sparsity.update_replaces_step=true",
        "mst.warmup_end=0.1",
        "mst.restoration_start=0.8",
        "mst.ultra_sparsity=0.979",
        "mst.final_sparsity=0.8",
    ]


@pytest.fixture(scope="session")
def tiny(overrides):
    """tiny(method, *more overrides) -> RunConfig."""
    return lambda method, *more, seed=0: load_config("smoke", method, seed, [*overrides, *more])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, corpus_file):
    """A random GPT-2 of one layer, context 32, as a Hugging Face folder."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from replication.config.fields import DataConfig
    from replication.data.tokenizer import make_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(folder)
    save_tokenizer(make_tokenizer(DataConfig(vocab_size=300), [corpus_file.read_text(encoding="utf-8")]), folder)
    return folder


@pytest.fixture(scope="session")
def with_snapshot(tiny, data_dir, tmp_path_factory):
    """Method -> its finished run, with a snapshot half-way; to be copied, not changed."""
    from replication.training import trainer  # torch is not for tests that train nothing

    folder = tmp_path_factory.mktemp("with-snapshot")
    return {
        method: trainer.train(tiny(method, "eval.at=[0.5]"), folder / method, data_dir, progress=False)
        for method in ("dense", "mst")
    }
