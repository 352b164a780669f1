"""Mixed Sparsity Training (arXiv 2408.11746), rebuilt beside its baselines in one trainer."""
