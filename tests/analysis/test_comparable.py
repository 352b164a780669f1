"""What stands in one table, and what may be compared in it."""

import hashlib
import shutil

import pytest
from synthetic_runs import edit_json, facts, write_runs

from replication.analysis.ablations import ablations, write_ablations
from replication.analysis.arms import group_by_arm
from replication.analysis.claims import NOT_TESTED, verdicts
from replication.analysis.clock import SAME
from replication.analysis.comparable import Facts, check_one_text, differences
from replication.analysis.tables import table1, write_table1
from replication.config.profiles import load_config
from replication.runs.finding import find_runs, sort_out_runs
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import read_json, write_sealed

DENSE, MST, SMALL = [3.80, 3.81, 3.82], [3.70, 3.71, 3.72], [4.5, 4.6, 4.7]
OTHER = {"train": "a" * 64, "validation": "b" * 64}


def set_config(run, section, key, value):
    """As if the run had been trained with it."""
    config = run.config()
    run.write_config(config | {section: config[section] | {key: value}})
    run.write_status("finished", **{name: run.status()[name] for name in ("step", "seconds", "tokens_per_second")})


# ---- settings


@pytest.mark.parametrize("arm", ["dense_bf16", "dense_quarter", "static", "set", "rigl", "mst"])
def test_the_arms_of_a_profile_compare_as_they_ship(arm):
    assert differences(facts("dense"), facts(arm)) == differences(facts(arm), facts("mst")) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.num_steps=700", "train.num_steps (1650, 700)"),
        ("train.weight_decay=0.2", "train.weight_decay (0.1, 0.2)"),
        ("model.n_layer=3", "model.n_layer (2, 3)"),
    ],
)
def test_another_setting_is_named_with_both_values(override, says):
    assert differences(facts("dense"), facts("mst", override)) == [says]


@pytest.mark.parametrize(
    ("arm", "other", "override"),
    [
        ("dense", "mst", "mst.ultra_sparsity=0.9"),  # dense reads none of MST's keys
        ("dense", "rigl", "sparsity.sparsity=0.5"),
        ("static", "rigl", "sparsity.update_freq=50"),
        ("rigl", "mst", "attention.window=4"),
        ("rigl", "mst", "sparsity.sparsity=0.5"),  # MST has sparsities of its own
        ("dense", "mst", "train.log_freq=1"),
        ("dense", "mst", "eval.tasks=[embedded_prose]"),
    ],
)
def test_what_one_of_two_does_not_read_or_no_loss_depends_on_is_no_difference(arm, other, override):
    assert differences(facts(arm), facts(other, override)) == []


def test_what_both_read_is_one():
    assert differences(facts("set"), facts("rigl", "sparsity.initial_mask=magnitude")) == [
        "sparsity.initial_mask (random, magnitude)"
    ]
    another = differences(facts("set"), facts("rigl", "sparsity.drop_fraction=0.5"))  # which was tuned
    assert "sparsity.drop_fraction (0.5 in rigl/seed-0, 0.03 in the profile)" in another


def test_what_was_tuned_is_no_difference_unless_it_is_set_otherwise():
    assert differences(facts("dense"), facts("mst")) == []  # at learning rates of their own
    rate = load_config("small", "mst").train.learning_rate
    assert differences(facts("dense"), facts("mst", "train.learning_rate=1e-3")) == [
        f"train.learning_rate (0.001 in mst/seed-0, {rate} in the profile)"
    ]
    assert differences(facts("dense", "train.learning_rate=1e-3"), facts("mst", "train.learning_rate=1e-3")) == []


def test_an_arm_whose_run_is_not_what_the_profile_says_of_it_differs():
    run = facts("mst", profile="text")
    dressed = Facts(run.name, run.config | {"method": "dense"}, run.environment)
    assert differences(facts("static", profile="text"), dressed) == ["method (dense in mst/seed-0, mst in the profile)"]
    small = facts("dense_narrow", profile="text")
    edited = Facts(small.name, small.config | {"model": small.config["model"] | {"n_embd": 64}}, small.environment)
    assert differences(facts("dense", profile="text"), small) == []
    assert differences(facts("dense", profile="text"), edited) == [
        "model.n_embd (64 in dense_narrow/seed-0, 25 in the profile)"
    ]


def test_an_automatic_precision_is_what_it_came_to():
    dense, mst = (
        facts(arm, profile="text", precision=precision) for arm, precision in (("dense", "bf16"), ("mst", "fp32"))
    )
    assert differences(dense, mst) == ["train.precision (bf16, fp32)"]
    assert differences(dense, facts("mst", profile="text", precision="bf16")) == []


def test_claims_say_which_keys_differ_instead_of_a_verdict(tmp_path):
    losses = {"dense": DENSE, "dense_narrow": SMALL, "dense_shallow": SMALL, "static_4x": [3.9, 3.9, 4.0], "mst": MST}
    write_runs(tmp_path, losses)
    assert not any(verdict.verdict == NOT_TESTED for verdict in verdicts(find_runs(tmp_path, "small")))
    for seed in range(3):
        set_config(RunFolder(tmp_path / "small" / "mst" / f"seed-{seed}"), "train", "batch_size", 8)
    found = find_runs(tmp_path, "small")
    judged = verdicts(found)
    assert {verdict.verdict for verdict in judged} == {NOT_TESTED} and [verdict.claim for verdict in judged] == [
        "C1",
        "C2",
        "C3",
        "C4",
    ]
    assert all("train.batch_size (16, 8)" in verdict.detail or "(8, 16)" in verdict.detail for verdict in judged)
    clock = table1(found).set_index("arm")[SAME]
    assert clock["static_4x"] > 0 and not clock["mst"] > 0


def test_ablations_give_no_difference_between_what_does_not_compare(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "rigl_dense_head": MST, "rigl_plain_growth": [4.0, 4.0, 4.0]}, "text")
    for seed in range(3):
        set_config(RunFolder(tmp_path / "text" / "rigl_plain_growth" / f"seed-{seed}"), "train", "num_steps", 77)
    table = ablations(group_by_arm(find_runs(tmp_path, "text")), "text").set_index("arm")
    assert table.loc["rigl_plain_growth", ["minus_base", "minus_dense"]].isna().all()
    assert table.loc["rigl_dense_head", "minus_dense"] == pytest.approx(-0.1)
    text = write_ablations(tmp_path, "text")
    assert (
        "Not compared: RigL, dense head and RigL, growth by plain gradient differ in train.num_steps (2200, 77)" in text
    )
    assert "num_steps=77" in next(line for line in text.splitlines() if line.startswith("| RigL, growth by plain"))


def test_seeds_of_an_arm_share_their_settings(tmp_path):
    write_runs(tmp_path, {"dense": DENSE})
    set_config(RunFolder(tmp_path / "small" / "dense" / "seed-1"), "train", "weight_decay", 0.2)
    with pytest.raises(
        UserError,
        match=r"dense/seed-0 and dense/seed-1 are no seeds of one run: they differ in train.weight_decay \(0.1, 0.2\)",
    ):
        write_table1(tmp_path, "small")


# ---- text


def test_runs_on_different_texts_share_no_table(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "mst": MST})
    edit_json(tmp_path / "small" / "mst" / "seed-2" / "environment.json", "shards", OTHER)
    for build in (lambda: write_table1(tmp_path, "small"), lambda: verdicts(find_runs(tmp_path, "small"))):
        with pytest.raises(
            UserError,
            match="dense/seed-0 and mst/seed-2 were trained on different texts .*000000000000….*aaaaaaaaaaaa…",
        ):
            build()
    assert not (tmp_path / "small" / "table1.md").exists()


def test_the_same_text_from_another_file_is_the_same_text():
    moved = facts("mst", "data.source=files", "data.files=[elsewhere.txt]")
    assert differences(facts("dense"), moved) == []
    check_one_text([facts("dense"), moved])


def test_an_older_run_that_recorded_no_text_makes_no_two_texts_one():
    old, one, other = (
        facts("dense", shards=None, python="3.11.7"),
        facts("mst", python="3.11.7"),
        facts("rigl", python="3.11.7", shards=OTHER),
    )
    check_one_text([old, one])
    check_one_text([old, other])
    with pytest.raises(UserError, match="mst/seed-0 and rigl/seed-0 were trained on different texts"):
        check_one_text([old, one, other])
    assert differences(one, other) == ["their text (train shard 000000000000…; train shard aaaaaaaaaaaa…)"]


def test_a_setting_that_is_another_arms_own_is_the_profiles_in_this_one():
    half = facts("dense", "train.steps_fraction=0.5")  # whose quarter would be a half
    assert differences(half, facts("dense_quarter")) == [
        "train.steps_fraction (0.5 in dense/seed-0, 1.0 in the profile)"
    ]


def test_what_an_arm_sets_and_another_does_not_read_is_no_difference():
    everywhere = ("sparsity.sparsity=0.7",)  # given to all arms but the one that sets it itself
    assert differences(facts("mst", *everywhere, profile="text"), facts("set_4x", profile="text")) == []
    assert differences(facts("static", *everywhere, profile="text"), facts("set_4x", profile="text")) == [
        "sparsity.sparsity (0.7 in static/seed-0, 0.8 in the profile)"
    ]


def test_the_table_says_what_is_not_as_in_the_profile_and_what_does_not_compare(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "static": [3.9, 3.9, 4.0], "mst": MST})
    for seed in range(3):
        set_config(RunFolder(tmp_path / "small" / "mst" / f"seed-{seed}"), "mst", "growth", "random")
        set_config(RunFolder(tmp_path / "small" / "static" / f"seed-{seed}"), "train", "batch_size", 4)
    text = " ".join(write_table1(tmp_path, "small").split())
    assert "growth=random (MST)." in text and "batch_size=4 (static)." in text
    assert "Not to be compared: dense and static differ in train.batch_size (16, 4)" in text
    reductions = next(line for line in text.split("| static")[2:] if "–" in line)
    assert reductions.count("–") >= 5


def test_runs_from_before_they_recorded_their_text_go_by_its_source():
    dense, mst = (facts(arm, shards=None, python="3.11.7") for arm in ("dense", "mst"))
    check_one_text([dense, mst, facts("rigl", python="3.11.7")])
    with pytest.raises(UserError, match="different texts"):
        check_one_text([dense, facts("mst", shards=None, python="3.12.1")])
    with pytest.raises(UserError, match="different texts"):
        check_one_text([dense, facts("mst", "data.vocab_size=300", shards=None, python="3.11.7")])


def test_scores_on_different_evaluation_sets_share_no_table(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "mst": MST})
    for arm, digest in (("dense", "a" * 64), ("mst", "b" * 64)):
        edit_json(tmp_path / "small" / arm / "seed-0" / "eval" / "embedded_code.json", "evaluation_set", digest)
    with pytest.raises(
        UserError, match="dense/seed-0 and mst/seed-0 were scored by embedded_code on different evaluation sets"
    ):
        write_table1(tmp_path, "small")


# ---- what is left out


def test_a_damaged_run_is_left_out_and_said_so(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "mst": MST})
    file = tmp_path / "small" / "mst" / "seed-1" / "metrics.jsonl"
    file.write_text(file.read_text().replace("3.71", "3.11"))
    runs, left_out = sort_out_runs(tmp_path, "small")
    assert [run.name for run in runs] == [
        f"{arm}/seed-{seed}" for arm in ("dense", "mst") for seed in range(3) if (arm, seed) != ("mst", 1)
    ]
    (line,) = left_out
    assert line.startswith("mst/seed-1: ") and "metrics.jsonl is damaged" in line
    text = write_table1(tmp_path, "small")
    assert "## Left out" in text and "metrics.jsonl is damaged" in " ".join(text.split())
    with pytest.warns(UserWarning, match="left out: mst/seed-1"):
        find_runs(tmp_path, "small")


def test_a_run_without_a_status_or_in_a_second_folder_of_its_seed_is_left_out(tmp_path):
    write_runs(tmp_path, {"dense": DENSE})
    (tmp_path / "small" / "dense" / "seed-1" / "status.json").unlink()
    shutil.copytree(tmp_path / "small" / "dense" / "seed-2", tmp_path / "small" / "dense" / "seed-02")
    (tmp_path / "small" / "dense" / "seed-9").mkdir()
    runs, left_out = sort_out_runs(tmp_path, "small")
    assert [run.name for run in runs] == ["dense/seed-0", "dense/seed-2"]
    assert (
        "dense/seed-1/status.json is damaged (it is missing)" in left_out[0]
        and "copied or moved" in left_out[1]
        and len(left_out) == 2
    )


def test_scores_of_another_checkpoint_are_told(tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:1]})
    run = RunFolder(tmp_path / "small" / "dense" / "seed-0")
    run.checkpoint.mkdir()
    (run.checkpoint / "model.safetensors").write_text("weights")
    run.write_status("finished", step=400, seconds=1.0, tokens_per_second=1.0)
    score = run.path / "eval" / "embedded_code.json"
    own = hashlib.sha256(b"weights").hexdigest()
    write_sealed(score, read_json(score) | {"checkpoint": own})
    assert sort_out_runs(tmp_path, "small")[1] == []
    write_sealed(score, read_json(score) | {"checkpoint": "0" * 64})
    (line,) = sort_out_runs(tmp_path, "small")[1]
    assert "embedded_code.json is damaged (it is of another checkpoint)" in line


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", "[1]\n"),
        ("metrics.jsonl", ""),
        ("flops.json", '{"conventions": []}'),
        ("flops.json", "[]"),
        ("status.json", '{"status": "finished"}'),
        ("status.json", '{"status": "finished", "sha256": []}'),
        ("status.json", "5"),
        ("config.yaml", "date: 2020-13-45"),
        ("environment.json", "[" * 5000),
        ("eval/embedded_code.json", "1" * 5000),
    ],
)
def test_whatever_a_file_of_a_run_from_before_checksums_holds_it_is_told_by_name(file, text, tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:2]})
    damaged = tmp_path / "small" / "dense" / "seed-1"
    edit_json(damaged / "status.json", "seconds", 20.0)
    (damaged / file).write_text(text)
    runs, left_out = sort_out_runs(tmp_path, "small")
    assert [run.name for run in runs] == ["dense/seed-0"]
    if file != "status.json" or "finished" in text:
        assert len(left_out) == 1 and f"{file} is damaged" in left_out[0] and "\n" not in left_out[0]


def test_a_run_copied_into_another_seeds_place_is_left_out(tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:1], "mst": MST[:1]})
    shutil.copytree(tmp_path / "small" / "dense" / "seed-0", tmp_path / "small" / "dense" / "seed-1")
    shutil.copytree(tmp_path / "small" / "dense" / "seed-0", tmp_path / "small" / "static" / "seed-0")
    runs, left_out = sort_out_runs(tmp_path, "small")
    assert [run.name for run in runs] == ["dense/seed-0", "mst/seed-0"]
    assert (
        all("('small', 'dense', 0)" in line and "copied or moved" in line for line in left_out) and len(left_out) == 2
    )
