"""`compare`: are new runs worse than a reference's?"""

import argparse
import json
import sys
from pathlib import Path

from replication.cli.options import Words, add_flag, add_option
from replication.system.machine import is_terminal
from replication.system.streams import say


def add(words: Words) -> None:
    summary = "what of new runs is worse than of a reference, and what better, at a false-alarm rate of 1 %"
    compare = words.command("compare", run, summary)
    what = "a folder of results, of an arm or a run, or of what `evaluate --out` wrote"
    add_option(compare, "reference", what, type=Path, metavar="REFERENCE")
    add_option(compare, "new", "the same", type=Path, metavar="NEW")
    fails = "exit with 1 where a run is missing, or anything is worse; or anything but speed and memory"
    add_option(compare, "--fail-on", fails, choices=["worse", "worse-result"])
    add_flag(compare, "--all", "an arm of the reference that the new side has not trained counts as missing")
    add_flag(compare, "--json", "every row, as JSON")


def run(options: argparse.Namespace) -> int:
    from replication.analysis.compare import compare
    from replication.analysis.sides import MEMORY, SPEED

    comparison = compare(options.reference, options.new, options.all)
    if options.json:
        print(json.dumps(comparison.to_dict(), indent=1))
    elif is_terminal(sys.stdout):
        from replication.analysis.compare_text import show
        from replication.system.terminal import Screen

        show(comparison, Screen())
    else:
        from replication.analysis.compare_text import markdown

        say(markdown(comparison))
    but_for = (SPEED, MEMORY) if options.fail_on == "worse-result" else ()
    return 1 if options.fail_on and comparison.is_worse(but_for) else 0
