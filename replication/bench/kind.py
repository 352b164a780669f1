"""Which kind of processor this is, by what decides speed here; it names the folder of its measurements."""

import re
from datetime import UTC, datetime
from pathlib import Path

from replication.kernels.choice import level
from replication.system.errors import UserError
from replication.system.files import Json, explain_damage, read_json
from replication.system.machine import family, machine

UNSAID = {"gen", "genuine", "cpu", "processor", "virtual"}  # words that do not tell processors apart
SAME = ("processor", "threads", "is_quick")  # what all measurements of a folder have in common


def kind(name: str, level: str, family: str) -> str:
    """Maker and line of a processor, and its level of instructions: `amd-epyc-zen4-avx512-bf16`, `intel-xeon-amx`.

    Args:
        name: as the processor calls itself, which does not tell AMD's generations apart.
        family: its number, as Linux knows it.
    """
    words = re.findall(r"\w+", re.sub(r"\((r|tm)\)|@.*", " ", name.lower()))
    telling = [word for word in words if word.isalpha() and word not in UNSAID]
    generations = {"25": ["zen4" if level.startswith("avx512") else "zen3"], "26": ["zen5"]} if "amd" in words else {}
    return "-".join([*(telling or words)[:2], *generations.get(family, []), level])


def this_machine(is_quick: bool) -> Json:
    """What is recorded beside each part's rows: `machine()`, its `kind`, the `date`, and whether it `is_quick`."""
    here = machine()
    date = datetime.now(UTC).date().isoformat()
    return here | {"kind": kind(here["processor"], level(), family()), "date": date, "is_quick": is_quick}


def read_parts(folder: Path) -> dict[str, Json]:
    """Part -> `machine` and `rows`, of all that were measured in a processor's folder, sorted by name.

    Raises:
        DamagedError: a file is not as it was written.
    """
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    for name, part in found.items():
        if not isinstance(part, dict) or ("rows" in part and not isinstance(part.get("machine"), dict)):
            raise explain_damage(folder / f"{name}.json", "it is no measurement")
    return {name: part for name, part in found.items() if "rows" in part}


def check_same(folder: Path, here: Json) -> None:
    """Measurements of one folder are of one processor, by as many threads.

    Raises:
        UserError: it has some of another one, or of a quick bench beside a whole one.
    """
    for name, part in read_parts(folder).items():
        other = {"is_quick": False} | part["machine"]
        for key in SAME:
            if other[key] != here[key]:
                raise UserError(
                    f"{folder / name}.json was measured with {key} {other[key]}, and this would be with {here[key]}; "
                    "allowed: another folder (--out, or RESULTS of make), or this one moved away"
                )
