"""All that looks at runs while they are trained. Imports no torch."""
