"""The process we run in: its code, its libraries, its memory, its signals, its progress."""

from __future__ import annotations
