"""The README's commands and its worked example run as they stand."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from replication import methods, trainer
from replication.cli import build_parser
from replication.config import arm_names, load_config

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
    if "profile" in options:
        arms = [options.method] if "method" in options else arm_names(options.profile)
        for arm in arms:
            load_config(options.profile, arm, 0, options.set)


def test_make_targets_are_there():
    targets = {command[1] for command in commands("make")} | set(re.findall(r"`make ([a-z0-9-]+)", README))
    assert {"replicate-table1", "notebooks", "help", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_worked_example_trains_and_resumes_like_any_method(tiny, data_dir, tmp_path, monkeypatch):
    (source,) = blocks("python")
    assert len(source.splitlines()) <= 30
    namespace = {}
    exec(source, namespace)
    monkeypatch.setitem(methods.METHODS, "soft", methods.Method(namespace["Soft"]))
    config = dataclasses.replace(tiny("rigl"), arm="soft", method="soft")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    rigl = trainer.train(tiny("rigl"), tmp_path / "rigl", data_dir, progress=False)
    assert run.flops() == rigl.flops()
    assert any((run.masks()[name] != mask).any() for name, mask in rigl.masks().items())


def test_headlines_are_those_of_the_bench():
    measured = json.loads((ROOT / "results" / "bench" / "summary.json").read_text())
    told = dict(re.findall(r"^\| `(\w+)` \| \**([\d.]+)[×%]", README, flags=re.MULTILINE))
    assert told == {name: f"{value * (100 if name == 'topology_share' else 1):.2f}" for name, value in measured.items() if name != "spread"}


def test_tables_and_differences_are_those_that_are_committed():
    """Every row of a table of results, and every signed number of nats in the text, stands in a committed table."""
    files = [ROOT / "results" / profile / name for profile in ("small", "text") for name in ("table1.md", "ablations.md")]
    committed = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    rows = [line for line in text.splitlines() if line.startswith("|") and re.search(r"\d\.\d{3} ± |: \d\.\d|[+-]\d\.\d{3}", line)]
    assert len(rows) > 20
    assert [row for row in rows if row not in committed.splitlines()] == []
    told = {number.replace("−", "-") for number in re.findall(r"[+−-]\d\.\d{3}(?!\d)", text)}
    assert {number for number in told if number not in committed} == set()


@pytest.mark.slow
def test_the_readme_commands_run(tmp_path):
    """Train, evaluate by our driver and by the stock command, plan, replicate: with the same numbers."""
    environment = {**os.environ, "REPLICATION_DATA": str(tmp_path / "data"), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(command):
        command = [part.replace("runs/mst", str(tmp_path / "mst")) for part in command]
        return subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout

    train, evaluate, plan, *_ = [command for command in commands("python -m replication") if "runs/mst" in " ".join(command) or "--json" in command]
    (stock,) = commands("lm_eval")
    run(["python", "-m", "replication", "data", "--profile", "smoke"])
    run(train)
    ours, theirs = run(evaluate), run(stock)
    assert '"reduction"' in run(plan)
    accuracy = float(re.search(r"embedded_lastword  acc,none  (\S+)", ours)[1])
    perplexity = float(re.search(r"embedded_lastword  perplexity,none  (\S+)", ours)[1])
    assert float(re.search(r"\|acc +\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(accuracy, abs=5e-5)
    assert float(re.search(r"\|perplexity *\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(perplexity, rel=1e-4)
