"""What a checkpoint's UNet predicts, where its user knows better than its files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

from convert.checkpoint.checkpoint import SCHEDULER, Checkpoint

TYPES = {"epsilon": "epsilon", "v": "v_prediction"}  # as schedulers spell them


def with_prediction(checkpoint: Checkpoint, prediction: Literal["epsilon", "v"]) -> Checkpoint:
    """The checkpoint, whose scheduler says what the UNet predicts, whatever its files say."""
    said = TYPES[prediction]
    scheduler = {**checkpoint.scheduler, "prediction_type": said}
    text = json.dumps(scheduler, indent=2, sort_keys=True) + "\n"
    origin = checkpoint.origin
    if origin is not None:
        origin = replace(origin, prediction=(said, "the recipe or --prediction"))
    return replace(
        checkpoint,
        scheduler=scheduler,
        documents={**checkpoint.documents, SCHEDULER.as_posix(): text},
        origin=origin,
    )
