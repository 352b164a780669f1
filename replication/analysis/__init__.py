"""Statistics, tables, verdicts and figures, from run folders alone."""
