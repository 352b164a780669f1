"""The methods that MST is compared with, each a few lines over the method layer."""
