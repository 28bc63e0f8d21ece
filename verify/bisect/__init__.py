"""Where a package diverges from its reference: the first op, and why."""
