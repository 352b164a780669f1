"""`topology`: what it counts in masks drawn by hand, how it is shown, and what it says of runs that have none."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import write_run

from replication.analysis.topology import headline, read, show
from replication.analysis.topology_figure import density_by_part, figure
from replication.cli import main
from replication.runs.finding import REFERENCE
from replication.runs.folder import RunFolder

# One block of width 2 with 4 hidden units: Q has all of its 4 weights, K half, V none. Hidden unit 1 has no active
# input, unit 3 no active output, unit 2 neither: three of four are dead.
MASKS = {
    "transformer.wte.weight": [[1, 0], [1, 1], [0, 0]],
    "transformer.h.0.attn.c_attn.weight": [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]],  # [in, out]
    "transformer.h.0.attn.c_proj.weight": [[1, 1], [1, 1]],
    "transformer.h.0.mlp.c_fc.weight": [[1, 0, 0, 1], [1, 0, 0, 0]],
    "transformer.h.0.mlp.c_proj.weight": [[1, 0], [1, 1], [0, 0], [0, 0]],
}


@pytest.fixture
def run(tmp_path):
    """A finished run with these masks, and two updates of the first layer."""
    write_run(tmp_path / "small" / "rigl" / "seed-0", "rigl", 0, 4.0)
    run = RunFolder(tmp_path / "small" / "rigl" / "seed-0")
    run.write_masks({name: np.array(mask, bool) for name, mask in MASKS.items()})
    rows = [
        {"step": step, "layer": name, "size": np.size(mask), "nnz": int(np.sum(mask)), "dropped": 1, "grown": 1}
        | {"overlap_first": 0.5, "ever_active": 0.25 * step / 10}
        for step in (10, 20)
        for name, mask in MASKS.items()
    ]
    rows[0]["note"] = "1 of 3 outputs have no active input"
    (run.path / "topology.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.write_status("finished", step=20, seconds=1.0, tokens_per_second=1.0)
    return run


def shown(paths, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    show(paths, console)
    return console.file.getvalue()


def test_counts_are_those_of_the_masks_by_hand(run):
    topology = read(run.path)
    assert topology.hidden == {"h.0": (3, 4)}
    assert topology.parts == {"q": 1.0, "k": 0.5, "v": 0.0}
    assert topology.density == pytest.approx((3 + 6 + 4 + 3 + 3) / (6 + 12 + 4 + 8 + 8)) and topology.ever_active == 0.5
    assert headline(topology) == "50% sparse; Q 100 K 50 V 0 % active; dead hidden units 3/4; ever active 50%"


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_has_the_finding_first_and_fits(width, run):
    text = shown([run.path], width)
    lines = text.splitlines()
    assert lines[0] == "small: RigL, seed 0" and lines[1] == headline(read(run.path))
    assert all(len(line.rstrip()) <= width for line in lines) and "…" not in text
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("wte ", "h.0"))}
    assert cells["wte"][:8] == ["50.0%", "0/2", "1/3", "0", "1", "2", "50%", *cells["wte"][7:8]]  # [out, in]
    assert cells["h.0.attn.c_attn"][:10] == ["50.0%", "100", "50", "0", "0/2", "3/6", "0", "1", "2", "50%"]
    assert cells["h.0.mlp.c_fc"][:7] == ["37.5%", "0/2", "2/4", "0", "0.5", "2", "50%"]
    assert (cells["h.0.mlp.c_fc"][7:] == ["1", "1.5", "2", "50%"]) == (width == 120)
    assert "wte: 1 of 3 outputs have no active input at step 10" in lines


def test_the_widest_names_and_numbers_of_gpt2_fit(run):
    """As many units as GPT-2 small has in its eleventh block."""
    mask = np.random.default_rng(0).random((768, 2304)) < 0.2
    run.write_masks({"transformer.h.11.attn.c_attn.weight": mask})
    run.write_status("finished", step=20, seconds=1.0, tokens_per_second=1.0)
    for width in (80, 120):
        text = shown([run.path], width)
        assert "0/2304" in text and "…" not in text and all(len(line.rstrip()) <= width for line in text.splitlines())


def test_runs_without_masks_or_updates_are_said_to_be_so(run, tmp_path, capsys):
    write_run(tmp_path / "small" / "dense" / "seed-0", "dense", 0, 4.0)
    write_run(tmp_path / "small" / "static" / "seed-1", "static", 1, 4.0)
    dense, static = tmp_path / "small" / "dense" / "seed-0", tmp_path / "small" / "static" / "seed-1"
    assert main(["runs", "topology", str(dense), str(static)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "small: dense, seed 0: no masks (a dense run has none)"
    assert lines[2] == "small: static, seed 1" and lines[3].endswith("no update is logged")
    (run.path / "masks.npz").unlink()
    run.write_status("running", step=8, seconds=1.0)
    assert read(run.path) == "small: RigL, seed 0: no masks (it is running, at step 8)"


WRONG = {
    "no run": (["."], ". holds no run"),
    "no figure": (["RUN", "--figure", "masks.pdf"], "--figure is masks.pdf; allowed: a file whose name ends in .png"),
    "nothing to draw": (["DENSE", "--figure", "masks.png"], "--figure masks.png is not drawn: no run has masks"),
    "a committed file": (["RUN", "--figure", str(REFERENCE / "x.png")], "which no command changes"),
}


@pytest.mark.parametrize(("arguments", "says"), WRONG.values(), ids=list(WRONG))
def test_what_cannot_be_is_one_line_and_nothing_is_written(arguments, says, run, tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "small" / "dense" / "seed-0", "dense", 0, 4.0)
    folders = {"RUN": str(run.path), "DENSE": str(tmp_path / "small" / "dense" / "seed-0")}
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["runs", "topology", *(folders.get(part, part) for part in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and says in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_log_is_named(run, capsys):
    with (run.path / "topology.jsonl").open("a") as file:
        file.write("{}\n")
    assert main(["runs", "topology", str(run.path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "topology.jsonl" in line and "damaged" in line


def test_the_figure_shows_density_degrees_dead_units_and_updates(run, tmp_path, capsys):
    assert main(["runs", "topology", str(run.path), "--figure", str(tmp_path / "own" / "masks.png")]) == 0
    assert (tmp_path / "own" / "masks.png").read_bytes().startswith(b"\x89PNG")
    topology = read(run.path)
    frame = density_by_part(topology)
    assert list(frame.columns) == ["Q", "K", "V", "attn out", "MLP in", "MLP out", "head"]
    assert list(frame.loc["h.0"].dropna()) == [1.0, 0.5, 0.0, 1.0, 0.375, 0.375] and frame.loc["wte", "head"] == 0.5
    _heat, degrees, dead, churn = figure([topology]).axes
    assert dead.get_title("left") == "Up to 3 of 4 hidden units are dead"
    assert [text.get_text() for text in dead.texts] == ["3", "2", "6"]
    assert list(churn.lines[0].get_ydata()) == pytest.approx([5 / 19] * 2)  # five layers drop one each, of 19 active
    head, attn, proj, fc, out = ([0, 1, 2], [0, 0, 0, 2, 2, 2], [2, 2], [0, 0, 1, 2], [1, 2])
    relative = [np.array(degree) / np.mean(degree) for degree in (head, attn, proj, fc, out)]
    assert list(degrees.lines[0].get_xdata()) == pytest.approx(sorted(np.concatenate(relative)))


def test_what_was_found_in_the_committed_runs_is_seen_with_one_look():
    """By the balanced gradient RigL keeps Q and K and leaves V few connections; MST restores all three."""
    rigl, mst = (read(REFERENCE / "small" / arm / "seed-0") for arm in ("rigl_dense_head", "mst"))
    assert headline(rigl) == "80% sparse; Q 24 K 30 V 6 % active; dead hidden units 9/384; ever active 97%"
    assert headline(mst) == "60% sparse; Q 45 K 49 V 34 % active; dead hidden units 29/384; ever active 100%"
