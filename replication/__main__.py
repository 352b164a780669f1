"""`python -m replication`, and how a command ends: by its code, or by a signal, at any moment."""

import signal
import sys

from replication.system.signals import ENDING, Interrupted, listening, tell

INSTALLED = "allowed: after `make install` and `. .venv/bin/activate`"


def main() -> int:
    """Run the command that the arguments say; returns the exit code."""
    try:
        with listening():
            try:
                from replication.cli import main  # takes a while, in which Ctrl-C may come
            except ModuleNotFoundError as error:
                tell(f"error: {error.name} is not installed for {sys.executable}; {INSTALLED}")
                return 2

            code = main()
    except Interrupted as interrupted:
        tell(str(interrupted))
        code = interrupted.code
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)  # all is done, and Python only tidies up
    return code


if __name__ == "__main__":
    sys.exit(main())
