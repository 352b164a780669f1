"""The method layer: pure functions for masks and schedules, and one small stateful class on top. Knows no GPT-2."""
