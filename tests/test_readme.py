"""The README's commands and its worked example run as they stand."""

import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from replication.cli import build_parser
from replication.profiles import arm_names, load_config
from replication.runs import RunFolder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands(start):
    lines = "".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


@pytest.mark.parametrize("command", commands("python -m replication"), ids=" ".join)
def test_commands_are_ones_that_the_parser_and_the_profiles_take(command):
    options = build_parser().parse_args(command[3:])
    if "profile" in options and not options.profile.endswith(".yaml"):
        arms = [options.method] if "method" in options else arm_names(options.profile)
        for arm in arms:
            load_config(options.profile, arm, 0, getattr(options, "set", []))


def test_make_targets_are_there():
    targets = {command[1] for command in commands("make")} | set(re.findall(r"`make ([a-z0-9-]+)", README))
    assert {"replicate-table1", "notebooks", "help", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_worked_example_runs_from_outside_the_repository(overrides, data_dir, tmp_path):
    """Its three blocks as they stand, in a folder of their own; only the text and the size are the tests'."""
    (source,), (profile,) = blocks("python"), blocks("yaml")
    assert len(source.splitlines()) <= 35
    (tmp_path / "soft.py").write_text(source)
    (tmp_path / "mine.yaml").write_text(profile)
    (command,) = [command for command in commands("python -m replication") if "--plugin" in command]
    settings = [part for pair in [*overrides, "eval.tasks=[]"] for part in ("--set", pair)]
    command = [sys.executable, *command[1:], "--seeds", "0", "--data-dir", str(data_dir), *settings]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = {arm: RunFolder(tmp_path / "results" / "mine" / arm / "seed-0") for arm in ("rigl", "soft", "soft_sharp")}
    assert runs["soft"].flops() == runs["rigl"].flops()
    assert any((runs["soft"].masks()[name] != mask).any() for name, mask in runs["soft_sharp"].masks().items())


def test_what_is_shown_in_python_is_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    (session,) = blocks("pycon")
    parsed = doctest.DocTestParser().get_doctest(session, {}, "README", None, 0)
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(parsed).failed == 0


def test_headlines_are_those_of_the_bench():
    measured = json.loads((ROOT / "results" / "reference" / "bench" / "summary.json").read_text())
    told = dict(re.findall(r"^\| `(\w+)` \| \**([\d.]+)[×%]", README, flags=re.MULTILINE))
    assert told == {
        name: f"{value * (100 if name == 'topology_share' else 1):.2f}"
        for name, value in measured.items()
        if name != "spread"
    }


def test_tables_and_differences_are_those_that_are_committed():
    """Every row of a table of results, and every signed number of nats in the text, stands in a committed table."""
    files = [
        ROOT / "results" / "reference" / profile / name
        for profile in ("small", "text")
        for name in ("table1.md", "ablations.md")
    ]
    committed = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    rows = [
        line
        for line in text.splitlines()
        if line.startswith("|") and re.search(r"\d\.\d{3} ± |: \d\.\d|[+-]\d\.\d{3}", line)
    ]
    assert len(rows) > 20
    assert [row for row in rows if row not in committed.splitlines()] == []
    told = {number.replace("−", "-") for number in re.findall(r"[+−-]\d\.\d{3}(?!\d)", text)}
    assert {number for number in told if number not in committed} == set()


@pytest.mark.slow
def test_the_readme_commands_run(tmp_path):
    """Train, evaluate by our driver and by the stock command, plan, replicate: with the same numbers."""
    environment = {
        **os.environ,
        "REPLICATION_DATA": str(tmp_path / "data"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(command):
        command = [part.replace("runs/mst", str(tmp_path / "mst")) for part in command]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    train, evaluate, plan, *_ = [
        command
        for command in commands("python -m replication")
        if "runs/mst" in " ".join(command) or "--json" in command
    ]
    (stock,) = commands("lm_eval")
    run(["python", "-m", "replication", "data", "--profile", "smoke"])
    run(train)
    ours, theirs = run(evaluate), run(stock)
    assert '"reduction"' in run(plan)
    accuracy = float(re.search(r"embedded_lastword  acc,none  (\S+)", ours)[1])
    perplexity = float(re.search(r"embedded_lastword  perplexity,none  (\S+)", ours)[1])
    assert float(re.search(r"\|acc +\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(accuracy, abs=5e-5)
    assert float(re.search(r"\|perplexity *\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(perplexity, rel=1e-4)
