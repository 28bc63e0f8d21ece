"""Artifact → bundle → archive, with provenance and checksums."""
