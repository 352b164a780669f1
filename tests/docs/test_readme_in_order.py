"""README.md's commands, one after another, in a fresh clone; only their size is the test's."""

import gzip
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_readme import README, ROOT, blocks

SIZE = {"PROFILE": "smoke", "SEEDS": "0", "METHODS": "dense,mst"}  # what make takes from the environment
SMALLER = [  # and no task of the hub's
    *("model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.n_positions=64", "data.vocab_size=512"),
    *(
        "sparsity.update_freq=4",
        "train.num_steps=240",
        "train.warmup_steps=24",
        "train.batch_size=4",
        "train.micro_batch_size=1",
    ),
]


def shown():
    """Every command of the README, in order."""
    lines = "".join(blocks("bash", README)).splitlines()
    commands = [command for line in lines if (command := shlex.split(line, comments=True))]
    return [command for command in commands if command != [".", ".venv/bin/activate"]]  # the test's own is active


def sized(command):
    """As it stands, but of a size for seconds, and of an environment that is there already."""
    if command[0] == "make":
        return [command[0], "-o", "install", *command[1:]]
    name = command[command.index("replication") + 1]
    if name == "plan" or "--dry-run" in command:
        return command
    own = name == "replicate"  # of a text of one's own; else OpenWebText, which takes a network
    fewer = ["--seeds", SIZE["SEEDS"], "--methods", SIZE["METHODS"]] if own else []
    settings = [
        *SMALLER,
        "eval.tasks=[]",
        *(
            []
            if own
            else [
                "data.source=stdlib",
                "data.tokenizer=bpe",
                "data.validation_fraction=0.05",
                "data.test_fraction=0.05",
            ]
        ),
    ]
    return [*command, *fewer, *(part for setting in settings for part in ("--set", setting))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone of what is committed, beside the text that the README speaks of."""
    folder = tmp_path_factory.mktemp("fresh") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    for library in (ROOT / "replication" / "kernels").glob("*.so"):
        shutil.copy(library, folder / "replication" / "kernels")
    sources = sorted(Path(os.__file__).parent.glob("[a-m]*.py"))
    text = "\n<|endoftext|>\n".join(source.read_text(encoding="utf-8", errors="ignore") for source in sources)
    (folder / "books.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.mark.slow
def test_each_command_does_what_the_readme_says(clone):
    environment = {**os.environ, **SIZE, "OMP_NUM_THREADS": "1", "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(clone)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = {}
    for command in shown():
        done = subprocess.run(sized(command), cwd=clone, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr, shlex.join(command)
        said[shlex.join(command)] = done.stdout
    table, _, plan, text, needs, processes = said.values()
    assert "| MST " in table and "## Verdicts" in table and (clone / "report.html").stat().st_size > 10**5
    assert "ultra" in plan and "head_counted_full" in plan
    assert "| MST " in text and "GiB a device" in needs and "validation loss" in processes
    clean = subprocess.run(["git", "status", "--porcelain"], cwd=clone, check=True, capture_output=True, text=True)
    assert clean.stdout.split() == ["??", "books.txt.gz"], clean.stdout
