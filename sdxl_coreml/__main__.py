"""`python -m sdxl_coreml`."""

from __future__ import annotations

from sdxl_coreml.app import main

main()
