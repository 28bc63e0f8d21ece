"""The pictures of a verification as a report has them: PNG files beside it, and their numbers."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from verify.judge.metrics import Metrics, json_number

if TYPE_CHECKING:
    from verify.levels.generation import Generation

FOLDER = "images"


def png(image: np.ndarray) -> bytes:
    """A picture, uint8 [H, W, 3], as a PNG file; equal pictures give equal files."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def file_name(image: np.ndarray) -> str:
    """Where a picture's file lies, seen from the report: named by its pixels."""
    content = repr(image.shape).encode() + image.tobytes()
    return f"{FOLDER}/{hashlib.sha256(content).hexdigest()[:16]}.png"


def generation_json(made: Generation) -> dict[str, Any]:
    """A picture's settings, files and errors as plain JSON values.

    `latents_snr_db` is the free-running error after a step, `noise_pred_snr_db` the UNet's on the
    reference's own inputs.
    """
    settings = made.settings
    return {
        "case": settings.case,
        "kind": settings.kind,
        "prompt": settings.prompt,
        "negative_prompt": settings.negative_prompt,
        "scheduler": settings.scheduler,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "strength": settings.strength,
        "seed": settings.seed,
        "resolution": made.resolution,
        "images": {
            "reference": file_name(made.reference),
            "candidate": file_name(made.candidate),
            "start": None if made.start is None else file_name(made.start),
        },
        "trajectory": [
            {
                "timestep": step.timestep,
                "latents_snr_db": _snr(step.latents),
                "noise_pred_snr_db": _snr(step.noise_pred),
            }
            for step in made.trajectory
        ],
        "latents_cosine": json_number(made.latents.cosine),
        **made.similarity.to_json(),
    }


def image_paths(document: Mapping[str, Any]) -> list[str]:
    """The files that a JSON report names, by their path beside it."""
    found = [p for made in document.get("generations", ()) for p in made["images"].values() if p]
    return list(dict.fromkeys(found))


def _snr(metrics: Metrics) -> float | str | None:
    return json_number(metrics.snr_db)
