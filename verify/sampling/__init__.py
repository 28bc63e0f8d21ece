"""Whole runs: diffusers' pipelines around any runtime's networks."""
