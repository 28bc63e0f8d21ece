"""What the checkpoint behind a bundle asks for, against what apps do whatever it asks.

A manifest of ours says it in `notices`; bundles of others, or of older versions, only in the
settings that they carry.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from convert.checkpoint.latents import SCALING_FACTOR
from convert.checkpoint.pipeline import FOLDED
from convert.errors import InputError
from convert.plan.notices import APPLES
from release.lint import apps
from release.lint.app_view import exists
from release.lint.rules import Finding
from release.lint.swift import Undecodable, metadata, strings
from release.lint.tree import Tree, read_json
from release.pack.manifest import FILE

SCALED = (apps.APPLE, apps.MOCHI, apps.DIFFUSERS)  # by 0.13025, without asking the model


def expectations(tree: Tree) -> Iterator[Finding]:
    """The notices of the manifest; other scales of latents; other predictions than the noise."""
    manifest = _manifest(tree)
    told = manifest.get("notices")
    topics = set()
    for notice in told if isinstance(told, list) else []:
        try:
            severity, topic = notice["severity"], str(notice["topic"])
            problem, effect = str(notice["problem"]), str(notice["effect"])
        except (LookupError, TypeError):
            continue  # no manifest of ours says it so
        topics.add(topic)
        is_note = severity == "note"
        yield Finding("note" if is_note else "warning", "checkpoint", FILE, problem, effect)
    if not exists(tree, "TextEncoder2"):
        return  # not SDXL, whose scale this is
    yield from _latents(tree, manifest)
    kind = _user(tree, "Unet").get("prediction_type", "epsilon")
    if kind != "epsilon" and "prediction" not in topics:
        effect = f"{APPLES} take it for noise and draw nothing but noise"
        problem = f"predicts `{kind}`, not the noise"
        yield Finding("warning", "checkpoint", "Unet.mlmodelc", problem, effect, SCALED)


def _latents(tree: Tree, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    effect = f"these apps scale by {SCALING_FACTOR} all the same, and draw wrong colours"
    for model in ("VAEDecoder", "VAEEncoder"):
        said = _user(tree, model).get("scaling_factor")
        if said is not None and _number(said) != SCALING_FACTOR:
            problem = f"is made for latents that are scaled by {said}"
            yield Finding("error", "scaling-factor", f"{model}.mlmodelc", problem, effect, SCALED)
    pipeline = manifest.get("pipeline")
    vae = pipeline.get("vae") if isinstance(pipeline, dict) else None
    if isinstance(vae, dict):
        other = [f"{k} {vae[k]}" for k, value in FOLDED.items() if vae.get(k, value) != value]
        if other:
            problem = f"says that the VAE's latents are scaled otherwise: {', '.join(other)}"
            yield Finding("error", "scaling-factor", FILE, problem, effect, SCALED)


def _user(tree: Tree, model: str) -> dict[str, str]:
    """A model's user-defined metadata, as far as it tells any."""
    try:
        entry = metadata(tree, f"{model}.mlmodelc")[0]
        return strings(entry, "userDefinedMetadata", model)
    except (Undecodable, LookupError):
        return {}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _manifest(tree: Tree) -> dict[str, Any]:
    try:
        found = read_json(tree, FILE)
    except (OSError, InputError):
        return {}  # that it cannot be read is told by the checks of provenance
    return found if isinstance(found, dict) else {}
