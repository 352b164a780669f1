"""The run folder: reading, writing, sealing and owning it; a run as data frames. Imports no torch."""
