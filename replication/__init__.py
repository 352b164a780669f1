"""Mixed Sparsity Training (arXiv 2408.11746), rebuilt beside its baselines in one trainer."""

import os
from pathlib import Path

# Threads that wait spin for microseconds, then sleep: where others compute too, those that spin on take the time of
# those that they wait for. It is read once, when torch is loaded; `docs/clock.md` has what was measured.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# In the repository `baselines/` and `eval/` lie beside this folder. As parts of this package they collide with no
# other code of these names; an installed package has them within.
if not Path(__file__).with_name("baselines").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
