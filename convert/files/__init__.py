"""Files from outside: read with types, and an error that names the file."""
