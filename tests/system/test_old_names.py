"""Names of modules before they had rooms: the same modules and classes, for one release, and a warning."""

import importlib
import subprocess
import sys

import pytest

from replication.system.old_names import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_an_old_module_is_the_new_one(old, new):
    sys.modules.pop(f"replication.{old}", None)
    with pytest.warns(FutureWarning, match=f"replication.{old} is replication.{new} now"):
        found = importlib.import_module(f"replication.{old}")
    assert found is importlib.import_module(f"replication.{new}")
    assert found.__name__ == found.__spec__.name == f"replication.{new}"


def test_what_was_in_a_module_that_is_a_package_now():
    import replication.config
    import replication.flops
    import replication.runs
    from replication.config.run_config import RunConfig
    from replication.flops.ledger import Ledger
    from replication.runs.folder import RunFolder
    from replication.runs.frames import load

    with pytest.warns(FutureWarning, match="replication.runs.RunFolder is replication.runs.folder.RunFolder now"):
        assert replication.runs.RunFolder is RunFolder
    with pytest.warns(FutureWarning):
        assert replication.runs.load is load
        assert replication.config.RunConfig is RunConfig and replication.flops.Ledger is Ledger
    with pytest.raises(AttributeError, match="module 'replication.runs' has no attribute 'RunFlder'"):
        _ = replication.runs.RunFlder


def test_a_module_of_such_a_package_is_imported_alone():
    """`from package import module` asks the package for the name first."""
    code = (
        "import sys; from replication.config import keys; from replication.runs import ownership\n"
        "print([name for name in ('pydantic', 'pandas', 'replication.runs.frames') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_an_error_by_its_old_name_is_caught_by_its_new_one():
    code = (
        "from replication.errors import UserError as old; from replication.profiles import load_config\n"
        "from replication.system.errors import UserError as new; print(old is new, load_config('smoke', 'mst').arm)"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "mst"]
