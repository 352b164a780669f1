"""The commands as a user types them: what they print, their exit codes, and that bad input touches nothing."""

import json
import os
import shutil

import pytest
import yaml
from command_lines import train_command

from replication.cli import main
from replication.cli.parsing import names, seeds
from replication.config import printing
from replication.config.run_config import sections
from replication.runs.folder import RunFolder
from replication.system.hub import offline_if_unreachable


@pytest.fixture
def settings(overrides):
    return [part for override in overrides for part in ("--set", override)]


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


BAD_INPUT = {
    "unknown profile": (
        ["train", "--profile", "smal", "--method", "mst", "--out", "{out}"],
        ["profile", "'smal'", "'small'"],
    ),
    "unknown method": (
        ["train", "--profile", "smoke", "--method", "riggl", "--out", "{out}"],
        ["method", "'riggl'", "'rigl'"],
    ),
    "unknown method in a list": (
        ["replicate", "--profile", "smoke", "--methods", "dense,riggl", "--results", "{out}"],
        ["method", "'riggl'", "'rigl'"],
    ),
    "unknown key": (
        ["plan", "--method", "mst", "--set", "train.learning_rat=1"],
        ["train.learning_rat", "'train.learning_rate'"],
    ),
    "wrong type": (
        ["plan", "--method", "mst", "--set", "train.num_steps=many"],
        ["train.num_steps", "'many'", "integer"],
    ),
    "no value": (["plan", "--method", "mst", "--set", "train.num_steps"], ["train.num_steps", "key=value"]),
    "sparsity of 1": (
        ["plan", "--method", "rigl", "--set", "sparsity.sparsity=1"],
        ["sparsity.sparsity", "1.0", "< 1"],
    ),
    "negative sparsity": (
        ["plan", "--method", "mst", "--set", "mst.ultra_sparsity=-0.1"],
        ["mst.ultra_sparsity", "-0.1"],
    ),
    "phases overlap": (
        ["plan", "--method", "mst", "--set", "mst.warmup_end=0.8"],
        ["mst.warmup_end", "0.8", "overlap"],
    ),
    "phases exceed training": (
        ["plan", "--method", "mst", "--set", "mst.restoration_end=1.2"],
        ["mst.restoration_end", "1.2", "exceed"],
    ),
    "seeds": (
        ["replicate", "--profile", "smoke", "--seeds", "0,one", "--results", "{out}"],
        ["seeds", "'0,one'", "whole numbers"],
    ),
    "jobs": (["replicate", "--profile", "smoke", "--jobs", "0", "--results", "{out}"], ["--jobs", "0", "1 or more"]),
    "seed": (["train", "--profile", "smoke", "--method", "mst", "--seed", "x", "--out", "{out}"], ["--seed", "'x'"]),
    "missing corpus": (
        [
            "train",
            "--profile",
            "smoke",
            "--method",
            "mst",
            "--out",
            "{out}",
            "--set",
            "data.source=files",
            "--set",
            "data.files=[nowhere.txt]",
        ],
        ["data.files", "nowhere.txt"],
    ),
    "seed by --set": (
        ["train", "--profile", "smoke", "--method", "mst", "--out", "{out}", "--set", "seed=5"],
        ["--set", "seed=5", "options of their own"],
    ),
    "method by --set": (
        ["plan", "--method", "mst", "--set", "method=dense"],
        ["--set", "method=dense", "options of their own"],
    ),
    "no update": (
        ["train", "--profile", "smoke", "--method", "mst", "--out", "{out}", "--set", "sparsity.update_freq=500"],
        ["sparsity.update_freq", "500", "allowed"],
    ),
    "no update in a plan": (
        ["plan", "--profile", "smoke", "--method", "rigl", "--set", "sparsity.update_freq=500"],
        ["sparsity.update_freq", "500", "allowed"],
    ),
    "no weight": (
        [
            "train",
            "--profile",
            "smoke",
            "--method",
            "rigl",
            "--dry-run",
            "--devices",
            "1",
            "--set",
            "sparsity.sparsity=0.99999",
        ],
        ["sparsity.sparsity", "0.99999"],
    ),
    "negative decay": (
        ["plan", "--method", "mst", "--set", "train.weight_decay=-1"],
        ["train.weight_decay", "-1.0", "0 or more"],
    ),
    "beta of 1": (["plan", "--method", "mst", "--set", "train.beta1=1.0"], ["train.beta1", "1.0", "below 1"]),
    "no date": (["plan", "--method", "mst", "--set", "train.num_steps=2001-99-99"], ["train.num_steps", "YAML value"]),
    "nested": (["plan", "--method", "mst", "--set", "data.files=" + "[" * 3000], ["data.files", "YAML value"]),
    "no number": (
        ["plan", "--method", "mst", "--target-reduction", "4", "--fix", "ultra_sparsity=nan"],
        ["--fix", "nan", "NUMBER"],
    ),
    "no methods": (["replicate", "--profile", "smoke", "--methods", ",", "--results", "{out}"], ["--methods", "','"]),
    "a name too long": (
        ["train", "--profile", "smoke", "--method", "mst", "--out", "{out}" + "x" * 300],
        ["x" * 300, "name too long"],
    ),
    "no tasks": (["evaluate", "{out}", "--tasks", ","], ["--tasks", "empty"]),
    "no checkpoint": (["evaluate", "{out}", "--tasks", "embedded_lastword"], ["checkpoint"]),
}


@pytest.mark.parametrize(("command", "says"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2_and_touches_nothing(command, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = main([part.replace("{out}", str(tmp_path / "out")) for part in command])
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    for part in says:
        assert part in printed.err
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("override", ["model.n_positions=50000", "train.batch_size=4000"])
def test_a_context_or_batch_beyond_the_shards_touches_no_run(override, settings, data_dir, tmp_path, capsys):
    command = train_command("mst", tmp_path / "run", data_dir, *settings, "--set", override)
    assert main(command) == 2
    assert override.split("=")[0] in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_leaves_a_checkpoint_and_a_finished_run_as_it_is(settings, data_dir, tmp_path, capsys):
    command = train_command("set", tmp_path, data_dir, *settings)
    assert main(command) == 0 and (tmp_path / "checkpoint" / "model.safetensors").exists()
    before = snapshot(tmp_path)
    assert main(command) == 0 and snapshot(tmp_path) == before
    assert main([*command, "--set", "train.beta2=0.9"]) == 2 and snapshot(tmp_path) == before
    assert "train.beta2" in capsys.readouterr().err


def test_unknown_task_is_named_with_the_nearest(settings, data_dir, tmp_path, capsys):
    main(train_command("set", tmp_path, data_dir, *settings))
    capsys.readouterr()
    assert (
        main(["evaluate", str(tmp_path / "checkpoint"), "--tasks", "embedded_lastwrd", "--data-dir", str(data_dir)])
        == 2
    )
    error = capsys.readouterr().err
    assert "embedded_lastwrd" in error and "embedded_lastword" in error and error.count("\n") == 1


def test_a_runs_checkpoint_is_scored_only_as_it_was_written(settings, data_dir, tmp_path, capsys):
    """Also where its tensors fit what was changed, as with another number of heads."""
    main(train_command("set", tmp_path, data_dir, *settings))
    file = tmp_path / "checkpoint" / "config.json"
    file.write_text(file.read_text().replace('"n_head": 2', '"n_head": 4'))
    capsys.readouterr()
    assert (
        main(["evaluate", str(tmp_path / "checkpoint"), "--tasks", "embedded_prose", "--data-dir", str(data_dir)]) == 2
    )
    error = capsys.readouterr().err
    assert (
        error.startswith(f"error: {file} is damaged (its sha256 is not the one that was recorded)")
        and error.count("\n") == 1
    )
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
def test_another_folder_in_a_run_is_not_its_checkpoint(settings, data_dir, tmp_path, capsys):
    main(train_command("set", tmp_path / "run", data_dir, *settings))
    main(["data", "--profile", "smoke", "--data-dir", str(data_dir), *settings])
    shutil.copytree(tmp_path / "run" / "checkpoint", tmp_path / "run" / "other")
    score = ["--tasks", "embedded_prose", "--data-dir", str(data_dir)]
    assert main(["evaluate", str(tmp_path / "run" / "other"), *score]) == 0 and not (tmp_path / "run" / "eval").exists()
    (tmp_path / "link").symlink_to(tmp_path / "run" / "checkpoint")
    assert (
        main(["evaluate", str(tmp_path / "link"), *score]) == 0
        and (tmp_path / "run" / "eval" / "embedded_prose.json").exists()
    )
    (tmp_path / "run" / "config.yaml").unlink()
    assert main(["evaluate", str(tmp_path / "run" / "checkpoint"), *score]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_names_given_twice_count_once():
    assert names(" set, dense,set") == ["set", "dense"]
    assert seeds("2,0,2") == [2, 0] and names("set,dense,set") == ["set", "dense"]


def test_plan_prints_the_ledger_as_json(capsys):
    assert main(["plan", "--profile", "paper", "--method", "mst", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert set(ledger["conventions"]["head_counted_full"]) == {"dense_flops", "flops", "reduction"}
    assert (
        set(ledger["phases"]) == {"warm-up", "ultra-sparsification", "restoration"}
        and "head_forward" in ledger["components"]
    )


@pytest.mark.slow
def test_replicate_trains_scores_tabulates_and_then_only_tabulates(settings, data_dir, tmp_path, capsys):
    command = [
        "replicate",
        "--profile",
        "smoke",
        "--methods",
        "dense,mst",
        "--seeds",
        "0",
        "--results",
        str(tmp_path),
        "--data-dir",
        str(data_dir),
        *settings,
    ]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert (
        "It gives no verdict" in table
        and (tmp_path / "smoke" / "table1.csv").exists()
        and (tmp_path / "smoke" / "table1.md").exists()
    )
    runs = [RunFolder(tmp_path / "smoke" / arm / "seed-0") for arm in ("dense", "mst")]
    assert all(set(run.evals()) == {"embedded_lastword", "embedded_prose"} for run in runs)
    assert main(["evaluate", str(runs[0].checkpoint), "--tasks", "embedded_code", "--data-dir", str(data_dir)]) == 0
    assert "embedded_code  bits_per_byte,none" in capsys.readouterr().out and "embedded_code" in runs[0].evals()
    (runs[0].path / "eval" / "embedded_code.json").unlink()
    before = snapshot(tmp_path)
    assert main(command) == 0 and capsys.readouterr().out == table and snapshot(tmp_path) == before
    # Logs without a checkpoint, as committed ones are: trained and scored again, to the same end.
    shutil.rmtree(runs[1].checkpoint)
    score = runs[1].path / "eval" / "embedded_prose.json"
    score.write_text('{"results": {}}')
    assert main(command) == 0 and (runs[1].checkpoint / "model.safetensors").exists()
    assert (
        json.loads(score.read_text())["results"]
        == json.loads(before["smoke/mst/seed-0/eval/embedded_prose.json"])["results"]
    )
    assert (runs[0].path / "status.json").read_bytes() == before["smoke/dense/seed-0/status.json"]


@pytest.mark.parametrize(
    ("environment", "offline"),
    [
        ({"HF_ENDPOINT": "http://localhost:9"}, "1"),
        ({"HF_ENDPOINT": "http://localhost:9", "https_proxy": "http://localhost:9"}, None),
        ({"HF_HUB_OFFLINE": "0"}, "0"),
    ],
)
def test_an_unreachable_hub_switches_its_libraries_offline(environment, offline, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    offline_if_unreachable()
    assert os.environ.get("HF_HUB_OFFLINE") == offline


def test_print_config_says_where_each_value_is_from(capsys):
    command = ["plan", "--profile", "small", "--method", "dense_narrow", "--seed", "2", "--set", "train.grad_clip=2"]
    assert main([*command, "--print-config"]) == 0
    printed = capsys.readouterr().out
    source = {line.partition(":")[0].strip(): line.partition("# ")[2] for line in printed.splitlines() if "#" in line}
    assert source["n_embd"] == "arm dense_narrow" and source["grad_clip"] == "--set" and source["beta1"] == "default"
    assert source["num_steps"] == "profile small" and source["learning_rate"] == "tuned for dense_narrow"
    values = yaml.safe_load(printed)
    assert values.pop("seed") == 2 and values["model"]["n_embd"] == 19 and values["train"]["grad_clip"] == 2


def test_help_lists_arms_and_fields_with_their_meaning(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "small: dense, dense_nine_tenths, dense_one_layer, dense_narrow" in printed
    assert "train.grad_clip=1.0 largest gradient norm" in printed and "mst.random_fraction=0.25 share of" in printed


@pytest.mark.parametrize("section", [section for section in sections() if section != "options"])
def test_every_field_has_its_meaning_in_the_help(section):
    assert printing._meanings(section).keys() == sections()[section].keys()


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_and_version(shell, capsys):
    for arguments in (["--print-completion", shell], ["--version"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "replicate" in printed and printed.splitlines()[-1].startswith("mst-replication")


@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_a_target_that_no_setting_reaches_has_one_exit_code(json_too, capsys):
    assert main(["plan", "--profile", "small", "--method", "mst", "--target-reduction", "9000", *json_too]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: --target-reduction is 9000")
    assert not json_too or json.loads(printed.out)["solutions"] == []


SLIPS = {"train.lr=1": "train.learning_rate", "lr=1": "train.learning_rate", "model.hidden_size=8": "model.n_embd"}


@pytest.mark.parametrize(("slip", "meant"), SLIPS.items(), ids=list(SLIPS))
def test_a_name_that_other_codes_have_is_known(slip, meant, capsys):
    assert main(["plan", "--method", "mst", "--set", slip]) == 2
    assert f"the nearest valid one is {meant!r}" in capsys.readouterr().err


def test_a_method_is_found_whatever_its_case(capsys):
    assert main(["plan", "--method", "MST"]) == 2
    assert "the nearest valid one is 'mst'" in capsys.readouterr().err
