"""Sparse execution: products of masked matrices that touch the active weights only. Source: ours."""
