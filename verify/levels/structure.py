"""Level `structure`: everything about a package that can be told without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.latents import SCALING_FACTOR
from convert.checkpoint.pipeline import user_metadata
from convert.components import COMPONENTS
from convert.run.manifest import CompressionRequest
from convert.values import FORMATS, Format, Resolution
from verify.artifact.graph import count_weights, infer_attention
from verify.artifact.interface import (
    fits,
    has_long_attention,
    infer_resolution,
    precision,
    with_aliases,
)
from verify.judge.checks import Check, exact
from verify.levels.finite import Remember, broken_weight, find_out
from verify.levels.stored_bits import deviations
from verify.mil import Feature, Program, TensorType
from verify.mil.package import items

OURS = "com.github.sdxl-coreml.version"  # what our converter writes into each model
_verdict = partial(exact, "structure")
SETTINGS = (  # that apps read from a model
    "hidden_size",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
    "requires_aesthetics_score",
)


def check_package(
    program: Program,
    component: str,
    source: Checkpoint,
    *,
    resolution: Resolution | None = None,
    claims: Mapping[str, str] | None = None,
    asked: CompressionRequest | None = None,
    remember: Remember = find_out,
) -> Iterator[Check]:
    """One package.

    Args:
        resolution: what it must be made for; its own if None.
        claims: the manifest's; without them what is found is told and only has to be consistent.
        asked: what the manifest says was asked of the component's weights beside its bits.
        remember: what knows which weights are finite in files that were read before.
    """
    claims = claims or {}
    # In a folder, another package's resolution or the manifest's may be the one that is asked.
    resolution = resolution or infer_resolution(program, component, source)
    inputs, outputs = with_aliases(program, component, *source.shapes(component, resolution))
    float_type = "fp32" if claims.get("vae_precision", "float32") == "float32" else "fp16"
    spec = COMPONENTS[component]
    dtypes: tuple[str, ...] = ("fp32",)
    if spec.input_dtype == "computed":
        claimed = (float_type,) if "vae_precision" in claims else ("fp32", "fp16")
        dtypes = ("fp16",) if spec.is_half else claimed
    declared: dict[str, TensorType | None] = dict(program.main.inputs)
    problem = _features(program.inputs, declared, inputs, dtypes)
    yield _verdict(component, "inputs", _described(inputs, dtypes), problem)
    types = {name: t for op in program.ops for name, t in op.outputs}
    declared = {name: types.get(name) for name in program.main.outputs}
    problem = _features(program.outputs, declared, outputs, ("fp32",))
    yield _verdict(component, "outputs", _described(outputs, ("fp32",)), problem)
    yield _format(program, component, claims.get("deployment"))
    if spec.has_attention:
        yield _attention(program, component, claims.get("attention"))
    else:
        einsums = sum(op.type == "einsum" for op in program.ops)
        yield _verdict(component, "ops", "no einsum", f"{einsums} einsum ops" if einsums else "")
    yield _precision(program, component, float_type if "vae_precision" in claims else None)
    silent = [f.name for f in (*program.inputs, *program.outputs) if not f.description.strip()]
    problem = f"no description of {', '.join(silent)}" if silent else ""
    yield _verdict(component, "descriptions", "one for each input and output", problem)
    texts = {
        "description": program.short_description,
        "author": program.author,
        "license": program.license,
        "version": program.version,
    }
    problem = ", ".join(name for name, text in texts.items() if not text.strip())
    yield _verdict(
        component, "metadata", "description, author, license, version", problem and f"no {problem}"
    )
    if spec.part == "vae":
        found = program.user_defined.get("scaling_factor")
        problem = "" if found in (None, str(SCALING_FACTOR)) else f"it says {found}"
        gate = f"apps scale by {SCALING_FACTOR}"
        yield _verdict(component, "scaling_factor", gate, problem, found or "")
    yield _verdict(component, "settings", "the checkpoint's", _settings(program, component, source))
    yield _verdict(component, "package", "its manifest names what is in it", _package(program))
    yield _verdict(component, "weights", "readable and finite", broken_weight(program, remember))
    yield _bits(program, component, source, claims.get("bits"), asked or CompressionRequest())


def _settings(program: Program, component: str, source: Checkpoint) -> str:
    """The settings for apps that differ from the checkpoint's; others' models may have none."""
    config, scheduler = source.part(component).config, dict(source.scheduler)
    wanted = user_metadata(component, dict(config), scheduler, dict(source.model_index))
    found = program.user_defined
    wrong = [
        f"{key} is {found.get(key, 'not there')}, the checkpoint's {wanted.get(key, 'not there')}"
        for key in SETTINGS
        if found.get(key) != wanted.get(key) and (key in found or OURS in found)
    ]
    return "; ".join(wrong)


def _package(program: Program) -> str:
    """What a package's manifest does not name, or names and is not there; nothing of other forms"""
    if program.path.suffix != ".mlpackage":
        return ""
    named = {program.path / "Data" / item for item in items(program.path)}
    lost = [path for path in named if not path.exists()]
    if lost:
        return f"it names {lost[0].relative_to(program.path)}, which is missing"
    files = {c.file.path for _, c in program.constants() if c.file is not None}
    unnamed = [f for f in sorted(files) if named.isdisjoint((f, *f.parents))]
    return f"it does not name {unnamed[0].relative_to(program.path)}" if unnamed else ""


def _described(shapes: Mapping[str, tuple[int, ...]], dtypes: tuple[str, ...]) -> str:
    kind = "|".join(dtypes)
    return ", ".join(f"{name} {kind}{list(shape)}" for name, shape in shapes.items())


def _features(
    found: list[Feature],
    declared: Mapping[str, TensorType | None],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: tuple[str, ...],
) -> str:
    """How an interface differs from what is expected, and from what its function declares."""
    named = {f.name: f for f in found}
    if len(named) != len(found) or named.keys() != shapes.keys():
        return f"they are {', '.join(f.name for f in found)}"
    if set(declared) != set(shapes):
        return f"the function has {', '.join(declared)}"
    # Core ML needs no shape of an output, the function's own counts there.
    sizes = {n: f.shape or getattr(declared[n], "shape", ()) for n, f in named.items()}
    wrong = [
        f"{name} is {f.dtype}{list(sizes[name])}"
        for name, f in named.items()
        if f.dtype not in dtypes or not fits({name: sizes[name]}, {name: shapes[name]})
    ]
    wrong += [
        f"{name} is {declared[name] or 'undeclared'} inside"
        for name, f in named.items()
        if declared[name] != TensorType(f.dtype, sizes[name])
    ]
    if list(named) != list(declared):
        wrong.append(f"in another order than the function's: {', '.join(declared)}")
    if len({f.dtype for f in found}) > 1:
        wrong.append("of several dtypes")
    return "; ".join(wrong)


def _format(program: Program, component: str, deployment: str | None) -> Check:
    found = Format(program.specification_version, program.opset)
    text = f"specification {found.specification_version}, opset {found.opset}"
    formats = {n: f for n, f in FORMATS.items() if deployment in (None, n)}
    gate = f"the format of {deployment}" if deployment else "one that a system reads"
    problem = "" if found in formats.values() else text
    return _verdict(component, "format", gate, problem, text)


def _attention(program: Program, component: str, claimed: str | None) -> Check:
    found = infer_attention(program)
    same = {"split_einsum"} if has_long_attention(program) else {"split_einsum", "split_einsum_v2"}
    names = same if found in same else {found}
    text = " or ".join(sorted(names))
    problem = ""
    if found == "unknown" or claimed not in (None, *names):
        problem = f"the graph's is {text}"
    return _verdict(component, "attention", claimed or "a known one", problem, text)


def _precision(program: Program, component: str, claimed: str | None) -> Check:
    found = precision(program)
    wanted = "fp16" if COMPONENTS[component].is_half else claimed
    problem = "" if wanted in (None, found) else f"it computes in {found}"
    return _verdict(component, "precision", wanted or "any", problem, found)


def _bits(
    program: Program,
    component: str,
    source: Checkpoint,
    claimed: str | None,
    asked: CompressionRequest,
) -> Check:
    weights = count_weights(program)
    total = weights.elements
    shares = [f"{name} {count / total:.0%}" for name, count in weights.formats.items()]
    found = f"{weights.bits_per_weight:.2f} bits per weight: {', '.join(shares)}"
    problem = "" if total else "no weights"
    if total and claimed is not None:
        wrong = list(deviations(program, component, source, claimed, asked))
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            problem = f"{wrong[0]}{more}; {found}"
    return _verdict(component, "bits", claimed or "any", problem, found)
