"""Mixed Sparsity Training (arXiv 2408.11746), rebuilt beside its baselines in one trainer."""

from pathlib import Path

# In the repository `baselines/` and `eval/` lie beside this folder. As parts of this package they collide with no
# other code of these names; an installed package has them within.
if not Path(__file__).with_name("baselines").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
