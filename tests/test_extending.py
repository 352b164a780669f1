"""A researcher's own profile, method and task, from a folder outside the clone, through the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from replication.cli import main
from replication.config.profiles import arm_names, default_seeds, load_config, load_profile, profile_arms
from replication.methods import METHODS, Method, load_plugins, method, register

ROOT = Path(__file__).parents[1]
OWN = "extends: smoke\narms: {soft: {}, sharp: {method: soft, options.sharpness: 2.0}, mst_dense_head: null}\n"
TASK = """
task: my_prose
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
PLUGIN = """
import torch
from replication.methods import Method, register
from replication.sparsity.algorithm import DynamicSparsityAlgorithm

class Soft(DynamicSparsityAlgorithm):
    needs_gradient = True

    def __init__(self, *args, sharpness, **kwargs):
        super().__init__(*args, **kwargs)
        self.sharpness = sharpness

    def grow(self, gradient, eligible, num, generator):
        places = eligible.flatten().nonzero().squeeze(1)
        odds = gradient.abs().flatten()[places].double() ** self.sharpness + 1e-12
        return places[torch.multinomial(odds, num, generator=generator)] if num else places[:0]

register("soft", Method(Soft, defaults={"sharpness": 1.0}))
"""


@pytest.fixture
def outside(tmp_path):
    """A folder with a profile, a plug-in, a task, and names of its own that are ours too."""
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "soft.py").write_text(PLUGIN)
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a sparse mask grows slowly again and again."}) + "\n")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "mine.yaml").write_text(TASK.format(file=tmp_path / "texts.jsonl"))
    (tmp_path / "eval.py").write_text("raise RuntimeError('not ours')")
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "__init__.py").write_text("raise RuntimeError('not ours')")
    return tmp_path


def run(folder, *arguments):
    """The command in a folder, with this source; returns what it printed, and said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "replication", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_profile_method_and_task_of_ones_own_are_trained_scored_and_judged(outside, overrides, data_dir):
    settings = [part for pair in [*overrides, "eval.tasks=[my_prose]"] for part in ("--set", pair)]
    places = ["--data-dir", str(data_dir), "--results", "runs"]
    own = ["--profile", "mine.yaml", "--plugin", "soft.py", "--include-path", "tasks"]
    arms = ["--methods", "dense,rigl,soft,sharp", "--seeds", "0", "--jobs", "2"]
    printed, _ = run(outside, "replicate", *own, *arms, *places, *settings)
    assert re.search(r"^\| soft +\| ", printed, re.MULTILINE) and re.search(r"^\| sharp +\| ", printed, re.MULTILINE)
    assert "my_prose/bits_per_byte" in printed and "soft against RigL" in printed
    folder = outside / "runs" / "mine"
    sharp = folder / "sharp" / "seed-0"
    assert "sharpness: 2.0" in (sharp / "config.yaml").read_text()
    assert (sharp / "masks.npz").read_bytes() != (folder / "soft" / "seed-0" / "masks.npz").read_bytes()
    scores, _ = run(outside, "evaluate", str(sharp / "checkpoint"), "--tasks", "my_prose", "--include-path", "tasks")
    assert scores.startswith("my_prose  bits_per_byte,none  ")


@pytest.mark.slow
def test_evaluate_needs_nothing_but_train_before_it(outside, overrides, tmp_path):
    settings = [part for pair in overrides for part in ("--set", pair)]
    data = ["--data-dir", str(tmp_path / "data")]
    run(outside, "train", "--profile", "smoke", "--method", "static", "--out", "run", *data, *settings)
    printed, said = run(outside, "evaluate", "run/checkpoint", "--tasks", "embedded_lastword", *data)
    assert said == ""  # nothing of lm-eval's, which asks git where there is none
    assert "embedded_lastword  bits_per_byte,none  " in printed


def test_a_profile_that_extends_another_has_what_it_does_not_say(outside, monkeypatch):
    monkeypatch.chdir(outside)
    mine, smoke = load_profile("mine.yaml"), load_profile("smoke")
    assert mine["train"] == smoke["train"] and mine["mst"] == smoke["mst"]
    assert arm_names("mine") == [arm for arm in smoke["arms"] if arm != "mst_dense_head"] + ["soft", "sharp"]
    (outside / "child.yaml").write_text(
        "extends: mine.yaml\narms: {wide: {method: mst, model: {n_embd: 128}, like: mst}}"
    )
    child = load_config("child.yaml", "wide")
    assert child.model.n_embd == 128 and child.model.n_layer == smoke["model"]["n_layer"]
    assert child.reference == load_config("mine", "mst").model and "sharp" in arm_names("child")
    assert load_config("mine", "sharp").options == {"sharpness": 2.0}
    assert load_config("mine", "sharp").profile == "mine" and default_seeds("mine", "soft") == [0, 1, 2]


PROFILES = {  # what a file holds -> what is said of it
    "arms: [": "is no profile",
    "- a": "it holds no keys",
    "arms: {}": "at least one arm",
    "extends: smoke\ntrian: {num_steps: 1}": "trian is {'num_steps': 1}",
    "extends: smoke\narms: {a-b: {}}": "a name of letters",
    "extends: smoke\narms: {own: 3}": "a mapping from dotted keys",
    "extends: smoke\nseeds: {mst: 0}": "1 or more",
    "extends: smoke\nseeds: 3": "a mapping from arms",
    "extends: smoke\narms: {own: {like: nothing}}": "like is 'nothing'",
    "extends: broken.yaml": "not in a circle",
    "extends: smok": "the nearest valid one is 'smoke'",
    "extends: smoke\ntrain: {lr: 1}": "the nearest valid one is 'train.learning_rate'",
    "extends: smoke\nmodel: 3": "model is 3; allowed: a mapping",
    "extends: smoke\nmst:": "mst is None; allowed: a mapping",
    "extends: nowhere.yaml": "extends is 'nowhere.yaml'",
    "extends: [smoke]": "extends is ",
    "extends: smoke\narms: {own: {like: [mst]}}": "like is ['mst']",
    "extends: smoke\narms: {a: {like: b}, b: 3}": "arms.b is 3",
    "extends: smoke\narms: {own: {3: 4}}": "arms.own is {3: 4}",
    "extends: smoke\nseeds: {msst: 5}": "an arm of seeds or tuned is 'msst'",
}


@pytest.mark.parametrize(("text", "says"), PROFILES.items(), ids=list(PROFILES))
def test_a_profile_that_is_none_is_one_line(text, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(text)
    assert main(["plan", "--profile", "broken.yaml", "--method", "mst"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line


def test_the_name_of_a_shipped_profile_is_taken(tmp_path, capsys):
    (tmp_path / "small.yaml").write_text("extends: small\n")
    assert main(["plan", "--profile", str(tmp_path / "small.yaml"), "--method", "mst"]) == 2
    assert "whose name is taken" in capsys.readouterr().err


def test_an_arm_that_changes_the_shape_is_compared_with_the_profiles():
    config = load_config("small", "dense_narrow")
    assert config.model.n_embd == profile_arms("small")["dense_narrow"]["model.n_embd"]
    assert config.reference == load_config("small", "dense").model and load_config("small", "mst").reference is None


PLUGINS = {
    "raise ValueError('my\\nfault')": "cannot be loaded (ValueError: my)",
    "import nothing_there": "No module named 'nothing_there'",
    "from replication.methods import *; register('set', Method(METHODS['rigl'].algorithm))": "is there already",
}


@pytest.mark.parametrize(("source", "says"), PLUGINS.items(), ids=list(PLUGINS))
def test_a_plugin_that_cannot_be_loaded_is_one_line(source, says, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_PLUGINS", "")
    file = tmp_path / "own.py"
    file.write_text(source)
    assert main(["plan", "--profile", "smoke", "--method", "mst", "--plugin", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("name", ["nothing.py", "nothing_there"])
def test_a_plugin_that_is_not_there_is_one_line(name, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_PLUGINS", "")
    assert main(["plan", "--profile", "smoke", "--method", "mst", "--plugin", name]) == 2
    assert capsys.readouterr().err.startswith(f"error: --plugin {name} ")


def test_options_that_a_method_has_not_are_refused(outside, monkeypatch, capsys):
    monkeypatch.chdir(outside)
    monkeypatch.setattr("replication.methods.METHODS", dict(METHODS))
    load_plugins(["soft.py"])
    own = ["--profile", "mine.yaml", "--method"]
    assert main(["plan", *own, "soft", "--set", "options.sharpnes=3"]) == 2
    assert "the nearest valid one is 'sharpness'" in capsys.readouterr().err
    assert main(["plan", *own, "rigl", "--set", "options.sharpness=3"]) == 2
    assert "which rigl does not have" in capsys.readouterr().err


def test_an_installed_packages_method_is_found_by_its_name(monkeypatch):
    class Entry:
        name = "theirs"

        def load(self):
            return Method(METHODS["rigl"].algorithm)

    monkeypatch.setattr("replication.methods._find_installed", lambda: {"theirs": Entry()})
    monkeypatch.setattr("replication.methods.METHODS", dict(METHODS))
    assert method("theirs").is_dynamic
    register("theirs", method("theirs"))  # the same one, once more


def test_print_config_says_which_file_of_a_chain_a_value_is_from(outside, monkeypatch, capsys):
    monkeypatch.chdir(outside)
    (outside / "base.yaml").write_text("extends: smoke\ntrain: {eval_freq: 7, weight_decay: 0.5}\n")
    (outside / "child.yaml").write_text("extends: base.yaml\ntrain: {weight_decay: 0.25}\n")
    command = ["train", "--profile", "child.yaml", "--method", "mst", "--print-config", "--set", "train.num_steps=90"]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for value, source in {
        "weight_decay: 0.25": "profile child",
        "eval_freq: 7": "profile base",
        f"batch_size: {load_config('smoke', 'mst').train.batch_size}": "profile smoke",
        "num_steps: 90": "--set",
    }.items():
        assert f" {value} # {source} " in f"{printed} "


TASKS = {
    "task: [my_prose": "which is no YAML: while parsing",
    TASK.format(file="nothing.jsonl"): "task my_prose cannot be loaded: Unable to find",
}


@pytest.mark.parametrize(("text", "says"), TASKS.items(), ids=["no YAML", "no data"])
def test_a_task_that_cannot_score_is_refused_before_anything_is_trained(
    text, says, outside, overrides, data_dir, monkeypatch, capsys
):
    monkeypatch.chdir(outside)
    monkeypatch.setenv("REPLICATION_TASKS", "")
    (outside / "tasks" / "mine.yaml").write_text(text)
    settings = [part for pair in [*overrides, "eval.tasks=[my_prose]"] for part in ("--set", pair)]
    own = ["--profile", "mine.yaml", "--include-path", "tasks", "--methods", "dense", "--seeds", "0", "--jobs", "1"]
    assert main(["replicate", *own, "--data-dir", str(data_dir), "--results", "runs", *settings]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (outside / "runs" / "mine").exists()


def test_a_plugin_in_a_folder_with_a_colon_finds_the_files_beside_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_PLUGINS", "")
    monkeypatch.setattr("replication.methods.METHODS", dict(METHODS))
    monkeypatch.setattr("sys.path", list(sys.path))
    folder = tmp_path / "a:b c"
    folder.mkdir()
    (folder / "helper_of_mine.py").write_text(PLUGIN.rpartition("register(")[0])
    (folder / "own.py").write_text(
        "from helper_of_mine import Method, Soft, register\nregister('soft', Method(Soft, defaults={'sharpness': 1.0}))"
    )
    (tmp_path / "mine.yaml").write_text(OWN)
    command = ["plan", "--profile", str(tmp_path / "mine.yaml"), "--method", "soft", "--plugin", str(folder / "own.py")]
    assert main(command) == 0
    assert "soft" in capsys.readouterr().out
