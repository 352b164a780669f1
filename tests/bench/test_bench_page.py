"""The bench's folders: one for each kind of processor, side by side on one page, continued, and with their history."""

import json
from pathlib import Path

import pytest

from replication.bench import history, kind, page, report, run
from replication.kernels import choice
from replication.kernels.library import library
from replication.system.errors import DamagedError, UserError
from replication.system.instructions import HELD

needs_kernels = pytest.mark.skipif(library() is None, reason="the kernels were not built: no C compiler")
COMMITTED = Path(__file__).parents[2] / "results" / "reference" / "bench"
FOLDERS = sorted({path.parent for path in COMMITTED.glob("*/summary.json")})
MACHINE = {"processor": "Maker Family", "threads": 2, "kind": "maker-family-amx", "versions": {}, "is_quick": False}


def at(commit, **other):
    return MACHINE | {"git": commit, "date": "2026-01-01"} | other


def ratio(middle, spread=0.1):
    return {"ratio": middle, "low": middle - spread / 2, "high": middle + spread / 2}


def measured(seconds, other=1.0):
    """Rows of a part: at width 64, `auto` takes so many seconds, and all others `other`."""
    names = (*report.DENSE, "MST ultra, masked", "MST ultra, auto")
    return [
        {"width": 64, "precision": "fp32", "tokens": 1, "contender": name, "peak_memory_bytes": 1}
        | {"seconds": [seconds if name == "MST ultra, auto" else other] * 3}
        for name in names
    ]


@pytest.mark.parametrize(
    ("name", "level", "family", "folder"),
    [
        ("AMD EPYC", "avx512-bf16", "25", "amd-epyc-zen4-avx512-bf16"),
        ("AMD EPYC", "avx512-bf16", "26", "amd-epyc-zen5-avx512-bf16"),
        ("AMD EPYC 9B14 96-Core Processor", "avx512-bf16", "25", "amd-epyc-zen4-avx512-bf16"),
        ("AMD EPYC 7763 64-Core Processor", "avx2", "25", "amd-epyc-zen3-avx2"),
        ("AMD EPYC", "avx2", "23", "amd-epyc-avx2"),
        ("Intel(R) Xeon(R) Processor", "amx", "6", "intel-xeon-amx"),
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "amx", "6", "intel-xeon-amx"),
        ("13th Gen Intel(R) Core(TM) i7-1365U", "avx2", "6", "intel-core-avx2"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "avx512-bf16", "25", "amd-ryzen-zen4-avx512-bf16"),
        ("aarch64", "plain", "", "aarch64-plain"),
        ("", "plain", "", "plain"),
    ],
)
def test_a_kind_is_maker_line_generation_and_instructions(name, level, family, folder):
    assert kind.kind(name, level, family) == folder


@needs_kernels
@pytest.mark.parametrize(("has_amx", "level"), [(True, "amx"), (False, "avx2")])
def test_a_processor_with_amx_is_of_no_lesser_kind(has_amx, level, monkeypatch):
    monkeypatch.delenv(HELD, raising=False)
    monkeypatch.setattr(choice.torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    monkeypatch.setattr(choice, "processor_kind", lambda: 1)
    assert choice.level() == level


@pytest.mark.parametrize("other", [{"processor": "Maker Other"}, {"threads": 4}, {"is_quick": True}])
def test_measurements_of_another_machine_are_not_mixed_in(other, tmp_path):
    part = {"machine": at("abc"), "rows": measured(0.5)}
    (tmp_path / "steps.json").write_text(json.dumps(part))
    kind.check_same(tmp_path, at("def"))
    ((key, value),) = other.items()
    with pytest.raises(
        UserError, match=f"steps.json was measured with {key} {MACHINE[key]}, and this .* with {value};"
    ):
        kind.check_same(tmp_path, at("def", **other))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """`bench` at a commit, of two parts that are measured at once: `steps` in so many seconds; or one is broken off."""
    monkeypatch.setattr(run, "library", lambda: True)
    monkeypatch.setattr(run, "SECTIONS", {name: report.SECTIONS[name] for name in ("steps", "metrics")})
    calls = []

    def rows(part, seconds):
        calls.append(part)
        if seconds is None:
            raise KeyboardInterrupt
        return measured(seconds) if part == "steps" else METRICS

    def bench(commit, steps=0.5, metrics=1, only=()):
        calls.clear()
        monkeypatch.setattr(run, "this_machine", lambda is_quick: at(commit))
        of = {"steps": lambda: rows("steps", steps), "metrics": lambda: rows("metrics", metrics)}
        monkeypatch.setattr(run, "_measures", lambda quick, data_dir: of)
        return run.bench(only, tmp_path, tmp_path / "data"), list(calls)

    return bench


METRICS = [{"profile": "small", "contender": "mst", "steps": 3, "updates": 3, "metrics_seconds": 0.1, "seconds": [1]}]


@pytest.mark.slow
def test_a_bench_that_was_interrupted_goes_on_with_what_is_missing(bench, tmp_path, capsys):
    folder = tmp_path / MACHINE["kind"]
    with pytest.raises(KeyboardInterrupt):
        bench("abc", metrics=None)
    assert "(b) Training steps" in (folder / "bench.md").read_text() and "2.00×" in (tmp_path / "README.md").read_text()
    assert bench("abc")[1] == ["metrics"]
    assert "measured at abc already: steps" in capsys.readouterr().err
    assert bench("abc")[1] == []
    assert bench("abc", only=["steps"])[1] == ["steps"]
    assert bench("def")[1] == ["steps", "metrics"]
    assert bench("def-dirty")[1] == bench("def-dirty")[1] == ["steps", "metrics"]  # of no commit


def test_each_part_says_its_own_machine_and_commit(bench, tmp_path):
    bench("abc", only=["metrics"])
    front, _ = bench("def", only=["steps"])
    assert "metrics abc; steps def" in front
    detail = (tmp_path / MACHINE["kind"] / "bench.md").read_text()
    assert "commit def;" in detail.split("## (b)")[1].split("## (g)")[0] and "commit abc;" in detail.split("## (g)")[1]


def test_the_history_says_what_moved_by_more_than_both_spreads(bench, tmp_path):
    bench("abc", steps=0.5)
    assert history.NOTHING in bench("def", steps=0.5)[0]
    front, _ = bench("ghi", steps=0.25)
    moved = "`auto_vs_masked_min`: 2.00× (2.00–2.00) at def, 4.00× (4.00–4.00) at ghi"
    assert f"- {MACHINE['kind']}, {moved}" in front
    detail = (tmp_path / MACHINE["kind"] / "bench.md").read_text()
    assert f"- {moved}" in detail
    (line,) = [line for line in detail.splitlines() if line.startswith("| `auto_vs_masked_min`")]
    assert [cell.split()[::2] for cell in line.split("|")[2:-1]] == [
        ["4.00×", "ghi"],
        ["2.00×", "def"],
        ["2.00×", "abc"],
    ]


@pytest.mark.parametrize(("spreads", "moved"), [((0.1, 0.1), True), ((0.3, 0.1), False), ((0.1, 0.3), False)], ids=str)
def test_a_move_is_greater_than_either_spread(spreads, moved, tmp_path):
    for commit, middle, spread in zip("ab", (2.0, 2.2), spreads):
        history.append(tmp_path, at(commit), {"topology_share": ratio(middle, spread)})
    assert bool(history.find_moved(history.read(tmp_path))) is moved


def test_a_history_is_of_one_machine_and_a_commit_stands_in_it_once(tmp_path):
    for machine, middle in ((at("a"), 1.0), (at("b", threads=4), 5.0), (at("c"), 2.0), (at("a"), 3.0)):
        history.append(tmp_path, machine, {"dense_vs_hf_trainer": ratio(middle)})
    history.append(tmp_path, at("d"), {})  # a part without a headline
    entries = history.read(tmp_path)
    assert [(entry["git"], entry["date"]) for entry in entries] == [(commit, "2026-01-01") for commit in "abca"]
    own = history.series(entries)["dense_vs_hf_trainer"]
    assert [(commit, value["ratio"]) for commit, value in own.items()] == [("c", 2.0), ("a", 3.0)]


def test_a_history_goes_on_from_the_committed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "COMMITTED", tmp_path / "reference")
    history.append(tmp_path / "reference" / "kind", at("a"), {"topology_share": ratio(1.0)})
    history.append(tmp_path / "kind", at("b"), {"topology_share": ratio(2.0)})
    assert [entry["git"] for entry in history.read(tmp_path / "kind")] == ["a", "b"]


@pytest.mark.parametrize("damage", ['{"git": ', "[]\n", '{"git": "abc"}\n'])
def test_a_damaged_history_is_named_and_not_written_over(damage, tmp_path):
    history.append(tmp_path, at("a"), {"topology_share": ratio(1.0)})
    file = tmp_path / history.FILE
    file.write_text(file.read_text() + damage)
    before = file.read_text()
    with pytest.raises(DamagedError, match="history.jsonl is damaged"):
        history.append(tmp_path, at("b"), {"topology_share": ratio(1.0)})
    assert file.read_text() == before


def test_what_is_damaged_is_named_before_an_hour_is_measured(bench, tmp_path):
    folder = tmp_path / MACHINE["kind"]
    for name in (history.FILE, "steps.json"):
        bench("abc")
        kept = (folder / name).read_text()
        for damage in ("5", '{"rows": []}'):
            (folder / name).write_text(damage)
            with pytest.raises(DamagedError, match=f"{name} is damaged"):
                bench("def")
            assert json.loads((folder / "metrics.json").read_text())["machine"]["git"] == "abc"
        (folder / name).write_text(kept)


@pytest.mark.parametrize(
    "damage", ["5", "{}", '{"spread": {"topology_share": [1, 2]}}', '{"a": 1, "spread": {"a": 1}}']
)
def test_a_damaged_summary_is_named(damage, tmp_path):
    (tmp_path / "summary.json").write_text(damage)
    with pytest.raises(DamagedError, match="summary.json is damaged"):
        page.read_summary(tmp_path)


def test_processors_stand_side_by_side():
    table = page.side_by_side(
        {"one": {"topology_share": ratio(0.01, 0.002)}, "two": {"dense_vs_hf_trainer": ratio(2.0)}}
    )
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0] == ["`make bench` calls it", "one", "two", "what it is"]
    assert [tuple(row[:3]) for row in cells[2:]] == [
        ("`dense_vs_hf_trainer`", "–", "2.00× (1.95–2.05)"),
        ("`topology_share`", "1.00% (0.90–1.10)", "–"),
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_committed_headlines_are_those_of_the_committed_seconds_and_within_their_spread(folder):
    parts = kind.read_parts(folder)
    found = {name: value for part in parts for name, value in report.headlines(part, parts[part]).items()}
    summary = page.read_summary(folder)
    assert summary == {name: pytest.approx(value) for name, value in found.items()}
    assert all(value["low"] <= value["ratio"] <= value["high"] for value in summary.values())
    last = {name: list(own.values())[-1] for name, own in history.series(history.read(folder)).items()}
    assert last == {name: pytest.approx(value) for name, value in found.items()}
    for part in parts.values():
        assert {key: part["machine"][key] for key in ("processor", "threads")} == {
            key: parts[next(iter(parts))]["machine"][key] for key in ("processor", "threads")
        }


def test_the_committed_page_is_of_the_committed_summaries_and_two_screens_long():
    text = (COMMITTED / page.FILE).read_text(encoding="utf-8")
    assert len(FOLDERS) >= 2 and all(f"({folder.name}/bench.md)" in text for folder in FOLDERS)
    assert page.side_by_side({folder.name: own for folder in FOLDERS if (own := page.read_summary(folder))}) in text
    assert len(text.splitlines()) <= 100
