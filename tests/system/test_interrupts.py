"""Signals: the step is ended and saved, the exit code is 128 + n, one line says so; and readers that are gone."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_lines import train_command
from training_runs import outcome, resume

from replication.cli import main
from replication.runs.folder import RunFolder
from replication.system.signals import ENDING, Interrupted, held, listening, read_signal
from replication.training import trainer

STEP = 7  # during which the signal comes


@pytest.fixture(autouse=True)
def heard():
    """Nothing is ignored, as SIGHUP is under nohup and SIGINT in a shell's background."""
    defaults = dict.fromkeys(ENDING, signal.SIG_DFL) | {signal.SIGINT: signal.default_int_handler}
    kept = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_echo(monkeypatch):
    """Signals of one test are not those of the one before."""
    monkeypatch.setattr("replication.system.signals.ECHO", 0.0)


def send(number):
    os.kill(os.getpid(), number)


def sending(number, inner, when=lambda *arguments: True):
    def call(*arguments):
        if when(*arguments):
            send(number)
        return inner(*arguments)

    return call


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_raises_at_once_or_where_it_is_held_at_the_end(number):
    with listening():
        with pytest.raises(Interrupted) as raised:
            send(number)
        assert raised.value.code == 128 + number
        with pytest.raises(Interrupted), held():
            send(number)
            assert read_signal() == number
        assert read_signal() is None


def test_handlers_are_as_they_were_and_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening():
            send(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def config(tiny):
    return tiny("mst", "train.checkpoint_freq=5")


@pytest.fixture(scope="module")
def whole(config, data_dir, tmp_path_factory):
    return outcome(trainer.train(config, tmp_path_factory.mktemp("whole") / "run", data_dir, progress=False))


@pytest.mark.parametrize("number", ENDING)
def test_a_step_in_which_a_signal_comes_is_ended_and_saved(number, config, data_dir, tmp_path, monkeypatch, whole):
    run = RunFolder(tmp_path / "run")
    during = sending(number, trainer.train_step, lambda state, forward: state.step == STEP)
    monkeypatch.setattr(trainer, "train_step", during)
    with pytest.raises(Interrupted, match=f"run is saved at step {STEP + 1}; --resume goes on with it"):
        trainer.train(config, run.path, data_dir, progress=False)
    assert run.status()["step"] == STEP + 1 == run.metrics()[-1]["step"]
    monkeypatch.undo()
    assert outcome(resume(config, run, data_dir)) == whole


def interrupt(moment, config, run, data_dir, monkeypatch):
    """Train, with a signal when a function of the trainer is called."""
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(trainer, moment, sending(signal.SIGTERM, getattr(trainer, moment)))
        trainer.train(config, run.path, data_dir, resume=True, progress=False)


@pytest.mark.parametrize("moment", ["_save", "_start", "_load", "_finish"])
def test_no_moment_of_a_run_is_one_at_which_a_signal_loses_something(
    moment, config, data_dir, tmp_path, monkeypatch, whole
):
    run = RunFolder(tmp_path / "run")
    if moment == "_load":
        interrupt("train_step", config, run, data_dir, monkeypatch)
    interrupt(moment, config, run, data_dir, monkeypatch)
    assert run.is_trained(config) == (moment == "_finish")
    assert outcome(resume(config, run, data_dir)) == whole


@pytest.mark.slow
def test_a_signal_while_data_is_prepared_leaves_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("replication.data.building._write_segment", sending(signal.SIGTERM, None))
    with listening():
        assert main(train_command("dense", tmp_path / "run", tmp_path / "data")) == 143
    assert capsys.readouterr().err == "SIGTERM: what was saved is kept, and the same command goes on\n"
    assert not list(tmp_path.iterdir())


# ---- the command itself

COMMAND = [sys.executable, "-m", "replication"]


def started(arguments, log, status, step):
    """The command, once a run's `status.json` says that it is at a step."""
    with log.open("w") as said:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=said, stderr=said)
    while process.poll() is None and not (status.path.exists() and status.status().get("step", -1) >= step):
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDING)
def test_train_saves_and_says_so_in_one_line(number, overrides, data_dir, tmp_path):
    run, log = RunFolder(tmp_path / "run"), tmp_path / "log"
    pairs = [part for pair in [*overrides, "train.num_steps=5000"] for part in ("--set", pair)]
    process = started(train_command("mst", run.path, data_dir, *pairs), log, run, 8)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    step = run.status()["step"]
    assert log.read_text().splitlines()[-1].endswith(f"{run.path} is saved at step {step}; --resume goes on with it")
    assert (run.resume / f"step-{step:08d}").exists() and "Traceback" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_replicate_tells_its_workers_who_save(number, overrides, data_dir, tmp_path):
    runs = [RunFolder(tmp_path / "results" / "smoke" / arm / "seed-0") for arm in ("rigl", "mst")]
    pairs = [part for pair in [*overrides, "train.num_steps=5000", "eval.tasks=[]"] for part in ("--set", pair)]
    where = ["--results", str(tmp_path / "results"), "--data-dir", str(data_dir)]
    arguments = ["replicate", "--profile", "smoke", "--methods", "rigl,mst", "--seeds", "0", "--jobs", "2", *where]
    process = started([*arguments, *pairs], tmp_path / "log", runs[1], 8)
    process.send_signal(number)
    assert process.wait(120) == 128 + number
    name, steps = signal.Signals(number).name, [run.status()["step"] for run in runs]
    assert (tmp_path / "log").read_text().splitlines()[-1] == (
        f"{name}: what was saved is kept, and the same command goes on"
    )
    for run, step in zip(runs, steps):
        assert step == run.metrics()[-1]["step"] and (run.resume / f"step-{step:08d}").exists()


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} report paper | head -c 1", 141),
        ("{} --help | true", 141),
        ("{} report paper >&-", 0),
        ("{} report paper >&- 2>&-", 0),
        ("{} nothing 2>&-", 2),
        ("PYTHONIOENCODING=ascii {} report paper", 0),
        ("{} report paper > /dev/full", 2),
        ("{} runs topology results/reference/small/mst/seed-0 | true", 141),
    ],
)
def test_a_reader_that_is_gone_or_reads_ascii_gets_no_traceback(shell, code):
    command = shell.format(f"'{sys.executable}' -m replication") + "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode in {code, 0 if code == 141 else code}  # a pipe may have had room for all
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == (shell.endswith("full"))


def test_a_run_goes_on_where_nobody_reads_what_it_says(config, data_dir, tmp_path, monkeypatch, whole):
    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stderr", Gone())
    assert outcome(trainer.train(config, tmp_path / "run", data_dir)) == whole
