"""The levels of verification, each a list of checks."""
