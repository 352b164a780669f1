"""Before a run: what it costs, which schedules reach a target, what machine it needs."""
