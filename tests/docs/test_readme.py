"""What README.md, docs/ and CONTRIBUTING.md say: commands, examples, rows, numbers and links are as they stand."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from replication.bench.page import read_summary, side_by_side
from replication.cli import build_parser
from replication.cli.old_words import modernise
from replication.config.profiles import arm_names, default_seeds, load_config
from replication.forecast.dry_run import dry_run
from replication.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
TEXTS = {file.relative_to(ROOT): file.read_text(encoding="utf-8") for file in FILES}
README = TEXTS[Path("README.md")]
ALL = "\n".join(TEXTS.values())
COMMITTED = "".join(
    (ROOT / "results" / "reference" / profile / f"{table}.md").read_text(encoding="utf-8")
    for profile in ("small", "text")
    for table in ("table1", "ablations")
    if (ROOT / "results" / "reference" / profile / f"{table}.md").exists()
) + "".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / "docs" / "earlier").glob("*.md")))


def blocks(language, text=ALL):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands(start):
    lines = "".join(blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def inline(start):
    """Commands within sentences and tables."""
    return [shlex.split(command) for command in re.findall(rf"`({start} [^`]+)`", without_code(ALL))]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("command", commands("python -m replication") + inline("python -m replication"), ids=" ".join)
def test_commands_are_ones_that_the_parser_and_the_profiles_take(command):
    options = build_parser().parse_args(modernise(command[3:]))
    if "profile" in options and not options.profile.endswith(".yaml"):
        arms = [options.method] if "method" in options else arm_names(options.profile)
        for arm in arms:
            if arm is not None:
                load_config(options.profile, arm, 0, getattr(options, "set", []))


def test_make_targets_are_there():
    targets = {command[1] for command in commands("make")} | set(re.findall(r"`make ([a-z0-9-]+)", ALL))
    assert {"replicate-table1", "notebooks", "help", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_every_command_has_an_example():
    shown = {command[3] for command in commands("python -m replication")}
    (choices,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    assert shown == set(choices)


@pytest.mark.slow
def test_the_worked_example_runs_from_outside_the_repository(overrides, data_dir, tmp_path):
    """Its three blocks as they stand, in a folder of their own; only the text and the size are the tests'."""
    page = TEXTS[Path("docs/extending.md")]
    (source,), (profile,) = blocks("python", page), blocks("yaml", page)
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
    folders = [file.parent for file in sorted((ROOT / "results" / "reference" / "bench").glob("*/summary.json"))]
    measured = {folder.name: own for folder in folders if (own := read_summary(folder))}
    assert side_by_side(measured) in TEXTS[Path("docs/clock.md")]
    whole = [own["run_mst_vs_dense_fp32"]["ratio"] for own in measured.values() if "run_mst_vs_dense_fp32" in own]
    told = re.search(r"([\d.]+) to ([\d.]+)× less time", README).groups()
    assert told == (f"{min(whole):.2f}", f"{max(whole):.2f}")


@pytest.mark.parametrize(("file", "least"), [("README.md", 7), ("docs/findings.md", 23), ("docs/earlier.md", 8)])
def test_tables_and_differences_are_those_that_are_committed(file, least):
    """Every row of a table of results, and every signed number of nats in the text, stands in a committed table."""
    rows = [
        line
        for line in without_code(TEXTS[Path(file)]).splitlines()
        if line.startswith("|") and re.search(r"\d\.\d{3} ± |: \d\.\d|[+-]\d\.\d{3}", line)
    ]
    assert len(rows) >= least
    assert [row for row in rows if row not in COMMITTED.splitlines()] == []


def test_signed_numbers_of_nats_are_those_that_are_committed():
    told = {number.replace("−", "-") for number in re.findall(r"[+−-]\d\.\d{3}(?!\d)", without_code(ALL))}
    assert len(told) > 20
    assert {number for number in told if number not in COMMITTED} == set()


def test_sizes_of_profiles_are_theirs():
    told = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \|", README, flags=re.MULTILINE)
    assert [profile for profile, *_ in told] == ["smoke", "small", "text", "paper"]
    for profile, parameters, tokens in told:
        plan = dry_run(load_config(profile, "mst", 0))
        assert (f"{plan['parameters']['trained']:,}", f"{plan['tokens']:,}") == (parameters, tokens)


def test_as_many_runs_are_told_as_table_1_has():
    assert f"train {len(arm_names('small'))} arms × " in README
    told = dict(re.findall(r"^\| `(\w+)` .* for (\d+) runs, scores", README, flags=re.MULTILINE))
    assert told.keys() == {"small", "text"}
    for profile, num in told.items():
        assert int(num) == sum(len(default_seeds(profile, arm)) for arm in arm_names(profile))


def test_the_readme_is_short():
    assert len(README.split()) <= 1500


@pytest.mark.parametrize("file", TEXTS, ids=str)
def test_lines_of_text_are_short_and_pictures_have_words(file):
    lines = without_code(TEXTS[file]).splitlines()
    assert [line for line in lines if len(line) > 160 and not line.startswith("|")] == []
    assert [words for words in re.findall(r"!\[(.*?)\]\(", TEXTS[file], flags=re.DOTALL) if len(words) < 20] == []


@pytest.mark.parametrize("file", [*TEXTS, Path("CHANGELOG.md"), Path("eval/README.md")], ids=str)
def test_links_lead_somewhere(file):
    text = without_code((ROOT / file).read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / file).parent / path if path else ROOT / file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_the_readme_and_the_index():
    pages = {file.name for file in TEXTS if file.parent.name == "docs" and file.name != "README.md"}
    assert (
        pages
        == set(re.findall(r"\]\(docs/(\w+\.md)\)", README))
        == {*re.findall(r"\]\((\w+\.md)\)", TEXTS[Path("docs/README.md")])}
    )


def test_features_are_where_they_are_said_to_be():
    text = TEXTS[Path("docs/features.md")]
    for path in re.findall(r"`((?:replication|tests)/[^`:]+)", text):
        assert (ROOT / path).exists(), path
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(tests) >= 12
    for file, name in tests:
        assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_the_paper_is_cited_as_it_is_called():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,) = citation["references"]
    assert (paper["url"], [author["family-names"] for author in paper["authors"]]) == (
        "https://arxiv.org/abs/2408.11746",
        ["Hu", "Li", "Huang"],
    )
    assert citation["license"] == "MIT" and (ROOT / "LICENSE").read_text().startswith("MIT License")


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

    named = {command[3]: command for command in commands("python -m replication") if "runs/mst" in " ".join(command)}
    (plan,) = [command for command in commands("python -m replication plan") if "--json" in command]
    train, evaluate = named["train"], named["evaluate"]
    (stock,) = commands("lm_eval")
    run(["python", "-m", "replication", "data", "--profile", "smoke"])
    run(train)
    ours, theirs = run(evaluate), run(stock)
    assert '"reduction"' in run(plan)
    accuracy = float(re.search(r"embedded_lastword  acc,none  (\S+)", ours)[1])
    perplexity = float(re.search(r"embedded_lastword  perplexity,none  (\S+)", ours)[1])
    assert float(re.search(r"\|acc +\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(accuracy, abs=5e-5)
    assert float(re.search(r"\|perplexity *\|\S+ +\| *([\d.]+)", theirs)[1]) == pytest.approx(perplexity, rel=1e-4)
