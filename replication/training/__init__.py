"""A run: set up, trained, observed, saved."""
