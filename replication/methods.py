"""The registry of methods: name -> algorithm; ours, a package's, a plug-in's. Alone knows the baselines."""

import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from replication.baselines.dense import Dense
from replication.baselines.rigl import RigL
from replication.baselines.set import SET
from replication.baselines.static import Static
from replication.config import RunConfig
from replication.errors import UserError
from replication.keys import check_known, nearest
from replication.model.gpt2 import mask_blocks, mask_parts
from replication.model.layout import layout
from replication.mst import MST, mst_schedules, random_fraction
from replication.sparsity.algorithm import DynamicSparsityAlgorithm, SparsityAlgorithm
from replication.sparsity.distributions import DISTRIBUTIONS, in_whole_blocks
from replication.sparsity.meter import Meter
from replication.sparsity.metrics import METRICS
from replication.sparsity.schedules import ConstantSparsity, DropFraction, Schedules, UpdateSteps

VARIABLE = "REPLICATION_PLUGINS"
GROUP = "mst_replication.methods"  # of entry points: an installed package's `name = "module:method"`


@dataclass(frozen=True)
class Method:
    """An algorithm, how it changes the constant-sparsity schedules, and its own options.

    Attributes:
        algorithm: the class.
        schedules: (config, schedules of constant sparsity) -> the method's own.
        options: config -> keyword arguments that only this algorithm takes.
        defaults: of a method from outside: its options (`--set options.name=value`), which its algorithm is given by
            name, and their values where none are set.
    """

    algorithm: type[SparsityAlgorithm]
    schedules: Callable[[RunConfig, Schedules], Schedules] = lambda config, constant: constant
    options: Callable[[RunConfig], dict[str, Any]] = lambda config: {}
    defaults: Mapping[str, bool | int | float | str] = field(default_factory=dict)

    @property
    def is_dynamic(self) -> bool:
        """Does its topology evolve?"""
        return issubclass(self.algorithm, DynamicSparsityAlgorithm)


METHODS: dict[str, Method] = {
    "dense": Method(Dense),
    "static": Method(Static),
    "set": Method(SET),
    "rigl": Method(RigL),
    "mst": Method(MST, mst_schedules, lambda config: {"random_fraction": random_fraction(config)}),
}


def register(name: str, method: Method) -> None:
    """Add a method; to be called by a plug-in.

    Raises:
        UserError: the name is taken by another.
    """
    if not isinstance(method, Method):
        raise UserError(f"method {name!r} is {method!r}; allowed: a replication.methods.Method")
    if METHODS.get(name, method) != method:
        raise UserError(f"method {name!r} is there already; allowed: a name of its own")
    METHODS[name] = method


def plugins() -> list[str]:
    """Those of `--plugin`, in this process and in those that it starts: $REPLICATION_PLUGINS, a line each."""
    return os.environ.get(VARIABLE, "").splitlines()


def load_plugins(plugins: Iterable[str]) -> None:
    """Import modules that `register` methods: by name, as Python finds them from here, or by the path of a .py file.

    Raises:
        UserError: one cannot be imported.
    """
    for plugin in plugins:
        try:
            _import(plugin)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a module does when it is imported
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"--plugin {plugin} cannot be loaded ({problem}); allowed: a module's name, or a .py file"
            ) from None


def method(name: str) -> Method:
    """A method by name; an installed package's is loaded now.

    Raises:
        UserError: no such method, or its package cannot be imported.
    """
    if name not in METHODS and name in _installed():
        try:
            register(name, _installed()[name].load())
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(f"method {name!r} cannot be loaded from its package: {problem}") from None
    check_known("method", name, [*METHODS, *_installed()], ", or a plug-in's (--plugin)")
    return METHODS[name]


def build_algorithm(config: RunConfig) -> SparsityAlgorithm:
    """The configured method, not yet applied to a model.

    Raises:
        UserError: no such method, option or metric; blocks that do not divide a matrix.
    """
    chosen = method(config.method)
    for name in config.sparsity.metrics:
        check_known("sparsity.metrics", name, [*METRICS], ", or a plug-in's (--plugin)")
    return chosen.algorithm(
        build_schedules(config),
        in_whole_blocks(DISTRIBUTIONS[config.sparsity.distribution], math.prod(config.sparsity.block_shape)),
        initial_mask=config.sparsity.initial_mask,
        update_replaces_step=config.sparsity.update_replaces_step,
        reset_moments=config.sparsity.reset_moments,
        seed=config.seed,
        blocks=mask_blocks(config),
        parts=mask_parts(config),
        growth_score=config.sparsity.growth_score,
        growth_steps=config.sparsity.growth_steps,
        meter=Meter(config.sparsity.metrics, layout),
        **chosen.options(config),
        **_own_options(config, chosen),
    )


def build_schedules(config: RunConfig) -> Schedules:
    """What the configured method does at each step."""
    return method(config.method).schedules(config, _constant(config))


def _constant(config: RunConfig) -> Schedules:
    sparsity = 0.0 if method(config.method).algorithm is Dense else config.sparsity.sparsity
    end = config.train.steps if config.sparsity.update_end_step is None else config.sparsity.update_end_step
    return Schedules(
        sparsity=ConstantSparsity(sparsity),
        updates=UpdateSteps(config.sparsity.update_freq, config.sparsity.update_start_step, end),
        drop_fraction=DropFraction(((0, config.sparsity.drop_fraction),), end),
    )


def _own_options(config: RunConfig, chosen: Method) -> dict[str, Any]:
    """Of a method from outside, each of its default's type."""
    options = dict(chosen.defaults)
    for key, value in config.options.items():
        if key not in options:
            known = nearest(key, [*options])
            raise UserError(f"options.{key} is {value}, which {config.method} does not have; {known}")
        options[key] = _like(options[key], value, f"options.{key}")
    return options


def _like(default: Any, value: Any, key: str) -> Any:
    kind = type(default)
    converted = None
    if type(value) is kind:
        converted = value
    elif kind is not bool and (kind is str or not isinstance(value, bool)):  # true is no number
        with suppress(ValueError):
            converted = kind(value)
    if converted is None or converted != converted:
        raise UserError(f"{key} is {value!r}; allowed: a value like {default!r}")
    return converted


@cache
def _installed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _import(plugin: str) -> None:
    file = Path(plugin)
    if file.suffix != ".py":
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        importlib.import_module(plugin)
        return
    if not file.is_file():
        raise UserError(f"--plugin {plugin} is no file; allowed: a module's name, or a .py file")
    name = f"replication_plugin_{file.stem}_{crc32(str(file.resolve()).encode()):08x}"
    if name not in sys.modules:
        module = sys.modules[name] = ModuleType(name)
        module.__file__ = str(file)
        sys.path.append(str(file.resolve().parent))  # for the files beside it; last, so that it hides nothing
        try:
            SourceFileLoader(name, str(file)).exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
