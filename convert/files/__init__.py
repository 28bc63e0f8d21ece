"""Files: read with types, written whole or not at all, kept by what they were made from."""

from __future__ import annotations
