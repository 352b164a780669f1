"""The run folder: reading, writing, sealing and owning it; a run as data frames. Imports no torch."""

from replication.system.old_names import find_old

__getattr__ = find_old(__name__, "folder", "finding", "frames", "snapshots")
