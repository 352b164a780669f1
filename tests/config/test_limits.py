"""Every key of a configuration at and beyond its limits, one by one: refused in one line, or a configuration."""

import math

import pytest

from replication.config.limits import LARGEST
from replication.config.profiles import load_config
from replication.config.run_config import sections
from replication.system.errors import UserError, out_of_memory
from replication.system.machine import check_memory

KEYS = [f"{section}.{key}" for section, keys in sections().items() for key in keys]
ODD = ["-1", "0", "1", "1e400", ".inf", "-.inf", ".nan", "null", "true", "[]", "{}", "[[1]]", "''", "x", "1e-320"]
ODD += [str(10**20), str(-(10**20)), "0" * 5000, "1" * 5000, '"a\\0b"', '"\\ud800"', '"a\\nb"', "!!python/name:os"]
ODD += ["[" * 200, "&a [*a]", "2024-01-01", "0x7fffffffffffffff", "~", "'${x}'", "*", "? [a]", "!!binary aGk="]


@pytest.mark.parametrize("key", KEYS)
def test_a_value_is_refused_in_one_line_or_makes_a_configuration(key):
    for value in ODD:
        try:
            config = load_config("smoke", "mst", 0, [f"{key}={value}"])
        except UserError as error:
            assert len(str(error).splitlines()) == 1, value
            assert key.partition(".")[0] in str(error), value
        else:
            section, _, name = key.partition(".")
            held = getattr(getattr(config, section), name)
            for number in held if isinstance(held, tuple) else (held,):
                assert not isinstance(number, int | float) or math.isfinite(number), value
                assert not isinstance(number, int) or abs(number) <= LARGEST, value


@pytest.mark.parametrize(
    "override", ["train.beta1=1.0", "train.beta2=1", "train.weight_decay=-1", "train.num_steps=10000001"]
)
def test_what_no_optimizer_takes_is_refused_by_its_key(override):
    with pytest.raises(UserError, match=f"^{override.partition('=')[0]} is .*; allowed: "):
        load_config("smoke", "mst", 0, [override])


def test_a_model_that_the_machine_has_no_memory_for_is_refused_before_it_is_made():
    with pytest.raises(UserError, match="^out of memory: weights are .* GiB, and this machine has .*; allowed: "):
        check_memory(2**60, "weights")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nframe #0"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment: Cannot allocate memory"),
    ],
)
def test_missing_memory_is_one_line_whoever_misses_it(error):
    with pytest.raises(UserError, match="^out of memory .*; allowed: .*what was saved is kept$"), out_of_memory():
        raise error


def test_other_errors_are_raised_as_they_are():
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory():
        raise RuntimeError("a bug")
