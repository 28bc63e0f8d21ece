"""A package's weights against the checkpoint's, element by element."""
