"""A whole run, converted and proven, measured."""
