"""The batch scripts, with Slurm's commands played by a few lines: nodes are torchruns on this machine."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import set_up

from replication.runs.folder import RunFolder
from replication.training import trainer

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts" / "slurm").iterdir())
# starts what it is asked to once for each node, hands SIGUSR1 on as srun does, and fails where one of them does
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
for node in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & nodes+=($!); done
trap 'kill -USR1 "${nodes[@]}"' USR1
code=0
for node in "${nodes[@]}"; do
  wait "$node"
  its=$?
  while kill -0 "$node" 2>/dev/null; do wait "$node"; its=$?; done
  ((its)) && code=$its
done
exit "$code"
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo localhost; else echo "$@" >>"$SLURM_TOLD"; fi
"""


@pytest.fixture
def slurm(tmp_path):
    """slurm(script, *arguments, **environment) -> the batch script, started; `told` has what Slurm was told."""
    (tmp_path / "bin").mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_TOLD": str(tmp_path / "told"), "PORT": port, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    job |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def start(script, *arguments, **more):
        command = ["bash", ROOT / "scripts" / "slurm" / script, *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | job | more, stderr=subprocess.PIPE, text=True)

    return start


def asked(overrides, data_dir):
    return ["--data-dir", str(data_dir), *(part for pair in overrides for part in ("--set", pair))]


@pytest.mark.slow
def test_two_nodes_train_the_run_of_one_process(slurm, tiny, overrides, data_dir, tmp_path):
    settings = [*overrides, "train.precision=fp32"]
    out = tmp_path / "a run"
    wanted = ["--profile", "smoke", "--method", "rigl", "--out", str(out)]
    job = slurm("train.sbatch", *wanted, *asked(settings, data_dir))
    _, error = job.communicate(timeout=240)
    assert job.returncode == 0, error[-2000:]
    assert RunFolder(out).environment()["processes"] == 2
    state = set_up(tiny("rigl", "train.precision=fp32"), data_dir, tmp_path)
    expected = [trainer.train_step(state, state.model.transformer)["loss"] for _ in range(20)]
    assert [row["loss"] for row in RunFolder(out).metrics()] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(slurm, overrides, data_dir, tmp_path):
    settings = [*overrides, "train.num_steps=1500", "train.checkpoint_freq=10", "train.log_freq=10"]
    run = RunFolder(tmp_path / "run")
    command = ["--profile", "smoke", "--method", "mst", "--out", str(run.path), *asked(settings, data_dir)]
    job = slurm("train.sbatch", *command)
    deadline = time.monotonic() + 120
    while not list(run.resume.glob("step-*")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    job.communicate(timeout=120)
    assert job.returncode != 0 and run.status()["status"] != "finished"
    assert (tmp_path / "told").read_text() == "requeue 7\n"
    again = slurm("train.sbatch", *command)
    _, error = again.communicate(timeout=240)
    assert again.returncode == 0, error[-2000:]
    assert [row["step"] for row in run.metrics()] == list(range(10, 1501, 10))
    assert (tmp_path / "told").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("task", "cell"), [(0, ("set", 0)), (1, ("set", 3)), (3, ("rigl", 3)), (4, None)], ids=lambda value: str(value)
)
def test_an_array_has_a_task_for_every_arm_and_seed(task, cell, slurm, tmp_path):
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" >"{tmp_path}/asked"\n')
    (tmp_path / "python").chmod(0o755)
    array = {"ARMS": "set rigl", "SEEDS": "0 3", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task)}
    array |= {"PYTHON": str(tmp_path / "python"), "PROFILE": "some where/mine.yaml", "RESULTS": "the results"}
    job = slurm("array.sbatch", "--set", "data.files=[a b.txt]", **array)
    _, error = job.communicate(timeout=60)
    if cell is None:
        assert job.returncode == 2
        assert error == "error: --array asks for run 4; allowed: 0-3, 2 arms × 2 seeds\n"
        return
    arm, seed = cell
    assert job.returncode == 0 and (tmp_path / "asked").read_text().splitlines() == [
        *("-m", "replication", "train", "--profile", "some where/mine.yaml", "--method", arm, "--seed", str(seed)),
        *("--out", f"the results/mine/{arm}/seed-{seed}", "--resume", "--set", "data.files=[a b.txt]"),
    ]


def test_shellcheck_finds_nothing_in_the_scripts():
    assert len(SCRIPTS) == 3
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or pytest.skip("no shellcheck")
    done = subprocess.run([shellcheck, *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
