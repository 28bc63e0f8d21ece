"""Libraries that speak of their own affairs."""

from __future__ import annotations

import logging
import warnings

_silenced = False


def silence_libraries() -> None:
    """Stop their warnings: what concerns the user is said by us. For this process and workers."""
    global _silenced
    warnings.simplefilter("ignore")
    for name in ("coremltools", "diffusers", "transformers", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    _silenced = True


def are_libraries_silent() -> bool:
    """Whether this process has silenced them."""
    return _silenced
