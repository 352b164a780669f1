"""What a run is made of: a plug-in's code, options as they are used, a user's own task; and what else is refused."""

import json
import sys
from dataclasses import replace
from types import ModuleType

import pytest
from synthetic_runs import facts

from replication.analysis.comparable import check_one_table, differences
from replication.cli import main
from replication.config.profiles import load_config
from replication.methods import METHODS, Method, code_of, convert_options, load_plugins, own_options
from replication.plugins import digest
from replication.runs.folder import RunFolder
from replication.sparsity.algorithm import DynamicSparsityAlgorithm
from replication.system.errors import UserError
from replication.system.files import write_sealed
from replication.training.circumstances import check_code

OWN = """
from replication.methods import Method, register
from replication.sparsity.algorithm import DynamicSparsityAlgorithm


class Own(DynamicSparsityAlgorithm):
    def __init__(self, *args, every, **kwargs):
        super().__init__(*args, **kwargs)


register("own", Method(Own, defaults={"every": 2}))
"""


class Plain(DynamicSparsityAlgorithm):
    """With options of every kind."""


@pytest.fixture
def methods(monkeypatch):
    """The registry, as it is again after the test."""
    monkeypatch.setattr("replication.methods.METHODS", dict(METHODS))
    monkeypatch.setattr("replication.methods._given", {})
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("REPLICATION_PLUGINS", "")
    return monkeypatch


def own(method, **options):
    return replace(load_config("smoke", "set"), method=method, options=options)


# ---- options


@pytest.mark.parametrize(
    ("default", "given", "used"),
    [
        (2, 3, 3),
        (2, 2.0, 2),
        (2, "1e2", 100),
        (1.0, 2, 2.0),
        (1.0, 0.5, 0.5),
        (1.0, "1e-3", 0.001),
        (True, False, False),
        ("a", "b", "b"),
        ("a", "1e2", "1e2"),
    ],
)
def test_an_option_is_recorded_as_the_algorithm_gets_it(default, given, used, methods):
    from replication import methods as registry

    registry.METHODS["plain"] = Method(Plain, defaults={"x": default, "other": 1})
    config = own("plain", x=given)
    assert own_options(config) == {"x": used, "other": 1}
    recorded = convert_options(config).to_dict()["options"]
    assert recorded == {"x": used} and type(recorded["x"]) is type(default)


@pytest.mark.parametrize(
    ("default", "given"),
    [(2, 2.9), (2, True), (2, "3"), (2, "x"), (2, "1e-1"), (1.0, True), (1.0, "x"), (True, 1), (True, "yes"), ("a", 2)],
)
def test_an_option_of_another_type_is_refused(default, given, methods):
    from replication import methods as registry

    registry.METHODS["plain"] = Method(Plain, defaults={"x": default})
    with pytest.raises(UserError, match=rf"^options\.x is {given!r}; allowed: .* as its default {default!r}$"):
        own_options(own("plain", x=given))


@pytest.mark.parametrize("given", [".inf", ".nan", "[1,2]", "null", "{a: 1}"])
def test_an_option_that_is_no_plain_value_is_refused_in_words_that_are_so(given, capsys):
    command = ["plan", "--profile", "smoke", "--method", "set", "--set", f"options.every={given}"]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: options.every") and "allowed: a valid boolean" not in line


def test_options_that_the_class_lacks_are_one_line(methods, tmp_path, capsys):
    (tmp_path / "lacks.py").write_text(OWN.replace("every, ", ""))
    (tmp_path / "mine.yaml").write_text("extends: smoke\narms: {own: {}}\n")
    command = ["plan", "--profile", str(tmp_path / "mine.yaml"), "--method", "own", "--plugin"]
    assert main([*command, str(tmp_path / "lacks.py")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: Own of method own cannot be made with its options (every): ")


# ---- code


def module(file, name="own_of_a_test"):
    made = ModuleType(name)
    made.__file__ = str(file)
    return made


def written(folder, **files):
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


MAIN = "import torch\ndef later():\n    from deep_of_mine import x\n    import helper_of_mine\n"
HELPERS = {"helper_of_mine": "import lower_of_mine", "deep_of_mine": "x = 1", "lower_of_mine": "y = 2"}


def test_a_plugins_digest_is_of_its_file_and_of_those_beside_it_that_it_imports_whatever_their_name(
    tmp_path, monkeypatch
):
    for name in HELPERS:  # another test's, if it is loaded, is what the name means
        monkeypatch.delitem(sys.modules, name, raising=False)
    first = written(tmp_path / "first", own=MAIN, **HELPERS)
    same = written(tmp_path / "same", renamed=MAIN, another="not imported", **HELPERS)
    assert digest([module(first / "own.py")]) == digest([module(same / "renamed.py")])
    for number, changed in enumerate(({"own": MAIN + "#"}, *({name: "y = 3"} for name in HELPERS))):
        other = written(tmp_path / str(number), **{"own": MAIN, **HELPERS, **changed})
        assert digest([module(first / "own.py")]) != digest([module(other / "own.py")]), changed


def test_a_packages_own_files_count_and_its_neighbours_in_site_packages_do_not(tmp_path):
    digests = []
    for name, inner, neighbour in (("a", "1", "1"), ("b", "1", "2"), ("c", "2", "1")):
        site = tmp_path / name / "site-packages"
        (site / "mine_of_a_test").mkdir(parents=True)
        (site / "mine_of_a_test" / "__init__.py").write_text("")
        (site / "mine_of_a_test" / "inner.py").write_text(f"x = {inner}")
        (site / "mine_of_a_test" / "methods.py").write_text("from . import inner\nimport neighbour_of_mine")
        (site / "neighbour_of_mine.py").write_text(f"x = {neighbour}")
        made = module(site / "mine_of_a_test" / "methods.py", "mine_of_a_test.methods")
        made.__package__ = "mine_of_a_test"
        digests.append(digest([made]))
    assert digests[0] == digests[1] != digests[2]


def test_a_run_is_made_of_its_methods_code_and_of_that_of_plugins_whose_effect_nobody_knows(methods, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "patch.py").write_text("import replication.config.limits")
    files = [str(tmp_path / "own.py"), str(tmp_path / "patch.py")]
    methods.setenv("REPLICATION_PLUGINS", "\n".join(files))
    load_plugins(files)
    assert code_of(own("own")).keys() == {"method own", "plug-in patch.py"}
    assert code_of(own("rigl")).keys() == {"plug-in patch.py"}
    methods.setenv("REPLICATION_PLUGINS", files[0])
    assert code_of(own("rigl")) == {}


def test_two_versions_of_a_method_share_no_table():
    one, other = (facts("set", seed=seed, code={"method own": str(seed) * 64}) for seed in (0, 1))
    with pytest.raises(UserError, match="set/seed-0 and set/seed-1 were trained by different versions of method own"):
        check_one_table([one, other])
    check_one_table([one, facts("dense"), facts("rigl", code={"method other": "f" * 64}), facts("set", seed=2)])


def test_a_plugin_that_one_of_two_runs_had_is_a_difference():
    patched = facts("rigl", code={"plug-in patch.py": "a" * 64})
    assert differences(facts("dense"), patched) == [f"plug-in patch.py (None, {'a' * 64})"]


@pytest.mark.parametrize(
    ("recorded", "here", "whole", "is_one"),
    [
        ({"method own": "a"}, {"method own": "a"}, True, True),
        ({"method own": "a"}, {"method own": "b"}, False, False),
        ({}, {"plug-in patch.py": "a"}, True, False),
        ({}, {"plug-in patch.py": "a"}, False, True),
        ({}, {"metric mine": "a"}, True, True),
        ({"metric mine": "a"}, {"metric mine": "b"}, True, False),
        (None, {"method own": "a"}, True, True),
    ],
)
def test_a_run_of_another_version_is_refused_by_name(recorded, here, whole, is_one, tmp_path):
    write_sealed(tmp_path / "environment.json", {} if recorded is None else {"code": recorded})
    if is_one:
        check_code(RunFolder(tmp_path), here, whole)
        return
    with pytest.raises(UserError, match="was trained by another version of (method own|metric mine|plug-in patch.py)"):
        check_code(RunFolder(tmp_path), here, whole)


# ---- a user's own task

TASK = """
include: _base.yaml
task: mine_of_a_test
dataset_kwargs: {{data_files: {{test: {rows}}}}}
"""
BASE = """
dataset_path: json
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: !function utils_of_mine.target
metric_list: [{metric: bits_per_byte}]
"""


def test_a_users_task_is_its_rows_its_yaml_and_its_code_wherever_they_lie(tmp_path, monkeypatch):
    from replication.eval.zero_shot import evaluation_set

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    base = {"rows": "a b c", "yaml": BASE, "code": "def target(doc):\n    return doc['text']\n"}
    changes = {"same": {}, "rows": {"rows": "a b d"}, "code": {"code": base["code"] + "x = 1\n"}}
    changes |= {"yaml": {"yaml": BASE + "fewshot_delimiter: ' '\n"}}
    digests = {"base": None}
    for name, changed in ({"base": {}} | changes).items():
        folder, parts = tmp_path / name, base | changed
        folder.mkdir()
        (folder / "rows.jsonl").write_text(json.dumps({"text": parts["rows"]}) + "\n")
        (folder / "_base.yaml").write_text(parts["yaml"])
        (folder / "utils_of_mine.py").write_text(parts["code"])
        (folder / "mine.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"))
        monkeypatch.setenv("REPLICATION_TASKS", str(folder))
        digests[name] = evaluation_set("mine_of_a_test")
    assert digests["base"] and digests["same"] == digests["base"]
    assert len(set(digests.values())) == len(changes)  # the base and the same are one
    assert evaluation_set("nothing_of_the_kind") is None
