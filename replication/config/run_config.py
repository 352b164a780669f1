"""RunConfig: the whole configuration of a run, checked, from a profile, its arm and the command line."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, field, is_dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from replication.config.fields import (
    STRICT,
    AttentionConfig,
    DataConfig,
    EvalConfig,
    ModelConfig,
    MSTConfig,
    SparsityConfig,
    TrainConfig,
)
from replication.config.keys import flatten, nearest
from replication.config.limits import check, check_plain
from replication.system.errors import UserError

TYPES = ("bool", "int", "float", "str")  # by which pydantic tells apart what a value may be
IDENTITY = ("profile", "arm", "method", "seed")  # what says which run it is
# What these set changes no loss.
NO_RESULT = {"train.log_freq", "train.eval_freq", "train.checkpoint_freq", "train.eval_batches"}
NO_RESULT |= {"eval.tasks", "eval.at", "eval.keep_weights", "sparsity.metrics"}
NO_RESULT |= {"entries", "reference", *(f"reference.{key}" for key in ("n_layer", "n_head", "n_embd", "n_positions"))}
# Keys of earlier versions, and the value by which they changed nothing.
REMOVED: Mapping[tuple[str, str], Any] = {("sparsity", "growth_steps"): 1}


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """One run, whole.

    Attributes:
        arm: the row of Table 1 that it belongs to.
        method: the algorithm.
        options: of a method from outside: what this configuration has no field for.
        reference: the shape that every × compares with, where the arm changes the profile's; null: the run's own.
        entries: of the tokenizer, where it has fewer than were asked for; null: as many. The text decides it, and the
            trainer notes it.
    """

    profile: str
    arm: str
    method: str
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sparsity: SparsityConfig = field(default_factory=SparsityConfig)
    mst: MSTConfig = field(default_factory=MSTConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    options: dict[str, bool | int | float | str] = field(default_factory=dict)
    reference: ModelConfig | None = None
    entries: int | None = None

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**31, "seed", self.seed, "0 to 2147483647")
        for key, value in _values(self):
            check_plain(key, value)
        steps = self.train.steps
        for key, value in (
            ("sparsity.update_end_step", self.sparsity.update_end_step),
            ("attention.end_step", self.attention.end_step),
        ):
            check(value is None or value <= steps, key, value, f"at most the {steps} steps of this run")
        for step, _ in self.mst.sparsity_steps or ():
            check(step < steps, "mst.sparsity_steps", step, f"steps below the {steps} of this run")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, as in `config.yaml`."""
        return _validator().dump_python(self, mode="json")


def _values(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of each field, copying none: it is asked of every configuration that is made."""
    for key, value in vars(config).items():
        if is_dataclass(value):
            yield from _values(value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.").items()
        else:
            yield f"{prefix}{key}", value


def without_removed(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration as this version would have written it, where a key that is gone changed nothing."""
    for (section, key), value in REMOVED.items():
        keys = config.get(section)
        if isinstance(keys, dict) and keys.get(key, ...) == value:
            config[section] = {name: other for name, other in keys.items() if name != key}
    return config


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """Typed configuration from nested mappings; the errors of `load_config`."""
    try:
        return _validator().validate_python(values)
    except ValidationError as error:
        raise UserError(_explain(error.errors()[0])) from None


@cache
def _validator() -> TypeAdapter[RunConfig]:
    """Made once for all configurations."""
    return TypeAdapter(RunConfig)


def config_keys() -> list[str]:
    """Every dotted key of a run's configuration."""
    return [f"{section}.{key}" for section, keys in sections().items() for key in keys]


@cache
def sections() -> Mapping[str, Mapping[str, Any]]:
    """Section -> key -> default; one for all who ask, to be read."""
    return {name: keys for name, keys in asdict(RunConfig("", "", "")).items() if isinstance(keys, dict)}


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"] if part not in TYPES)  # not which of its types it is not
    if error["type"] in ("unexpected_keyword_argument", "dataclass_exact_type", "dataclass_type"):
        return f"unknown configuration key {key!r}; {nearest(key, config_keys())}"
    if key.startswith("options."):
        return f"{key} is {error['input']!r}; allowed: true, false, a finite number, or text"
    message = error["msg"][0].lower() + error["msg"][1:]
    allowed = message.removeprefix("input should be ").replace("a valid tuple", "a list, as in [a, b]")
    return f"{key} is {error['input']!r}; allowed: {allowed}"
