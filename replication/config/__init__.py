"""What a run is: its fields, their limits, and the profiles that ship."""

from replication.system.old_names import find_old

__getattr__ = find_old(__name__, "run_config", "fields")
