"""The notebooks run from run folders alone, without a warning, and show their figures."""

import re
import shutil
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from synthetic_runs import write_runs, write_table_of_runs

from replication.analysis.ablations import NONE_TRAINED
from replication.config.profiles import arm_names

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SLOW = pytest.mark.slow


def read(name):
    """A committed notebook; imported here, as its checks of formats take seconds to be imported."""
    import nbformat

    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    return book


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_table_of_runs(folder)
    write_runs(folder, {"mst_random_growth": [3.95, 3.97, 3.96]})
    return folder


@pytest.mark.parametrize(
    ("name", "figures"),
    [("table1", 3), *(pytest.param(*of, marks=SLOW) for of in (("flops", 7), ("training", 12), ("ablations", 1)))],
)
def test_notebook_runs(name, figures, results, monkeypatch):
    monkeypatch.setenv("RESULTS", str(results))
    monkeypatch.setenv("PROFILE", "small")
    from nbclient import NotebookClient

    book = read(name)
    NotebookClient(book, timeout=60, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    for place, output in enumerate(outputs):
        if "image/png" in output.get("data", {}):
            assert len(output["metadata"]["image/png"]["alt"]) > 40
            assert "The figure in words" in outputs[place + 1]["data"]["text/markdown"]
    assert not [output for output in outputs if output.output_type in ("stream", "error")]


@pytest.mark.parametrize("name", ["table1", "flops", "training", "ablations"])
def test_a_committed_notebook_is_a_page_with_folded_code_and_told_figures(name):
    from nbconvert import HTMLExporter

    book = read(name)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.metadata == {"jupyter": {"source_hidden": True}} for cell in cells)  # and of no time of execution
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(NOTEBOOKS)])
    page, _ = exporter.from_notebook_node(book)
    assert page.count('<details class="code">') == len(cells)
    told = re.findall(r'alt="([^"]*)"', " ".join(re.findall(r"<img[^>]*>", page)))
    drawn = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(told) == len(drawn) == page.count("<img") and all(len(words) > 40 for words in told)


@pytest.mark.parametrize(
    "name", ["table1", *(pytest.param(name, marks=SLOW) for name in ("flops", "training", "ablations"))]
)
@pytest.mark.parametrize("arm", ["dense", "mst"])
def test_of_one_arm_alone_a_notebook_shows_what_there_is(name, arm, results, tmp_path, monkeypatch, capsys):
    shutil.copytree(results / "small" / arm, tmp_path / "small" / arm)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("PROFILE", "small")
    shell = InteractiveShell.instance()
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert shell.run_cell(cell.source.replace("%matplotlib inline", "")).success, capsys.readouterr().out


def test_after_table_1_alone_the_ablations_are_said_to_be_untrained(results, tmp_path, monkeypatch, capsys):
    for arm in set(arm_names("small")) & {path.name for path in (results / "small").iterdir()}:
        shutil.copytree(results / "small" / arm, tmp_path / "small" / arm)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("PROFILE", "small")
    cells = read("ablations").cells
    sources = [cell.source.replace("%matplotlib inline", "") for cell in cells if cell.cell_type == "code"]
    shown = [InteractiveShell.instance().run_cell(source).result for source in sources]
    assert NONE_TRAINED in shown


@pytest.mark.parametrize("name", ["table1", "flops", "training", "ablations"])
@pytest.mark.parametrize("lacks", ["runs", "logs"])
def test_without_runs_or_logs_a_notebook_says_so_in_one_line(name, lacks, results, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "results"
    if lacks == "logs":
        shutil.copytree(results, folder)
        for log in folder.rglob("metrics.jsonl"):
            log.unlink()
    monkeypatch.setenv("RESULTS", str(folder))
    monkeypatch.setenv("PROFILE", "small")
    book = read(name)
    first = next(cell.source for cell in book.cells if cell.cell_type == "code").replace("%matplotlib inline", "")
    InteractiveShell.instance().run_cell(first)
    said = capsys.readouterr().out.strip().splitlines()
    assert len(said) == 1 and said[0].startswith(f"error: {folder}/small holds no finished run of profile small")
