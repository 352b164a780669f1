"""Names and words that would steer a terminal or a page are written out; values of any length stay one short line."""

import shutil

import pytest
import yaml

from replication.cli import main
from replication.publish.card import write_cards
from replication.runs.folder import RunFolder
from replication.system.files import sha256, write_sealed
from replication.system.streams import LONGEST, escape, shorten

HOSTILE = "a\x1b[31mred\u202egnp.\x9b2J"
SHOWN = "a\\x1b[31mred\\u202egnp.\\x9b2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("two\nlines\tof 4.01× − é שלום 👩‍👧", "two\nlines\tof 4.01× − é שלום 👩‍👧"),
        ("\r\x07\x08\x7f\u2028\u2066\ufeff\udc80", "\\r\\x07\\x08\\x7f\\u2028\\u2066\\ufeff\\udc80"),
    ],
)
def test_what_steers_is_written_out(text, shown):
    assert escape(text) == shown


def test_a_long_line_keeps_its_key_and_what_is_allowed():
    line = shorten(f"key is {'x' * 10**5}; allowed: less")
    assert len(line) < LONGEST + 50 and line.startswith("key is x") and line.endswith("; allowed: less")
    assert shorten("short") == "short"


@pytest.mark.parametrize("command", [["runs", "list"], ["runs", "watch", "--once"], ["compare", "{}"]])
def test_a_folders_name_steers_no_terminal(command, with_snapshot, tmp_path, capsys):
    folder = tmp_path / HOSTILE / "mst" / "seed-0"
    shutil.copytree(with_snapshot["mst"].path, folder)
    main([part.format(tmp_path / HOSTILE) for part in command] + [str(tmp_path)])
    out, err = capsys.readouterr()
    assert SHOWN in (out + err).replace("\n", "") and not {"\x1b", "\u202e", "\x9b"} & set(out + err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["runs", "list", HOSTILE],
        ["runs", "show", HOSTILE],
        ["plan", "--method", HOSTILE],
        ["plan", "--method", "mst", "--set", f"{HOSTILE}=1"],
        ["plan", "--method", "mst", "--set", f"train.num_steps={HOSTILE}"],
        ["compare", HOSTILE, "results"],
        [HOSTILE],
        ["plan", "--method", "mst", "--set", "train.num_steps=" + "9" * 10**5],
        ["plan", "--method", "mst", "--set", "train.precision=" + "x" * 10**5],
        ["runs", "list", "x" * 10**5],
    ],
)
def test_an_error_steers_no_terminal_and_is_short(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ") and len(line) < LONGEST + 50
    assert not {"\x1b", "\u202e", "\x9b"} & set(line)


def test_a_card_shows_names_as_they_are(with_snapshot, tmp_path):
    run = RunFolder(shutil.copytree(with_snapshot["mst"].path, tmp_path / "run"))
    name = "<script>x</script> | [a](b) `c` *d* _e_ \u202e"
    config = run.config() | {"profile": name}
    config["data"]["files"] = [f"texts/{name}.txt"]
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    write_sealed(run.path / "status.json", run.status() | {"sha256": {}})
    task, weights = name.replace("/", ""), sha256(run.checkpoint / "model.safetensors")
    write_sealed(run.path / "eval" / f"{task}.json", {"results": {task: {"acc,none": 0.5}}, "checkpoint": weights})
    write_cards(run)
    _, _, body = (run.checkpoint / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert not [sign for sign in ("<script", "[a]", "`c`", "*d*", "_e_", "\u202e") if sign in body]
    assert "&#60;script&#62;x" in body and "mst_dense_head" not in body and "head_counted_full" in body
