"""Libraries that speak of their own affairs."""

from __future__ import annotations

import logging
import os
import warnings

DEBUG = "SDXL_COREML_DEBUG"


def silence_libraries() -> None:
    """Libraries speak of their own affairs; what concerns the user is said by us.

    Not where SDXL_COREML_DEBUG is set.
    """
    if os.environ.get(DEBUG):
        return
    warnings.simplefilter("ignore")
    for name in ("coremltools", "diffusers", "transformers", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
