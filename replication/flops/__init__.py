"""Exact counts: the FLOP ledger, what a run will cost, and schedules solved for a cost."""
