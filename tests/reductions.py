"""PAPER's table of reductions: is the head masked, is it counted, × with all pairs of attention, with causal ones."""

REDUCTIONS = [("true", "counted", 4.53, 4.80), ("true", "excluded", 4.25, 4.57), ("false", "counted", 2.26, 2.24)]
