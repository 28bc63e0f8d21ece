"""The process we run in: its code, its libraries, its memory, its signals."""

from __future__ import annotations
