"""Scoring finished checkpoints with lm-eval. Knows checkpoint folders, not the trainer."""
