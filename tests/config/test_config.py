"""Configuration: what ships, what may be overridden, and what is refused with which line."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from replication.analysis.capacity import EQUAL_FLOPS, LEAST_SHARE, SMALLER
from replication.analysis.readings import READINGS
from replication.config.keys import find_differing_keys
from replication.config.profiles import arm_names, default_seeds, load_config, profile_arms, profile_names
from replication.config.run_config import build_config, sections, without_removed
from replication.flops.plan import plan
from replication.forecast.dry_run import dry_run
from replication.methods import build_algorithm
from replication.system.errors import UserError

ROOT = Path(__file__).parents[2]
TABLE1 = ["dense", "mst", "mst_dense_head"]


@pytest.mark.parametrize("profile", ["smoke", "small", "text", "paper"])
def test_shipped_profiles_load_and_have_table_1s_arms(profile):
    assert profile in profile_names() and set(TABLE1) <= set(arm_names(profile))
    for arm in arm_names(profile):
        config = load_config(profile, arm, seed=3)
        assert (config.profile, config.arm, config.seed) == (profile, arm, 3)
        build_algorithm(config)
    assert load_config(profile, "dense_quarter").train.steps * 4 == pytest.approx(num_steps(profile), abs=2)


def num_steps(profile):
    return load_config(profile, "dense").train.steps


@pytest.mark.parametrize("profile", ["small", "text", pytest.param("paper", marks=pytest.mark.slow)])
def test_profiles_with_verdicts_have_the_smaller_dense_models_of_msts_flops(profile):
    """At most 2 % more, and nine tenths at least, by the count of the reading."""
    for reading in READINGS:
        costs = {
            kind: plan(load_config(profile, reading.arm(kind)))["conventions"][reading.convention]["flops"]
            for kind in ("mst", *SMALLER)
        }
        for kind in SMALLER:
            assert LEAST_SHARE <= costs[kind] / costs["mst"] <= 1 + EQUAL_FLOPS, (reading.name, kind)


@pytest.mark.parametrize("profile", ["small", "text"])
def test_profiles_with_verdicts_train_twenty_tokens_a_parameter(profile):
    needs = dry_run(load_config(profile, "dense"))
    assert needs["tokens"] >= 20 * needs["parameters"]["trained"]


def test_the_paper_profile_is_the_papers_setting():
    config = load_config("paper", "mst")
    train, sparsity = config.train, config.sparsity
    assert dataclasses.astuple(config.model) == (12, 12, 768, 1024)
    assert (train.num_steps, train.batch_size, train.micro_batch_size, train.warmup_steps) == (600_000, 480, 12, 2000)
    assert (train.learning_rate, train.min_learning_rate, train.weight_decay, train.grad_clip) == (6e-4, 6e-5, 0.1, 1.0)
    assert (train.beta1, train.beta2, train.precision, train.eval_freq, train.eval_batches) == (
        0.9,
        0.95,
        "bf16",
        1000,
        100,
    )
    assert (sparsity.update_freq, sparsity.drop_fraction, sparsity.distribution, sparsity.mask_lm_head) == (
        100,
        0.3,
        "er",
        True,
    )
    assert (config.mst.growth, config.mst.random_fraction, config.attention.spans(1024)) == ("mixed", 0.25, (128, 128))
    assert (config.data.hub_name, config.data.tokenizer) == ("Skylion007/openwebtext", "gpt2")


def test_every_value_of_the_paper_profile_carries_its_source():
    text = (ROOT / "replication/config/profiles/paper.yaml").read_text(encoding="utf-8")
    body = text.split("arms:")[0].splitlines()
    values = [line for line in body if ":" in line and not line.startswith("#") and not line.rstrip().endswith(":")]
    assert len(values) > 30
    for line in values:
        assert re.search(r"#.*\b(abstract|readme|code|tmlr|derived|ours)\b", line), line


def test_overrides_are_yaml():
    config = load_config(
        "small",
        "mst",
        0,
        [
            "train.learning_rate=1e-3",
            "train.micro_batch_size=null",
            "mst.sparsity_steps=[[0, 0], [9, 0.5]]",
            "sparsity.mask_lm_head=false",
        ],
    )
    assert (config.train.learning_rate, config.train.micro_batch_size, config.sparsity.mask_lm_head) == (
        1e-3,
        None,
        False,
    )
    assert config.mst.sparsity_steps == ((0, 0.0), (9, 0.5))


def test_an_arm_has_three_seeds_unless_its_profile_says_otherwise():
    assert default_seeds("small", "dense") == default_seeds("text", "dense") == [0, 1, 2]
    assert default_seeds("small", "static") == [0]


def test_an_arm_that_is_like_another_has_its_changes_and_what_was_tuned_for_it():
    assert profile_arms("small")["mst_random_growth"] == profile_arms("small")["mst_dense_head"] | {
        "mst.growth": "random"
    }
    config, base = load_config("small", "mst_random_growth"), load_config("small", "mst_dense_head")
    assert find_differing_keys(config.to_dict(), base.to_dict()) == ["arm", "mst.growth"]
    assert load_config("small", "dense", with_tuned=False).train.learning_rate == 0.012
    assert load_config("small", "dense").train.learning_rate == 0.024


def test_the_learning_rate_ends_at_a_tenth_where_no_other_end_is_set():
    rate = load_config("small", "dense", 0, ["train.learning_rate=0.02"]).train
    assert rate.min_learning_rate is None and rate.final_learning_rate == pytest.approx(0.002)
    assert load_config("paper", "dense").train.final_learning_rate == 6e-5


def test_configuration_is_frozen_and_goes_through_yaml():
    config = load_config("small", "mst", 2, ["mst.drop_fractions=[0.1, 0.2, 0.3]"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.num_steps = 1
    assert build_config(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_differing_keys():
    assert find_differing_keys({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}, "e": 5}) == ["b.c", "b.d", "e"]


REFUSED = [
    ("train.learning_rat=1", "'train.learning_rat'; the nearest valid one is 'train.learning_rate'"),
    ("trian.num_steps=1", "'trian.num_steps'; the nearest valid one is 'train.num_steps"),
    ("train.num_steps.x=1", "train.num_steps.x"),
    ("train.num_steps=many", "train.num_steps is 'many'; allowed: .*integer"),
    ("train.num_steps=1.5", "train.num_steps is 1.5; allowed: .*integer"),
    ("train.compile=perhaps", "train.compile is 'perhaps'; allowed: .*boolean"),
    ("train.precision=fp16", "train.precision is 'fp16'; allowed: 'auto', 'bf16' or 'fp32'"),
    ("train.learning_rate=[", "YAML"),
    ("train.learning_rate=.inf", "train.learning_rate is inf; allowed: .*finite"),
    ("train.num_steps=0", "train.num_steps is 0; allowed: 1 or more"),
    ("train.micro_batch_size=3", "train.micro_batch_size is 3; allowed: a divisor of train.batch_size = 16"),
    ("train.warmup_steps=2000", "train.warmup_steps is 2000; allowed: 0 to the 1650 steps"),
    ("model.n_head=5", "model.n_head is 5; allowed: a divisor"),
    ("sparsity.sparsity=1", "sparsity.sparsity is 1.0; allowed: 0 <= sparsity < 1"),
    ("sparsity.sparsity=-0.1", "sparsity.sparsity is -0.1"),
    ("sparsity.sparsity=.nan", "sparsity.sparsity is nan"),
    ("sparsity.update_end_step=2000", "sparsity.update_end_step is 2000; allowed: at most the 1650 steps"),
    ("sparsity.drop_fraction=1.1", "sparsity.drop_fraction is 1.1; allowed: 0 to 1"),
    ("mst.ultra_sparsity=1", "mst.ultra_sparsity is 1.0"),
    ("mst.final_sparsity=0.99", "mst.final_sparsity is 0.99; allowed: at most mst.ultra_sparsity"),
    ("mst.warmup_end=0.9", "phases neither overlap nor exceed"),
    ("mst.restoration_end=1.5", "phases neither overlap nor exceed"),
    ("mst.sparsity_steps=[[5, 0.5]]", "rising steps, the first of them 0"),
    ("mst.sparsity_steps=[[0, 0.5], [1650, 0.6]]", "mst.sparsity_steps is 1650; allowed: steps below the 1650"),
    ("attention.window=0", "attention.window is 0"),
    ("attention.end_step=2000", "attention.end_step is 2000"),
    ("data.vocab_size=70000", "data.vocab_size is 70000; allowed: 257"),
    ("data.source=files", "data.files is \\[\\]; allowed: at least one file"),
    ("seed=5", "--set is seed=5; allowed: keys other than profile, arm, method, seed"),
    ("method=dense", "--set is method=dense; allowed: keys other than"),
    ("arm=dense", "--set is arm=dense; allowed: keys other than"),
    ("profile=text", "--set is profile=text; allowed: keys other than"),
    ("model={n_embd: 64}", r"--set is model=\{n_embd: 64\}; allowed: one key of the section, as in model.n_layer="),
    ("data.files=[a[1].txt]", "names with brackets, commas or colons in quotes"),
]


@pytest.mark.parametrize(("override", "says"), REFUSED, ids=[override for override, _ in REFUSED])
def test_refused(override, says):
    with pytest.raises(UserError, match=says) as refusal:
        load_config("small", "mst", 0, [override])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("profile", "arm", "says"),
    [("smal", "mst", "profile is 'smal'.*'small'"), ("small", "riggl", "method is 'riggl'.*'rigl'.*allowed: dense, ")],
)
def test_unknown_profile_or_method_names_the_nearest(profile, arm, says):
    with pytest.raises(UserError, match=says):
        load_config(profile, arm)


def test_conda_and_pip_install_the_same_set():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [part["pip"] for part in conda if isinstance(part, dict)]
    extras = project["optional-dependencies"]
    assert sorted(pip) == sorted(project["dependencies"] + extras["test"] + extras["notebooks"] + extras["search"])
    assert "python=3.11" in conda and project["requires-python"] == ">=3.11" and "torch==2.13.0" in pip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("eval.at=phases", "eval.at is 'phases'; allowed: a list, as in [a, b]"),
        ("eval.at=[[0.5]]", "eval.at.0 is [0.5]; allowed: a valid number"),
        ("sparsity.metrics=dead", "sparsity.metrics is 'dead'; allowed: a list, as in [a, b]"),
    ],
)
def test_a_list_is_called_a_list_and_a_key_by_its_name(given, said):
    with pytest.raises(UserError) as error:
        load_config("smoke", "mst", 0, [given])
    assert str(error.value) == said


def test_a_key_of_an_earlier_version_that_changed_nothing_is_read_over():
    assert without_removed({"sparsity": {"growth_steps": 1, "sparsity": 0.8}}) == {"sparsity": {"sparsity": 0.8}}
    other = {"sparsity": {"growth_steps": 4}, "train": None}
    assert without_removed(other) == {"sparsity": {"growth_steps": 4}, "train": None}


FIELDS = {  # a new one is a decision: what differs between no two runs is no field
    "data": "source files validation_files hub_name hub_config hub_split text_column validation_fraction "
    "test_fraction tokenizer vocab_size gpt2_folder",
    "model": "n_layer n_head n_embd n_positions",
    "train": "num_steps steps_fraction batch_size micro_batch_size learning_rate min_learning_rate warmup_steps "
    "warmup_from weight_decay decayed beta1 beta2 grad_clip precision kernels compile eval_freq "
    "eval_batches validation_part log_freq checkpoint_freq",
    "sparsity": "sparsity distribution initial_mask update_freq update_start_step update_end_step drop_fraction "
    "update_replaces_step mask_lm_head reset_moments growth_gradient growth_score split_qkv clip_norm "
    "block_shape metrics",
    "mst": "phases slope warmup_start warmup_end restoration_start restoration_end ultra_sparsity final_sparsity "
    "sparsity_steps drop_fractions growth random_fraction sparsity_variation hybrid_attention",
    "attention": "pattern window stride start_step end_step",
    "eval": "tasks at keep_weights",
}


def test_the_fields_are_these():
    found = {section: [*keys] for section, keys in sections().items() if section != "options"}
    assert found == {section: names.split() for section, names in FIELDS.items()}
