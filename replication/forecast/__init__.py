"""Estimates: a run's time, memory, energy and loss, and what to train next. Nothing that trains reads it."""
