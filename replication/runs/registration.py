"""Under which protocol a run began: recorded as it begins, so that no later word can register it. Imports no torch."""

import os
from datetime import UTC, date, datetime

from replication.runs.folder import RunFolder
from replication.system.files import Json

VARIABLE = "REPLICATION_PROTOCOL"  # the sha256 of the protocol that this process' runs are registered under


def record_registration() -> Json:
    """What a run's `environment.json` says of it: the protocol and the time, where it begins under one."""
    protocol = os.environ.get(VARIABLE)
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return {"protocol": {"sha256": protocol, "began": began}} if protocol else {}


def is_registered(run: RunFolder, protocols: set[str], dated: date) -> bool:
    """Did it begin under one of these protocols, and not before their date?"""
    record = run.environment().get("protocol", {})
    return record.get("sha256") in protocols and datetime.fromisoformat(record["began"]).date() >= dated
