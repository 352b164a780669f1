"""Old words of the command line: what they are now, and what a word alone means."""

import pytest

from replication.cli import build_parser
from replication.cli.old_words import OLD, modernise

MODERN = {
    "train --out x": "train --out x",
    "tune --methods set": "search tune --methods set",
    "suggest --budget 1e9": "plan suggest --budget 1e9",
    "calibrate gpt2": "evaluate gpt2 --reference gpt2",
    "calibrate --data-dir d models/gpt2": "evaluate --data-dir d models/gpt2 --reference gpt2",
    "calibrate mine --reference gpt2": "evaluate mine --reference gpt2",
    "ls": "runs list",
    "watch results --once": "runs watch results --once",
    "show run": "runs show run",
    "topology run": "runs topology run",
    "tradeoffs --loss 3": "report tradeoffs --loss 3",
    "paper": "report paper",
    "gpu-check --only steps": "bench gpu --only steps",
    "plan --method mst": "plan run --method mst",
    "plan --help": "plan --help",
    "plan machine": "plan machine",
    "report": "report page",
    "bench --quick": "bench cpu --quick",
}


@pytest.mark.parametrize(("old", "new"), MODERN.items())
def test_each_has_its_word_now(old, new):
    assert modernise(old.split()) == new.split()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((f"{word} x", " ".join(words)) for word, words in OLD.items()),
        ("plan --calibrate", "plan machine"),
        ("replicate --sweep a.b=1,2", "search grid"),
    ],
)
def test_an_old_word_says_so_in_a_line(old, new, capsys):
    modernise(old.split())
    (line,) = capsys.readouterr().err.splitlines()
    assert f"is `{new}" in line and line.endswith("the old name goes with the next release")


def test_help_has_about_ten_words(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    words = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    assert len(words) <= 12 and not set(words) & set(OLD)
