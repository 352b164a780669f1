"""The kernels built with the sanitizers of addresses and of undefined behaviour, under the kernels' own tests."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from replication.kernels import library

HERE = Path(__file__).parent
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
BUILD = ("-fPIC", "-shared", "-fopenmp", "-Wno-psabi")
KERNELS = ("sparse_kernels", "tile_kernels", "row_tiles", "attention_kernels", "activation", "loss_kernel")
# Python finds the sanitized build before the installed one.
RUN = """
import sys, pytest, replication.kernels
replication.kernels.__path__.insert(0, sys.argv[1])
from replication.kernels.library import library
assert library()._name.startswith(sys.argv[1]), library()
sys.exit(pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-m", "not slow", *sys.argv[2:]]))
"""


def ran(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, **options)


def preloaded(compiler):
    """The sanitizer, and the C++ library: what it needs to follow exceptions, which Python itself does not load."""
    found = [ran(compiler, f"-print-file-name={name}").stdout.strip() for name in ("libasan.so", "libstdc++.so.6")]
    return ":".join(found) if all(Path(file).is_absolute() for file in found) else None


@pytest.fixture
def compiler(tmp_path):
    """One with sanitizers that can be loaded before Python."""
    found, program = shutil.which(os.environ.get("CC") or "cc"), tmp_path / "empty"
    if not found:
        pytest.skip("no C compiler")
    program.with_suffix(".c").write_text("int main(void) { return 0; }\n")
    built = ran(found, *SANITIZE, program.with_suffix(".c"), "-o", program)
    if built.returncode or ran(program).returncode or not preloaded(found):
        pytest.skip(f"{found} has no sanitizers of addresses and undefined behaviour in libraries of their own")
    return found


@pytest.mark.slow
def test_the_kernels_touch_only_what_is_theirs_and_do_nothing_undefined(compiler, tmp_path):
    module = tmp_path / f"_sparse{sysconfig.get_config_var('EXT_SUFFIX')}"
    source = Path(library.__file__).with_name("sparse.c")
    built = ran(compiler, *SANITIZE, *BUILD, source, "-o", module, "-lm")
    assert built.returncode == 0, built.stderr
    environment = os.environ | {
        "LD_PRELOAD": preloaded(compiler),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python leaks; and one test asks for too much
        "OMP_NUM_THREADS": "2",
    }
    tests = [HERE / f"test_{name}.py" for name in (*KERNELS, "kernel_memory")]
    tested = ran(sys.executable, "-c", RUN, tmp_path, *tests, env=environment)
    assert tested.returncode == 0, tested.stdout[-20_000:] + tested.stderr[-20_000:]
