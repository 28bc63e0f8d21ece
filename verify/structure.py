"""Level `structure`: everything about a package that can be told without running it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from convert.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.values import FORMATS, Format, Resolution
from verify.artifact import Artifact
from verify.checks import Check, failed, passed
from verify.interface import (
    expected_shapes,
    fits,
    infer_attention,
    infer_resolution,
    precision,
    weight_formats,
)
from verify.mil import Feature, Program, TensorType

SCAN_BYTES = 16 << 20


def check_artifact(artifact: Artifact, source: Checkpoint) -> Iterator[Check]:
    """The folder: its components, its tokenizer files, its manifest. Nothing for a lone package."""
    if not artifact.is_folder:
        return
    for component in artifact.missing:
        file = f"{COMPONENTS[component].file}.mlpackage"
        yield failed("structure", component, "file", "is there", f"{file} is missing")
    yield _verdict("artifact", "manifest", "complete and readable", "; ".join(artifact.problems))
    files = artifact.files
    listed = {n: f for n, f in files.items() if not (artifact.path / Path(f).name).exists()}
    lost = [f"{n}: {f} is not there" for n, f in listed.items() if n in artifact.expected]
    unlisted = [f"{n} is not listed" for n in artifact.packages if files and n not in files]
    yield _verdict("artifact", "components", "as the manifest lists", "; ".join(lost + unlisted))
    yield _verdict("artifact", "tokenizer", "the checkpoint's", _tokenizer(artifact.path, source))


def _tokenizer(folder: Path, source: Checkpoint) -> str:
    """What is wrong with `vocab.json` and `merges.txt`, or nothing."""
    tokenizer = source.tokenizers.get("tokenizer") or source.tokenizers.get("tokenizer_2")
    try:
        vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
        merges = (folder / "merges.txt").read_text("utf-8")
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    if not merges.endswith("\n"):
        return "merges.txt does not end in a newline, so Apple's package drops its last merge"
    if tokenizer is not None and vocab != json.loads(tokenizer.vocab):
        return "vocab.json is not the checkpoint's"
    if tokenizer is not None and merges.split("\n") != tokenizer.merges.split("\n"):
        return "merges.txt is not the checkpoint's"
    return ""


def check_package(
    program: Program,
    component: str,
    source: Checkpoint,
    *,
    resolution: Resolution | None = None,
    claims: Mapping[str, str] | None = None,
) -> Iterator[Check]:
    """One package.

    Args:
        resolution: what it must be made for; its own if None.
        claims: the manifest's; without them what is found is told and only has to be consistent.
    """
    claims = claims or {}
    # In a folder, another package's resolution or the manifest's may be the one that is asked.
    resolution = resolution or infer_resolution(program, component, source)
    inputs, outputs = expected_shapes(source, component, resolution)
    float_type = "fp32" if claims.get("vae_precision", "float32") == "float32" else "fp16"
    dtype = {"unet": "fp16", "text_encoder": "fp32", "text_encoder_2": "fp32"}.get(component)
    if dtype is None:
        dtypes = (float_type,) if "vae_precision" in claims else ("fp32", "fp16")
    else:
        dtypes = (dtype,)
    declared = {n: program.main.inputs.get(n) for n in inputs}
    problem = _features(program.inputs, declared, inputs, dtypes)
    yield _verdict(component, "inputs", _described(inputs, dtypes), problem)
    types = {name: t for op in program.ops for name, t in op.outputs}
    declared = {name: types.get(name) for name in program.main.outputs}
    problem = _features(program.outputs, declared, outputs, ("fp32",))
    yield _verdict(component, "outputs", _described(outputs, ("fp32",)), problem)
    yield _format(program, component, claims.get("deployment"))
    if component == "unet":
        yield _attention(program, claims.get("attention"))
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
    yield _verdict(component, "weights", "readable and finite", _weights(program))
    yield _bits(program, component, claims.get("bits"))


def _verdict(component: str, case: str, gate: str, problem: str, found: str = "") -> Check:
    if problem:
        return failed("structure", component, case, gate, problem)
    return passed("structure", component, case, gate, found)


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


def _attention(program: Program, claimed: str | None) -> Check:
    found = infer_attention(program)
    text = " or ".join(found)
    problem = "" if claimed is None or claimed in found else f"the ops are those of {text}"
    return _verdict("unet", "attention", claimed or "any", problem, text)


def _precision(program: Program, component: str, claimed: str | None) -> Check:
    found = precision(program)
    wanted = claimed if component.startswith("vae") else "fp16"
    problem = "" if wanted in (None, found) else f"it computes in {found}"
    return _verdict(component, "precision", wanted or "any", problem, found)


def _weights(program: Program) -> str:
    """The first weight that cannot be read or is not finite, or nothing."""
    for name, constant in program.constants():
        try:
            array = constant.array()
        except (CannotExecute, InputError) as error:
            return f"{name}: {error.problem}"
        if array.dtype.kind != "f":
            continue
        flat = array.reshape(-1)
        step = SCAN_BYTES // flat.itemsize
        for start in range(0, flat.size, step):
            part = flat[start : start + step]
            # One pass without a temporary: a sum of finite fp32 squares could overflow, min and
            # max cannot, and both are NaN if anything is.
            low, high = part.min(), part.max()
            if not (np.isfinite(low) and np.isfinite(high)):
                at = start + int(np.argmax(~np.isfinite(part)))
                index = [int(i) for i in np.unravel_index(at, array.shape)]
                return f"{name}{index} is {flat[at]}"
    return ""


def _bits(program: Program, component: str, claimed: str | None) -> Check:
    formats = weight_formats(program)
    total = sum(formats.values())
    shares = [f"{name} {count / total:.0%}" for name, count in formats.most_common()]
    found = ", ".join(shares) or "no weights"
    compressed = {name for name in formats if name not in ("fp16", "fp32")}
    problem = ""
    if total == 0:
        problem = found
    elif claimed == "16" and compressed:
        problem = f"compressed: {found}"
    elif claimed not in (None, "16") and component == "unet":
        # Small tensors stay dense, so what is compressed has to be in the claimed format.
        wanted = claimed if str(claimed).startswith("int") else f"palette-{claimed}"
        mixed = str(claimed).startswith("mixed-")
        if not compressed or (not mixed and compressed != {wanted}):
            problem = f"{found}, where {claimed} is claimed"
    return _verdict(component, "bits", claimed or "any", problem, found)
