"""Whatever a checkpoint comes as → the same `Checkpoint`: folders, single files."""
