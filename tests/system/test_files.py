"""Files under a seal or a checksum: whatever is done to one is told by name."""

import json

import pytest

from replication.system.errors import DamagedError
from replication.system.files import add_seal, check_sha256, read_json, sha256, write_json, write_sealed

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_a_sealed_value_comes_back_without_its_seal(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"ü": True}, "seed": 7}
    write_sealed(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    write_json(tmp_path / "x.json", value)  # from before there were seals
    assert read_json(tmp_path / "x.json") == value


def test_a_seal_depends_on_content_alone():
    assert (
        add_seal({"a": 1, "b": 2})["seal"] == add_seal({"b": 2, "a": 1})["seal"] != add_seal({"a": 2, "b": 1})["seal"]
    )


DAMAGE = {
    "a digit": lambda text: text.replace(b"12", b"13"),
    "a key": lambda text: text.replace(b"step", b"stop"),
    "half": lambda text: text[: len(text) // 2],
    "nothing left": lambda text: b"",
    "appended": lambda text: text + b"garbage\n",
    "no UTF-8": lambda text: text.replace(b"12", b"\xff"),
    "nested": lambda text: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told_in_one_line_by_name(damage, tmp_path):
    file = tmp_path / "x.json"
    write_sealed(file, {"step": 12})
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DamagedError, match=f"^{file} is damaged ") as error:
        read_json(file)
    assert "\n" not in str(error.value)


def test_sha256_of_a_file_and_of_its_beginning(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    assert sha256(file) == ABC
    file.write_bytes(b"abcdef")
    assert sha256(file, size=3) == ABC
    check_sha256(file, ABC, size=3)
    for size in (None, 4):
        with pytest.raises(DamagedError, match="its sha256 is not the one that was recorded"):
            check_sha256(file, ABC, size)
    with pytest.raises(DamagedError, match="it has 6 bytes of the 7 that were recorded"):
        sha256(file, size=7)
    with pytest.raises(DamagedError, match="No such file"):
        sha256(tmp_path / "y")


def test_a_file_is_written_whole(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"a": 1})
    assert json.loads((tmp_path / "deep" / "x.json").read_text()) == {"a": 1}
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["x.json"]
