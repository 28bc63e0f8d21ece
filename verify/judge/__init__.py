"""Measures, gates and the policy: what a number means."""
