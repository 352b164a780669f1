"""The page of commands lists those that there are."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_is_the_parsers(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from list_commands import PAGE, insert

    assert PAGE.read_text() == insert(PAGE.read_text()), "run python docs/list_commands.py"
