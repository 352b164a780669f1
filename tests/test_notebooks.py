"""The notebooks run from run folders alone, without a warning, and show their figures."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from synthetic_runs import write_table_of_runs

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_table_of_runs(folder)
    return folder


@pytest.mark.parametrize(("name", "figures"), [("table1", 3), ("flops", 7), ("training", 11), ("ablations", 1)])
def test_notebook_runs(name, figures, results, monkeypatch):
    monkeypatch.setenv("RESULTS", str(results))
    monkeypatch.setenv("PROFILE", "small")
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(book)
    NotebookClient(book, timeout=60, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == figures
    assert not [output for output in outputs if output.output_type in ("stream", "error")]
