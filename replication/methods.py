"""The registry of methods: name -> algorithm; ours, a package's, a plug-in's. Alone knows the baselines."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from replication.baselines.dense import Dense
from replication.baselines.gmp import GMP
from replication.baselines.rigl import RigL
from replication.baselines.set import SET
from replication.baselines.static import Static
from replication.config.keys import check_known, nearest
from replication.config.run_config import RunConfig
from replication.model.gpt2 import mask_grids
from replication.model.layout import layout
from replication.mst import MST, NAMES, phases
from replication.plugins import digest, import_plugin, modules_of, plugins
from replication.sparsity.algorithm import DynamicSparsityAlgorithm, SparsityAlgorithm
from replication.sparsity.distributions import DISTRIBUTIONS, round_to_blocks
from replication.sparsity.meter import Meter
from replication.sparsity.metrics import METRICS
from replication.sparsity.schedules import (
    AttentionSwitch,
    ConstantSparsity,
    Phases,
    Schedules,
    UpdateSteps,
    constant,
    pruning,
)
from replication.sparsity.topology import balance
from replication.system.errors import MethodError, UserError

GROUP = "mst_replication.methods"  # of entry points: an installed package's `name = "module:method"`
GROWTH_SCORES = {"gradient": None, "balanced": balance}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_KINDS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


@dataclass(frozen=True)
class Method:
    """An algorithm, how it changes the constant-sparsity schedules, and its own options.

    Attributes:
        algorithm: the class.
        schedules: (config, schedules of constant sparsity) -> the method's own.
        options: config -> keyword arguments that only this algorithm takes.
        defaults: its own options (`--set options.name=value`), which its algorithm is given by
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


def mst_schedules(config: RunConfig, same: Schedules) -> Schedules:
    """MST's phases over the updates of a constant-sparsity method.

    With `mst.phases` auto those of before anything was decided: dense, with nothing to update.
    """
    steps, mst = config.train.steps, config.mst
    if mst.phases == "auto":
        never, whole = replace(same.updates, start=steps, end=steps), Phases(((0, NAMES[0]),))
        return replace(same, sparsity=ConstantSparsity(0.0), updates=never, phases=whole)
    bounds = ("warmup_start", "warmup_end", "restoration_start", "restoration_end")
    schedules = phases(
        steps,
        mst.ultra_sparsity,
        mst.final_sparsity,
        **{bound: getattr(mst, bound) for bound in bounds},
        drop_fraction=config.sparsity.drop_fraction,
        updates=same.updates,
        drop_fractions=mst.drop_fractions,
        sparsity_steps=mst.sparsity_steps,
        vary=mst.sparsity_variation,
    )
    return replace(schedules, attention=_attention(config, schedules.attention))


def _attention(config: RunConfig, middle: AttentionSwitch) -> AttentionSwitch:
    """The configured pattern, over the configured steps, else those of the middle phase."""
    chosen = config.attention
    if not config.mst.hybrid_attention:
        return AttentionSwitch()
    start = middle.start if chosen.start_step is None else chosen.start_step
    end = middle.end if chosen.end_step is None else chosen.end_step
    return AttentionSwitch(chosen.pattern, start, end)


def mst_options(config: RunConfig) -> dict[str, Any]:
    """Share of new connections grown at random, after the growth ablation."""
    return {"random_fraction": {"mixed": config.mst.random_fraction, "gradient": 0.0, "random": 1.0}[config.mst.growth]}


def gmp_schedules(config: RunConfig, same: Schedules) -> Schedules:
    """Gradual magnitude pruning's ramp over the updates of a constant-sparsity method.

    Raises:
        UserError: a ramp that does not lie within training.
    """
    options = own_options(config)
    start, end = options["ramp_start"], options["ramp_end"]
    try:
        schedules = pruning(config.train.steps, config.sparsity.sparsity, start=start, end=end)
    except MethodError as error:
        allowed = str(error).partition("; ")[2]
        raise UserError(f"options.ramp_start is {start} and options.ramp_end {end}; {allowed}") from None
    return replace(schedules, updates=same.updates)


METHODS: dict[str, Method] = {
    "dense": Method(Dense),
    "static": Method(Static),
    "set": Method(SET),
    "rigl": Method(RigL),
    "gmp": Method(GMP, gmp_schedules, defaults={"ramp_start": 0.25, "ramp_end": 0.75}),
    "mst": Method(MST, mst_schedules, mst_options),
}


HOUSE = tuple(METHODS)  # those of this package


def register(name: str, method: Method) -> None:
    """Add a method; to be called by a plug-in.

    Raises:
        UserError: the name is taken by another.
    """
    is_one = isinstance(method, Method) and isinstance(method.algorithm, type)
    if not (is_one and issubclass(method.algorithm, SparsityAlgorithm)):
        raise UserError(f"method {name!r} is {method!r}; allowed: a replication.methods.Method of a SparsityAlgorithm")
    if METHODS.get(name, method) != method:
        raise UserError(f"method {name!r} is there already; allowed: a name of its own")
    METHODS[name] = method


_given: dict[str, tuple[ModuleType, set[str]]] = {}  # plug-in -> its module, and what it registered


def load_plugins(names: Iterable[str]) -> None:
    """Import modules that `register` methods: by name, as Python finds them from here, or by the path of a .py file.

    Raises:
        UserError: one cannot be imported.
    """
    for plugin in names:
        before = _list_registered()
        try:
            module = import_plugin(plugin)
            digest([module])  # as it is now
            _given.setdefault(plugin, (module, _list_registered() - before))
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
    if name not in METHODS and name in _find_installed():
        try:
            register(name, _find_installed()[name].load())
        except (Exception, SystemExit) as error:
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(f"method {name!r} cannot be loaded from its package: {problem}") from None
    check_known("method", name, [*METHODS, *_find_installed()], ", or a plug-in's (--plugin)")
    return METHODS[name]


def build_algorithm(
    config: RunConfig, variant: type[SparsityAlgorithm] | None = None, **more: Any
) -> SparsityAlgorithm:
    """The configured method, not yet applied to a model.

    Args:
        variant: a class in place of the method's own, which takes `more` beside.

    Raises:
        UserError: no such method, option or metric; blocks that do not divide a matrix.
    """
    chosen = method(config.method)
    for name in config.sparsity.metrics:
        check_known("sparsity.metrics", name, [*METRICS], ", or a plug-in's (--plugin)")
    shared: dict[str, Any] = {
        "initial_mask": config.sparsity.initial_mask,
        "update_replaces_step": config.sparsity.update_replaces_step,
        "reset_moments": config.sparsity.reset_moments,
        "seed": config.seed,
        "grids": mask_grids(config),
        "growth_score": GROWTH_SCORES[config.sparsity.growth_score],
        "meter": Meter(config.sparsity.metrics, layout),
    }
    whole_blocks = math.prod(config.sparsity.block_shape)
    distribution = round_to_blocks(DISTRIBUTIONS[config.sparsity.distribution], whole_blocks)
    schedules, own = build_schedules(config), chosen.options(config) | own_options(config) | more
    try:
        return (variant or chosen.algorithm)(schedules, distribution, **shared, **own)
    except TypeError as error:
        if config.method in HOUSE:
            raise
        made = f"{chosen.algorithm.__name__} of method {config.method} cannot be made"
        raise MethodError(
            f"{made} with its options ({', '.join(own) or 'none'}): {error}; "
            "allowed: a class that takes each of `defaults` by name, and hands *args and **kwargs on"
        ) from error


def build_schedules(config: RunConfig) -> Schedules:
    """What the configured method does at each step."""
    schedules = method(config.method).schedules(config, _constant(config))
    if not isinstance(schedules, Schedules):
        raise MethodError(f"schedules of method {config.method} gives {schedules!r}; allowed: a Schedules")
    return schedules


def _constant(config: RunConfig) -> Schedules:
    sparsity = 0.0 if method(config.method).algorithm is Dense else config.sparsity.sparsity
    chosen = config.sparsity
    end = config.train.steps if chosen.update_end_step is None else chosen.update_end_step
    schedules = constant(end, sparsity, update_freq=chosen.update_freq, drop_fraction=chosen.drop_fraction)
    return replace(schedules, updates=UpdateSteps(chosen.update_freq, chosen.update_start_step, end))


def convert_options(config: RunConfig) -> RunConfig:
    """The configuration with each option that it sets as its algorithm is given it."""
    return replace(config, options={key: value for key, value in own_options(config).items() if key in config.options})


def own_options(config: RunConfig) -> dict[str, Any]:
    """Those of a method from outside, by name, where none is set its default.

    Raises:
        UserError: an option that it does not have, or that is not of its default's type.
    """
    options = dict(method(config.method).defaults)
    for key, value in config.options.items():
        if key not in options:
            known = nearest(key, [*options])
            raise UserError(f"options.{key} is {value}, which {config.method} does not have; {known}")
        options[key] = _like(options[key], value, f"options.{key}")
    return options


def _like(default: Any, value: Any, key: str) -> Any:
    """The value, exactly of its default's type; a number that is the same in that type, as 2.0 is 2, becomes it."""
    kind, exact = type(default), value
    if kind in (int, float) and isinstance(value, str) and _NUMBER.fullmatch(value):
        exact = float(value)  # as 1e-3, which YAML takes for text
    if kind in (int, float) and type(exact) in (int, float) and math.isfinite(exact) and exact == kind(exact):
        return kind(exact)
    if type(value) is not kind or kind in (int, float):
        raise UserError(f"{key} is {value!r}; allowed: {_KINDS.get(kind, kind.__name__)}, as its default {default!r}")
    return value


def code_of(config: RunConfig) -> dict[str, str]:
    """sha256, by what it is, of the code outside of this package that a run is made of.

    That is its method's and its metrics', with the files beside it that it imports; and that of plug-ins that register
    neither, whose effect nobody knows.
    """
    parts: dict[str, tuple[Any, ...]] = {}
    if config.method not in HOUSE:
        chosen = method(config.method)
        parts[f"method {config.method}"] = (chosen.algorithm, chosen.schedules, chosen.options)
    parts |= {f"metric {name}": (METRICS[name].function,) for name in config.sparsity.metrics if name in METRICS}
    code = {}
    for name, things in parts.items():
        modules = [module for module, given in _given.values() if name in given]
        if modules := modules + [module for thing in things for module in modules_of(thing)]:
            code[name] = digest(modules)
    for plugin in plugins():
        module, given = _given.get(plugin, (None, {plugin}))
        if module and not given:
            code[f"plug-in {Path(plugin).name}"] = digest([module])
    return code


def modules() -> list[ModuleType]:
    """Where code from outside is."""
    things: list[Any] = [part for own in METHODS.values() for part in (own.algorithm, own.schedules, own.options)]
    things += [metric.function for metric in METRICS.values()]
    return [module for module, _ in _given.values()] + [module for thing in things for module in modules_of(thing)]


def _list_registered() -> set[str]:
    return {f"method {name}" for name in METHODS} | {f"metric {name}" for name in METRICS}


@cache
def _find_installed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
