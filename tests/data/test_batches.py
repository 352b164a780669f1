"""Batches drawn from shards, and the evaluation sets."""

import json

import numpy as np
import pytest

from replication.config.fields import DataConfig
from replication.config.profiles import load_config
from replication.data import Batches, prepare, write_evaluation_sets
from replication.data.corpus import split_of
from replication.data.heldout import lastword_items
from replication.data.stdlib import stdlib_documents
from replication.system.errors import UserError


def test_a_training_batch_depends_on_seed_split_and_step_alone():
    tokens = np.arange(10_000, dtype=np.uint16)
    batches = Batches(tokens, "train", seed=3, batch_size=4, context_length=8)
    fifth = batches.train_batch(5)
    assert fifth.shape == (4, 9) and fifth.dtype == np.int64
    assert (fifth == fifth[:, :1] + np.arange(9)).all()
    list(batches.evaluation_batches(3)), [batches.train_batch(step) for step in (9, 0, 5)]
    assert (batches.train_batch(5) == fifth).all()
    assert (Batches(tokens, "train", 3, 4, 8).train_batch(5) == fifth).all()
    for other in (
        batches.train_batch(6),
        Batches(tokens, "train", 4, 4, 8).train_batch(5),
        Batches(tokens, "validation", 3, 4, 8).train_batch(5),
    ):
        assert (other != fifth).any()


def test_training_windows_reach_both_ends():
    batches = Batches(np.arange(10), "train", seed=0, batch_size=1, context_length=7)
    assert {int(batches.train_batch(step)[0, 0]) for step in range(50)} == {0, 1, 2}


def test_the_order_is_that_of_every_earlier_run():
    starts = Batches(np.arange(1000), "train", seed=0, batch_size=4, context_length=8).train_batch(1)[:, 0]
    assert starts.tolist() == [961, 527, 195, 95]


def test_evaluation_windows_are_evenly_spaced_apart_and_the_same_for_every_seed():
    tokens = np.arange(103)  # 25 windows of 4
    first, second = Batches(tokens, "validation", seed=1, batch_size=2, context_length=3).evaluation_batches(2)
    assert first.tolist() == [[0, 1, 2, 3], [24, 25, 26, 27]] and second.tolist() == [
        [48, 49, 50, 51],
        [72, 73, 74, 75],
    ]
    everything = list(Batches(tokens, "validation", seed=2, batch_size=2, context_length=3).evaluation_batches(99))
    assert len(everything) == 12 and np.unique(everything).size == 12 * 2 * 4
    whole = list(Batches(tokens, "validation", seed=2, batch_size=2, context_length=3).evaluation_batches())
    assert np.concatenate(whole).flatten().tolist() == list(range(100))  # 25 windows; three tokens are no window
    assert [len(batch) for batch in whole] == [2] * 12 + [1]


def test_tuning_validates_on_the_end_of_the_training_split_and_does_not_train_on_it(overrides, data_dir):
    data = prepare(load_config("smoke", "dense", 0, overrides).data, data_dir)
    train, validation = data.parts("validation")
    assert (train[:] == data.tokens("train")[:]).all() and (validation[:] == data.tokens("validation")[:]).all()
    trained, held_out = data.parts("tuning")
    assert len(held_out) == len(validation)
    assert (np.concatenate([trained[:], held_out[:]]) == train[:]).all()


def test_too_short_a_split_is_refused():
    with pytest.raises(UserError, match="model.n_positions is 10, longer than the shards allow; allowed: at most 9"):
        Batches(np.arange(10), "train", 0, 1, 10)
    with pytest.raises(UserError, match="train.batch_size is 3, .* shorter than one batch of 12; allowed: at most 2"):
        Batches(np.arange(10), "validation", 0, 3, 3)


# ---- evaluation sets


def test_lastword_items_are_plain_sentences_after_their_context():
    text = (
        "Return the list.\n\nThis sentence is long enough to be\nthe context of what follows here. "
        "It ends with one word. But not this 1. Nor x.y_z() of it ab."
    )
    context = "Return the list. This sentence is long enough to be the context of what follows here"
    assert list(lastword_items(text)) == [context, f"{context}. It ends with one word"]


def test_evaluation_sets_are_held_out_small_and_reused(tmp_path):
    folder = write_evaluation_sets(DataConfig(), tmp_path)
    sets = {file.stem: [json.loads(line)["text"] for line in file.open()] for file in folder.glob("*.jsonl")}
    assert sets.keys() == {"embedded_lastword", "embedded_code", "embedded_prose", "embedded_dependencies"}
    training = "\n".join(
        " ".join(text.split()) for path, text in stdlib_documents() if split_of(path, 0.05, 0.05) == "train"
    )
    for text in sets["embedded_code"] + sets["embedded_prose"]:
        assert " ".join(text.split()) not in training
    for name in ("embedded_code", "embedded_prose", "embedded_dependencies"):
        assert 20_000 < sum(map(len, sets[name])) <= 60_000
    assert 100 <= len(sets["embedded_lastword"]) <= 500
    for item in sets["embedded_lastword"]:
        *context, word = item.split(" ")
        assert len(context) >= 14 and word.isalpha() and len(word) >= 3
    stamps = [file.stat().st_mtime_ns for file in sorted(folder.iterdir())]
    assert write_evaluation_sets(DataConfig(), tmp_path) == folder
    assert [file.stat().st_mtime_ns for file in sorted(folder.iterdir())] == stamps


def test_a_test_split_that_would_be_trained_on_is_refused(tmp_path):
    with pytest.raises(UserError, match="data.test_fraction is 0.02; allowed: at least 0.05"):
        write_evaluation_sets(DataConfig(test_fraction=0.02), tmp_path)
    assert not list(tmp_path.iterdir())
