"""What sparsity saves on the clock, measured side by side on one machine; writes `results/bench`."""
