"""Run a command once at each lower level of instructions: python scripts/at_each_level.py make test."""

import os
import subprocess
import sys

from replication.kernels.choice import level
from replication.system.instructions import find_lower_levels, hold_environment


def main(command: list[str]) -> int:
    """Ends with 1 where the command failed at a level, and says at which."""
    levels, failed = find_lower_levels(level()), []
    for lower in levels:
        print(f"\n{lower}: {' '.join(command)}", flush=True)
        if subprocess.run(command, env={**os.environ, **hold_environment(lower)}).returncode:
            failed.append(lower)
    print(f"\nFailed at {', '.join(failed)}." if failed else f"\nPassed at {', '.join(levels) or 'no lower level'}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
