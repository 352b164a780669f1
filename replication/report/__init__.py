"""One page in a browser: the finding, Table 1, the verdicts behind it, every figure with its data, and where from."""
