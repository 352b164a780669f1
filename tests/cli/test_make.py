"""make hands its variables on as data, whatever they hold, and installs in any folder."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from replication.cli.parsing import settings

ROOT = Path(__file__).resolve().parents[2]
ODD = """a b'c"d$(touch x)`touch x`;touch x #%\\*"""
ECHO = """#!/bin/bash
for argument in "$@"; do printf '<%s>\\n' "$argument"; done
printf 'SET<%s>\\n' "$REPLICATION_SET"
"""


@pytest.fixture
def make(tmp_path):
    """make(target, **variables) -> the lines of an environment's Python that prints what it is called with."""
    environment = tmp_path / "an 'environment' of $x"
    (environment / "bin").mkdir(parents=True)
    python = environment / "bin" / "python"
    python.write_text(ECHO)
    python.chmod(0o755)
    os.utime(python, (0, 0))
    (environment / ".mst-replication-installed").touch()
    for tool in ("lint-imports", "clang-format"):
        shutil.copy2(python, python.with_name(tool))

    def run(target, **variables):
        given = [f"{name}={value}" for name, value in variables.items()]
        own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        own["VIRTUAL_ENV"] = str(environment)
        done = subprocess.run(["make", "-C", ROOT, target, *given], env=own, capture_output=True, text=True)
        assert done.returncode == 0 and not (ROOT / "x").exists(), done.stderr
        return [line for line in done.stdout.splitlines() if line[0] in "<S"]

    return run


@pytest.mark.parametrize("target", ["replicate-table1", "replicate-ablations", "tune"])
def test_variables_reach_the_command_as_they_are(target, make):
    lines = make(target, METHODS=ODD, SEEDS=ODD, JOBS=ODD, RESULTS=ODD, PROFILE=ODD, SET=ODD, PLUGIN="one two*")
    for option in ("--methods", "--seeds", "--jobs", "--results", "--profile"):
        assert lines[lines.index(f"<{option}>") + 1] == f"<{ODD}>"
    assert [lines[place + 1] for place, line in enumerate(lines) if line == "<--plugin>"] == ["<one>", "<two*>"]
    assert lines[-1] == f"SET<{ODD}>"


@pytest.mark.parametrize("target", ["compare", "report", "bench", "gpu-check", "notebooks"])
def test_so_do_those_of_the_other_targets(target, make):
    assert "<-m>" in make(target, RESULTS=ODD, PROFILE="smoke", ONLY=ODD)


def test_lint_finds_its_tools_in_an_environment_elsewhere(make, monkeypatch):
    monkeypatch.setenv("CC", "no-compiler")  # the kernels take one ten seconds
    lines = make("lint")
    assert "<--no-cache>" in lines and "<--dry-run>" in lines


def test_without_variables_there_are_no_options_for_them(make):
    lines = make("replicate-table1")
    assert lines == ["<-m>", "<replication>", "<replicate>", "<--profile>", "<small>", "<--methods>", "<>", "SET<>"]


def test_a_variable_that_is_none_is_refused_by_name():
    done = subprocess.run(["make", "-C", ROOT, "help", "SEED=1"], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "SEED is no variable of this Makefile; allowed: PROFILE RESULTS SEEDS" in line


def test_a_list_of_settings_is_split_before_dotted_keys_alone(monkeypatch):
    monkeypatch.setenv("REPLICATION_SET", """data.files=["it's my $(x) file.txt", 'b=c d.txt'] train.num_steps=5""")
    assert settings() == ["""data.files=["it's my $(x) file.txt", 'b=c d.txt']""", "train.num_steps=5"]
    monkeypatch.setenv("REPLICATION_SET", " ")
    assert settings() == []


@pytest.mark.parametrize("arguments", [(), ("-n",), ("-e",)])
def test_an_environment_of_conda_is_read_as_a_name(arguments, tmp_path):
    odd = f"$(shell touch '{tmp_path}/ran')`touch '{tmp_path}/ran'`"
    own = {**os.environ, "CONDA_DEFAULT_ENV": odd, "CONDA_PREFIX": odd, "VIRTUAL_ENV": ""}
    assert subprocess.run(["make", *arguments, "-C", ROOT, "help"], env=own, capture_output=True).returncode == 0
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def cleaned(tmp_path):
    """cleaned(linked) -> the files that make clean leaves of a clone's results, which another folder may hold."""
    removed = ["smoke/dense/seed-0/metrics.jsonl", "small/mst/seed-0/checkpoint/model.safetensors"]
    removed += ["small/mst/seed-0/at/40/model.safetensors", "small/tuning/mst/0.1/seed-1000/checkpoint/config.json"]
    kept = ["small/mst/seed-0/metrics.jsonl", "small/mst/seed-0/at/40/eval/task.json", "small/tuning.csv"]
    kept += ["small/tuning/mst/0.1/seed-1000/metrics.jsonl", "small/mst/seed-1/resume/state.pt"]
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"

    def run(linked):
        clone.mkdir()
        shutil.copy(ROOT / "Makefile", clone)
        held = elsewhere if linked else clone / "results"
        for name in (*removed, *kept):
            (held / name).parent.mkdir(parents=True, exist_ok=True)
            (held / name).touch()
        if linked:
            (clone / "results").symlink_to(elsewhere)
        subprocess.run(["make", "-C", clone, "clean"], check=True, capture_output=True)
        return {str(file.relative_to(held)) for file in held.rglob("*") if file.is_file()}, set(kept), set(removed)

    return run


def test_clean_leaves_what_was_logged_and_what_can_be_resumed(cleaned):
    left, kept, _ = cleaned(linked=False)
    assert left == kept


def test_clean_follows_no_link(cleaned):
    left, kept, removed = cleaned(linked=True)
    assert left == kept | removed


@pytest.mark.slow
def test_install_makes_its_environment_within_a_clone_in_a_path_with_a_space(tmp_path):
    clone = tmp_path / "a 'clone' of $x"
    clone.mkdir()
    shutil.copy(ROOT / "Makefile", clone)
    (clone / "replication" / "kernels").mkdir(parents=True)
    (clone / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n[project]\nname = "x"\n'
    )
    own = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    subprocess.run(["make", "install"], cwd=clone, env=own, capture_output=True)  # there is nothing to install
    assert (clone / ".venv" / "bin" / "python").exists()
    assert [path.name for path in tmp_path.iterdir()] == [clone.name]
