"""A network and its weights → an .mlpackage."""
