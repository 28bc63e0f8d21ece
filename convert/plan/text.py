"""The plan as JSON and for people: artifacts, packages, weight files, and what they will take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convert.plan.estimate import archive_bytes, estimate
from convert.plan.plan import Plan
from convert.units import size


def plan_document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: artifacts, packages, weight files, and what they will take."""
    files = plan.weight_files
    expected = estimate(plan, plan.jobs)
    archives = archive_bytes(plan)
    return {
        "schema": 1,
        "recipe": plan.recipe.name,
        "digest": plan.recipe.digest,
        "checkpoint": plan.checkpoint.name,
        "artifacts": [
            {
                "artifact": a.artifact.name,
                "attention": a.artifact.attention,
                "bits": a.artifact.bits,
                "resolution": str(a.artifact.resolution),
                "components": list(a.jobs),
                "weight_bytes": sum(plan.weight_bytes[job] for job in a.jobs.values()),
                "archive_bytes": archives[a.artifact.name],
            }
            for a in plan.artifacts
        ],
        "packages": [str(job) for job in plan.jobs],
        "weight_files": [
            {"component": j.component, "bits": j.bits, "precision": j.precision, "bytes": n}
            for j, n in files.items()
        ],
        "vae": plan.checkpoint.other_vae.to_json() if plan.checkpoint.other_vae else None,
        "vae_precision": plan.precision.to_json(),
        "loras": [lora.to_json() for lora in plan.checkpoint.loras],
        "embeddings": [embedding.to_json() for embedding in plan.checkpoint.embeddings],
        "source": plan.checkpoint.origin.to_json() if plan.checkpoint.origin else None,
        "notices": [notice.to_json() for notice in plan.notices],
        "weight_bytes": sum(files.values()),
        "bytes": expected.bytes,
        "archive_bytes": sum(archives.values()),
        "seconds": round(expected.seconds(expected.workers), 1),
        "peak_memory_bytes": expected.peak_memory(expected.workers),
    }


def plan_table(plan: Plan, document: Mapping[str, Any] | None = None) -> str:
    """The plan for people; `document` is that of `plan_document`, where it is there already."""
    document = document or plan_document(plan)
    lines = [f"{plan.recipe.name}, from {plan.checkpoint.name}"]
    lines += plan.checkpoint.origin.lines() if plan.checkpoint.origin else []
    if plan.checkpoint.other_vae is not None:
        lines += [f"  {line}" for line in plan.checkpoint.other_vae.lines()]
    if plan.precision.because:
        lines.append(f"  {plan.precision}")
    lines += [f"  {lora.line()}" for lora in plan.checkpoint.loras]
    lines += [f"  {embedding.line()}" for embedding in plan.checkpoint.embeddings]
    width = max(len(a["artifact"]) for a in document["artifacts"])
    for a in document["artifacts"]:
        lines.append(f"  {a['artifact']:<{width}}  {size(a['weight_bytes']):>8}")
    unshared = sum(a["weight_bytes"] for a in document["artifacts"])
    lines.append(
        f"{len(plan.artifacts)} artifacts of {len(plan.jobs)} packages: {size(document['bytes'])} "
        f"on disk (weights are shared by hard links; {size(unshared)} without), about "
        f"{document['seconds']:.0f} s and {size(document['peak_memory_bytes'])} of memory"
    )
    return "\n".join([*lines, *map(str, plan.notices)])
