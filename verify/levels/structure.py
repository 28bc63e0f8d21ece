"""Level `structure`: everything about a package that can be told without running it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.latents import SCALING_FACTOR
from convert.checkpoint.pipeline import pipeline_config
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.files.disk import digest_file
from convert.files.documents import is_local
from convert.files.json_files import FileMissing, decode, read_bytes, read_object, shown
from convert.run.manifest import CompressionRequest
from convert.tokenizer.app import app_files
from convert.values import FORMATS, Format, Resolution
from verify.artifact.artifact import Artifact
from verify.artifact.graph import count_weights, infer_attention
from verify.artifact.interface import (
    fits,
    has_long_attention,
    infer_resolution,
    precision,
    with_aliases,
)
from verify.judge.checks import Check, failed, passed
from verify.levels.finite import Remember, broken_weight, find_out
from verify.levels.stored_bits import deviations
from verify.mil import Feature, Program, TensorType, load_program

SUFFIXES = (".mlpackage", ".mlmodelc")


def check_artifact(
    artifact: Artifact, source: Checkpoint, *, remember: Remember = find_out
) -> Iterator[Check]:
    """The folder: its components, its tokenizer files, its manifest. Nothing for a lone package.

    Args:
        remember: what knows the digests of files that were read before, such as `Cache.told`.
    """
    if not artifact.is_folder:
        return
    for component in artifact.missing:
        file = f"{COMPONENTS[component].file}.mlpackage"
        yield failed("structure", component, "file", "is there", f"{file} is missing")
    yield _verdict("artifact", "manifest", "complete and readable", "; ".join(artifact.problems))
    listed = artifact.components
    unlisted = [name for name in artifact.packages if name not in listed]
    problem = f"the manifest does not list {', '.join(unlisted)}" if unlisted else ""
    yield _verdict("artifact", "components", "as the manifest lists them", problem)
    for owner, problem in _files(artifact, source, remember):
        yield _verdict(owner, "files", "as the manifest has them", problem)
    yield _verdict("artifact", "tokenizer", "the checkpoint's", _tokenizer(artifact.path, source))
    if artifact.pipeline:
        problem = _pipeline(artifact, source)
        yield _verdict("artifact", "pipeline", "the checkpoint's settings", problem)


def _files(artifact: Artifact, source: Checkpoint, remember: Remember) -> Iterator[tuple[str, str]]:
    """How files differ from the manifest, by component, or `artifact` for files of none."""
    owners = {f"{spec.file}{s}": name for name, spec in COMPONENTS.items() for s in SUFFIXES}
    files: dict[str, list[str]] = {"artifact": [], **{name: [] for name in artifact.packages}}
    for name in sorted(artifact.files):
        owner = owners.get(name.partition("/")[0], "")
        files[owner if owner in files else "artifact"].append(name)
    for owner, names in files.items():
        problem = next(filter(None, (_file(artifact, name, remember) for name in names)), "")
        if problem and owner in artifact.packages:
            problem += _changed_tensor(artifact.packages[owner], owner, source)
        if not names and artifact.files and owner != "artifact":
            problem = "the manifest lists no file of it"
        yield owner, problem


def _file(artifact: Artifact, name: str, remember: Remember) -> str:
    """How a file differs from its entry in the manifest, or nothing."""
    path, facts = artifact.path / name, artifact.files[name]
    if not isinstance(facts, dict) or not is_local(name):
        return f"the manifest's entry of {name} is malformed"
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != facts.get("size"):
        return f"{name} has {size} bytes, the manifest says {facts.get('size')}"
    if remember(path, "sha256", partial(digest_file, path)) != facts.get("sha256"):
        return f"{name} has another SHA-256 than the manifest says"
    return ""


def _changed_tensor(package: Path, component: str, source: Checkpoint) -> str:
    """Names the first weight of which some values, but not most, are no longer the checkpoint's.

    Of weights that are stored as they are; where most values differ, it may be meant.
    """
    tensors = {n.replace(".", "_"): t for n, t in source.component_tensors(component).items()}
    try:
        for name, constant in load_program(package).constants():
            if name not in tensors or constant.type.dtype not in ("fp16", "fp32"):
                continue
            stored = constant.array().reshape(-1)
            own = tensors[name].read(stored.dtype).reshape(-1)
            if stored.size == own.size:
                differ = int(np.count_nonzero(own.view(np.uint8) != stored.view(np.uint8)))
                if 0 < differ <= own.size // 2:
                    return f"; `{tensors[name].name}` is no longer the checkpoint's"
    except (CannotExecute, InputError):
        pass  # what cannot be read is told by the package's own checks
    return ""


def _pipeline(artifact: Artifact, source: Checkpoint) -> str:
    """The settings for pipelines that differ from the checkpoint's, or nothing."""
    wanted = json.loads(json.dumps(pipeline_config(source)))
    wrong = []
    for part, values in wanted.items():
        found = artifact.pipeline.get(part)
        found = found if isinstance(found, dict) else {}
        wrong += [
            f"{part}.{key} is {shown(found.get(key))}, the checkpoint's {shown(value)}"
            for key, value in values.items()
            if found.get(key) != value
        ]
    return "; ".join(wrong)


def _tokenizer(folder: Path, source: Checkpoint) -> str:
    """What is wrong with `vocab.json` and `merges.txt`, or nothing."""
    wanted = app_files(source.tokenizers) if source.tokenizers else {}
    try:
        vocab = read_object(folder / "vocab.json")
        merges = decode(read_bytes(folder / "merges.txt"), folder / "merges.txt")
    except FileMissing as error:
        return f"{Path(str(error.where)).name} is missing"
    except InputError as error:
        return f"cannot be read: {error.problem}"
    if not merges.endswith("\n"):
        return "merges.txt does not end in a newline, so Apple's package drops its last merge"
    if wanted and vocab != json.loads(wanted["vocab.json"]):
        return "vocab.json is not the checkpoint's"
    if wanted and merges != wanted["merges.txt"]:
        return "merges.txt is not the checkpoint's"
    return ""


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
    yield _verdict(component, "weights", "readable and finite", broken_weight(program, remember))
    yield _bits(program, component, source, claims.get("bits"), asked or CompressionRequest())


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
