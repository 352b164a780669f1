"""Which text a file holds: the same when it is touched, and known when it is gone."""

import hashlib
from contextlib import suppress
from pathlib import Path

from replication.system.errors import DamagedError, UserError
from replication.system.files import Json, read_json, real_path, sha256, write_sealed


class ChangedError(UserError):
    """A file was not the same from the beginning to the end of its reading."""


class Sources:
    """The contents of files, of which `data_dir/sources` keeps a record: a file is read again only where its size or
    its times are others."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "sources"
        self.read: dict[Path, Json] = {}  # record -> of what was read now
        self.begun: dict[Path, Json] = {}  # file -> its version and sha256 when it was asked for

    def content(self, file: str) -> str | None:
        """sha256 of a file's bytes, or of what they were when it was there; None: it cannot be read, and never was."""
        try:
            path = real_path(file)
            record = self.folder / f"{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:16]}.json"
            known = _read_known(record)
            version = _version(path)
            if known.get("version") != version:
                known = self.read[record] = {"file": path.name, "version": version, "sha256": sha256(path)}
            self.begun[path] = known
        except FileNotFoundError:
            pass
        except (OSError, ValueError, DamagedError):  # the corpus says what is wrong with it, when it reads it
            return None
        return known.get("sha256")

    def check_unchanged(self, by_content: bool) -> None:
        """Raises ChangedError where a file is not what it was when it was asked for.

        Args:
            by_content: read every file again; else those whose size or times are others.
        """
        for path, known in self.begun.items():
            try:
                if (by_content or _version(path) != known["version"]) and sha256(path) != known["sha256"]:
                    raise DamagedError
            except (OSError, DamagedError):
                raise ChangedError(
                    f"{path} was changed while it was read, and nothing is kept of what was prepared from it; "
                    "allowed: a file that nobody writes in"
                ) from None

    def keep(self) -> None:
        """Write the records of what was read; where the folder is read-only, each run reads."""
        for record, known in self.read.items():
            with suppress(UserError):
                write_sealed(record, known)


def _read_known(record: Path) -> Json:
    try:
        known = read_json(record)
    except DamagedError:  # or not there
        return {}
    return known if isinstance(known, dict) and {"version", "sha256"} <= known.keys() else {}


def _version(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
