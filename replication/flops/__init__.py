"""Exact counts: the FLOP ledger, what a run will cost, and schedules solved for a cost."""

from replication.system.old_names import find_old

__getattr__ = find_old(__name__, "ledger")
