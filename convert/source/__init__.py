"""Hub repo or folder → a checkpoint on this disk, pinned to a commit."""
