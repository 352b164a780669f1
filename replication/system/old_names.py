"""Modules under the names that they had before they had rooms: for one release the same modules, which say so."""

import importlib
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

PACKAGE = "replication"
MOVED = {  # old name -> new one
    "card": "publish.card",
    "errors": "system.errors",
    "fields": "config.fields",
    "files": "system.files",
    "frames": "runs.frames",
    "keys": "config.keys",
    "launcher": "system.launcher",
    "limits": "config.limits",
    "machine": "system.machine",
    "pipeline": "campaign.pipeline",
    "profiles": "config.profiles",
    "push": "publish.push",
    "snapshots": "runs.snapshots",
    "sweep": "campaign.sweep",
    "tune": "campaign.tune",
}


class MovedFinder(MetaPathFinder, Loader):
    """Imports a module by its old name; both names are then one module, so that its classes exist once."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = f"{PACKAGE}.{MOVED[spec.name.rpartition('.')[2]]}"
        _say(spec.name, new)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__, "the import that is under way has set the old name's"
        module.__spec__ = module.__spec__.loader_state


def find_old(package: str, *modules: str) -> Callable[[str], Any]:
    """A package's `__getattr__`, for what was in the one module that had its name: it is in one of these now.

    A module of the package is asked for too, before it is imported: none of the others is for that.
    """

    def get(name: str) -> Any:
        is_own = name.startswith("_") or find_spec(f"{package}.{name}") is not None
        for module in () if is_own else modules:
            found = importlib.import_module(f"{package}.{module}")
            if hasattr(found, name) and not isinstance(getattr(found, name), ModuleType):
                _say(f"{package}.{name}", f"{package}.{module}.{name}")
                return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get


def _say(old: str, new: str) -> None:
    warnings.warn(f"{old} is {new} now; the old name goes with the next release", FutureWarning, stacklevel=3)
