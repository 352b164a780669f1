"""What a run is: its fields, their limits, and the profiles that ship."""
