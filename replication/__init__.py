"""Mixed Sparsity Training (arXiv 2408.11746), rebuilt beside its baselines in one trainer.

The names in `__all__` are for code of one's own (docs/library.md); each is imported when it is first read.
"""

import importlib
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replication.system.old_names import MovedFinder

if TYPE_CHECKING:
    from replication.baselines.dense import Dense
    from replication.baselines.gmp import GMP
    from replication.baselines.rigl import RigL
    from replication.baselines.set import SET
    from replication.baselines.static import Static
    from replication.library import count, evaluate, load, train
    from replication.mst import MST, phases
    from replication.sparsity.algorithm import DynamicSparsityAlgorithm, SparsityAlgorithm
    from replication.sparsity.distributions import erdos_renyi, uniform
    from replication.sparsity.schedules import constant, pruning
    from replication.system.errors import MethodError, UserError

_MODULES = {
    "baselines.dense": ("Dense",),
    "baselines.gmp": ("GMP",),
    "baselines.rigl": ("RigL",),
    "baselines.set": ("SET",),
    "baselines.static": ("Static",),
    "system.errors": ("MethodError", "UserError"),
    "library": ("count", "evaluate", "load", "train"),
    "mst": ("MST", "phases"),
    "sparsity.algorithm": ("DynamicSparsityAlgorithm", "SparsityAlgorithm"),
    "sparsity.distributions": ("erdos_renyi", "uniform"),
    "sparsity.schedules": ("constant", "pruning"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_WHERE)
_BESIDE = ("baselines", "eval")

# Threads that wait spin for microseconds, then sleep: where others compute too, those that spin on take the time of
# those that they wait for. It is read once, when torch is loaded; `docs/clock.md` has what was measured.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Beside(MetaPathFinder):
    """Finds `replication.baselines` and `replication.eval`, which in the repository lie beside this folder, and
    nothing else there. As parts of this package they collide with no other code of these names; an installed package
    has them within."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        if package != __name__ or name not in _BESIDE:
            return None
        folder = Path(__file__).parents[1] / name
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


if not Path(__file__).with_name("baselines").is_dir():
    sys.meta_path.append(_Beside())
sys.meta_path.insert(0, MovedFinder())  # before what earlier versions left, such as `profiles/__pycache__`
