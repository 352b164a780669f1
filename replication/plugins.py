"""Plug-ins, modules of one's own that register methods and metrics: importing them, and what their code is."""

import ast
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import all_suffixes
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any
from zlib import crc32

from replication.system.errors import MethodError, TrainingError, UserError, is_out_of_memory

VARIABLE = "REPLICATION_PLUGINS"
HOUSE = __name__.partition(".")[0]
_INSTALLED = {"site-packages", "dist-packages"}  # folders whose other packages are versions' to tell, not ours


def plugins() -> list[str]:
    """Those of `--plugin`, in this process and in those that it starts: $REPLICATION_PLUGINS, a line each."""
    return os.environ.get(VARIABLE, "").splitlines()


def import_plugin(plugin: str) -> ModuleType:
    """By a module's name, as Python finds it from here, or by the path of a .py file; once in a process."""
    file = Path(plugin)
    if file.suffix != ".py":
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(plugin)
    if not file.is_file():
        raise UserError(f"--plugin {plugin} is no file; allowed: a module's name, or a .py file")
    name = f"replication_plugin_{file.stem}_{crc32(str(file.resolve()).encode()):08x}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(file)
        sys.path.append(str(file.resolve().parent))  # for the files beside it; last, so that it hides nothing
        try:
            # not by a loader, which may find the compiled code of another version: what is hashed is what runs
            exec(compile(_read(file.resolve()), str(file), "exec"), module.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def digest(modules: Iterable[ModuleType]) -> str:
    """sha256 of what the modules' files and those that they import from beside them hold, whatever they are called."""
    contents = {hashlib.sha256(_read(file)).digest() for module in modules for file in sources(module)}
    return hashlib.sha256(b"".join(sorted(contents))).hexdigest()


def modules_of(thing: Any) -> list[ModuleType]:
    """Modules outside of this package and of Python's own library that a class (its bases too) or function is from."""
    names = [getattr(part, "__module__", None) for part in getattr(thing, "__mro__", [thing])]
    own = {HOUSE, "builtins", *sys.stdlib_module_names} - {"__main__"}
    return [sys.modules[name] for name in names if name in sys.modules and name.partition(".")[0] not in own]


def sources(module: ModuleType) -> list[Path]:
    """The module's file, and those beside it, or in its package, that it imports: its code, and none of a library's."""
    if not getattr(module, "__file__", None):  # of a notebook, or made by hand
        return []
    file = Path(str(module.__file__)).resolve()
    depth = len(module.__package__.split(".")) if module.__package__ else 0
    return _sources(file, file.parents[depth])


def beside(file: Path) -> list[Path]:
    """A module's file by its path, and those beside it that it imports."""
    return _sources(file.resolve(), file.resolve().parent)


@cache
def _sources(file: Path, root: Path) -> list[Path]:
    found, waiting = [], [file]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.append(one)
            waiting += [other for name in _find_imports(one, root) for other in _beside(name, file, root)]
    return found


def _find_imports(file: Path, root: Path) -> Iterator[str]:
    """Dotted names, as seen from `root`, of whatever a file may import, in functions too."""
    try:
        tree = ast.parse(_read(file)) if file.suffix == ".py" else ast.Module([], [])
    except (SyntaxError, ValueError):  # whoever imports it fails
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = file.parents[node.level - 1] if node.level else root
            above = ".".join(folder.relative_to(root).parts) if folder.is_relative_to(root) else ""
            base = ".".join(filter(None, (above, node.module)))
            yield from (".".join(filter(None, (base, name))) for name in ("", *(alias.name for alias in node.names)))


def _beside(name: str, first: Path, root: Path) -> Iterator[Path]:
    """The files below `root` that importing a dotted name runs, as far as they are what it means."""
    parts = name.split(".")
    own = first.relative_to(root).parts[0].removesuffix(".py")
    if not name or parts[0] == HOUSE or (parts[0] != own and not _INSTALLED.isdisjoint(root.parts)):
        return
    for length in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:length])
        loaded = getattr(sys.modules.get(".".join(parts[:length])), "__file__", None)
        for file in (place / "__init__.py", *(place.with_name(place.name + suffix) for suffix in all_suffixes())):
            if file.is_file() and (loaded is None or Path(loaded).resolve() == file.resolve()):
                yield file.resolve()


@cache
def _read(file: Path) -> bytes:
    """As it was when this process read it first: what it has imported does not change with the file."""
    return file.read_bytes()


@contextmanager
def blaming() -> Iterator[None]:
    """Raises MethodError where what is done in it fails in a method's, a metric's or a plug-in's code from outside;
    `sys.exit` there is a failure too. What is known to be wrong, and a lack of memory, are raised as they are."""
    try:
        yield
    except (UserError, TrainingError, BrokenPipeError):
        raise
    except (Exception, SystemExit) as error:
        methods = sys.modules.get(f"{HOUSE}.methods")  # without which nothing from outside was called
        place = _place(error, methods.modules()) if methods and not is_out_of_memory(error) else None
        if place is None:
            raise
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise MethodError(f"{place} fails ({problem}); allowed: code that ends without an error") from error


def _place(error: BaseException, modules: Iterable[ModuleType]) -> str | None:
    """`Class.function` of the modules' own code that an error came from or through; None: it came from elsewhere."""
    files = {os.path.realpath(file) for module in modules if (file := getattr(module, "__file__", None))}
    trace: TracebackType | None = error.__traceback__
    while trace:
        code = trace.tb_frame.f_code
        if os.path.realpath(code.co_filename) in files:
            owner = trace.tb_frame.f_locals.get("self")
            is_method = owner is not None and inspect.isroutine(getattr(type(owner), code.co_name, None))
            return f"{type(owner).__name__}.{code.co_name}" if is_method else code.co_qualname
        trace = trace.tb_next
    return None
