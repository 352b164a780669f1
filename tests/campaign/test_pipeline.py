"""`replicate` with runs that fail: the others go on, and the summary names each failure and its reason."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from replication.cli import main
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError
from replication.system.files import write_sealed


@pytest.fixture
def replicate(overrides, data_dir, tmp_path, capsys):
    """replicate(arms, *options) -> exit code, what was printed, what was said of failures."""

    def call(arms, *options, results="results"):
        settings = [part for override in [*overrides, "eval.tasks=[]"] for part in ("--set", override)]
        command = [
            "replicate",
            "--profile",
            "smoke",
            "--methods",
            arms,
            "--seeds",
            "0",
            "--results",
            str(tmp_path / results),
        ]
        code = main([*command, "--data-dir", str(data_dir), *settings, *options])
        printed = capsys.readouterr()
        return (
            code,
            printed.out,
            [line for line in printed.err.replace("\r", "\n").splitlines() if "failed" in line or "error" in line],
        )

    return call


# Arm -> the file of its run that is damaged, and how.
DAMAGE = {
    "dense": ("status.json", "{"),
    "dense_quarter": ("config.yaml", "a: [\n"),
    "static": ("metrics.jsonl", "{\n"),
    "rigl": ("checkpoint/model.safetensors", ""),
    "mst": ("eval/embedded_prose.json", "{"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny, data_dir):
    from replication.training.trainer import train

    folder = tmp_path_factory.mktemp("trained")
    for arm in DAMAGE:
        train(
            tiny(arm, "train.warmup_steps=2", "eval.tasks=[]"),
            folder / "smoke" / arm / "seed-0",
            data_dir,
            progress=False,
        )
    return folder


@pytest.mark.slow
def test_damaged_runs_fail_by_name_and_the_others_go_on(replicate, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "results")
    for arm, (name, text) in DAMAGE.items():
        file = tmp_path / "results" / "smoke" / arm / "seed-0" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    code, table, failures = replicate(",".join([*DAMAGE, "set"]), "--set", "train.warmup_steps=2", "--jobs", "1")
    assert code == 1 and len(failures) == len(DAMAGE)
    for failure, (arm, (name, _)) in zip(failures, DAMAGE.items()):
        assert failure.startswith(f"{arm} seed 0 failed: ") and f"{name} is damaged" in failure and "remove" in failure
    assert RunFolder(tmp_path / "results" / "smoke" / "set" / "seed-0").is_finished()
    assert "| SET" in table and "| RigL" in table and "| static" not in table  # RigL's logs are whole
    assert "## Left out" in table and "metrics.jsonl is damaged" in " ".join(table.split())


@pytest.mark.slow
def test_one_dead_worker_fails_one_run_which_then_goes_on(replicate, tmp_path):
    """Of three runs on two workers the first is killed in the middle."""
    victim = RunFolder(tmp_path / "results" / "smoke" / "rigl" / "seed-0")

    def kill():
        while True:
            try:
                status = victim.status()
            except DamagedError:
                continue
            if status.get("step", 0) >= 40:
                os.kill(status["owner"]["pid"], signal.SIGKILL)
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    settings = ("train.num_steps=400", "train.log_freq=400", "train.eval_freq=400")
    steps = [*(part for setting in settings for part in ("--set", setting)), "--jobs", "2"]
    code, table, failures = replicate("rigl,set,static", *steps)
    killer.join(0)
    assert code == 1 and "| SET" in table and "| static" in table
    first, reason = failures  # as it happens, and at the end
    assert first.endswith("] rigl seed 0: failed, as the end says")
    assert reason.startswith("rigl seed 0 failed: its process died without a word")
    step = victim.status()["step"]
    code, table, failures = replicate("rigl,set,static", *steps)
    assert code == 0 and not failures and "| RigL" in table and 40 <= step < 400


@pytest.mark.slow
def test_where_no_run_is_left_the_failure_is_what_is_said(replicate, trained, tmp_path):
    shutil.copytree(trained / "smoke" / "dense", tmp_path / "results" / "smoke" / "dense")
    (tmp_path / "results" / "smoke" / "dense" / "seed-0" / "status.json").write_text("{")
    code, table, failures = replicate("dense", "--set", "train.warmup_steps=2")
    assert (
        code == 1
        and table == ""
        and failures[0].startswith("dense seed 0 failed: ")
        and "status.json is damaged" in failures[0]
    )


@pytest.mark.slow
def test_runs_that_only_the_ablations_have_are_no_matter_to_table_1(replicate, trained, tmp_path):
    shutil.copytree(trained / "smoke" / "dense", tmp_path / "results" / "smoke" / "dense")
    other = RunFolder(
        shutil.copytree(trained / "smoke" / "mst", tmp_path / "results" / "smoke" / "mst_random_growth" / "seed-0")
    )
    (tmp_path / "results" / "smoke" / "mst_random_growth" / "seed-0" / "seed-0").rename(tmp_path / "x")
    shutil.rmtree(other.path)
    (tmp_path / "x").rename(other.path)
    other.write_config(other.config() | {"arm": "mst_random_growth"})
    write_sealed(
        other.path / "environment.json", other.environment() | {"shards": {"train": "0" * 64, "validation": "1" * 64}}
    )
    other.write_status("finished", **{key: other.status()[key] for key in ("step", "seconds", "tokens_per_second")})
    code, table, failures = replicate("dense", "--set", "train.warmup_steps=2")
    assert code == 0 and "| dense" in table and not failures


@pytest.mark.slow
def test_no_tasks_are_no_failure_and_one_that_is_added_later_is_scored(replicate, tmp_path):
    code, table, failures = replicate("dense")
    assert code == 0 and not failures and "Zero-shot" not in table
    trained = (tmp_path / "results" / "smoke" / "dense" / "seed-0" / "status.json").read_bytes()
    code, table, failures = replicate("dense", "--set", "eval.tasks=[embedded_prose]")
    assert code == 0 and not failures and "embedded_prose/bits_per_byte" in table
    assert (tmp_path / "results" / "smoke" / "dense" / "seed-0" / "status.json").read_bytes() == trained


@pytest.mark.parametrize(
    ("arms", "override", "says"),
    [
        ("static,mst", "method=dense", "keys other than profile, arm, method, seed"),
        ("dense", "seed=5", "keys other than profile, arm, method, seed"),
        ("dense_small", "model.n_embd=64", "arm dense_small does not set itself (model.n_embd=16)"),
        (
            "mst,mst_random_growth",
            "mst.growth=gradient",
            "arm mst_random_growth does not set itself (mst.growth=random)",
        ),
        ("dense,mst", "sparsity.update_freq=50", "no topology update falls within the 20 steps"),
        ("dense,static", "sparsity.sparsity=0.99999", "leaves no weight of the blocks active"),
    ],
)
def test_overrides_that_make_other_runs_are_refused_before_anything_is_trained(
    arms, override, says, replicate, tmp_path
):
    code, _, (error,) = replicate(arms, "--set", override)
    assert code == 2 and says in error and not (tmp_path / "results").exists()


def test_runs_that_no_table_could_hold_together_are_refused_before_anything_is_trained(replicate, trained, tmp_path):
    for arm in ("dense", "static"):
        shutil.copytree(trained / "smoke" / arm, tmp_path / "results" / "smoke" / arm)
    (tmp_path / "a.txt").write_text("<|endoftext|>\n".join("a " * (20 + n) + "\n" for n in range(300)))
    code, _, (error,) = replicate("mst", "--set", "train.warmup_steps=2", "--set", f"data.files=[{tmp_path / 'a.txt'}]")
    assert code == 2 and "dense/seed-0 and mst/seed-0 were trained on different texts" in error
    code, _, (error,) = replicate("dense", "--seeds", "1", "--set", "train.learning_rate=1e-3")
    assert code == 2 and "dense/seed-0 and dense/seed-1 are no seeds of one run" in error
    assert sorted(path.parent.name for path in (tmp_path / "results").glob("smoke/*/seed-*")) == ["dense", "static"]


@pytest.mark.slow
def test_two_at_once_train_each_run_once(overrides, data_dir, tmp_path):
    """The second waits for the first's runs, and finds them finished."""
    import subprocess
    import sys

    settings = [
        part for override in [*overrides, "train.num_steps=300", "eval.tasks=[]"] for part in ("--set", override)
    ]
    command = [
        sys.executable,
        "-m",
        "replication",
        "replicate",
        "--profile",
        "smoke",
        "--methods",
        "rigl",
        "--seeds",
        "0",
        "--jobs",
        "1",
    ]
    command += ["--results", str(tmp_path), "--data-dir", str(data_dir), *settings]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    run = tmp_path / "smoke" / "rigl" / "seed-0"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, 301)
    )
    assert not (run / ".lock").exists()
