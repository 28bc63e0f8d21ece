"""Level `structure`, of an artifact's folder: its files, its manifest, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.pipeline import pipeline_config
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.files.disk import digest_file
from convert.files.documents import is_local
from convert.files.json_files import FileMissing, decode, read_bytes, read_object, shown
from convert.tokenizer.app import app_files
from verify.artifact.artifact import Artifact
from verify.artifact.folder import SUFFIXES, models_by_component, models_in
from verify.judge.checks import Check, exact, failed
from verify.levels.finite import Remember, find_out
from verify.mil import load_program

_verdict = partial(exact, "structure")


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
    gate = "as the manifest lists them"
    yield _verdict("artifact", "components", gate, problem)
    if beside := _beside(artifact):
        text = f"not looked at: {', '.join(beside)}"
        yield Check("structure", "artifact", "models", gate, "indeterminate", message=text)
    for owner, problem in _files(artifact, source, remember):
        yield _verdict(owner, "files", "as the manifest has them", problem)
    yield _verdict("artifact", "tokenizer", "the checkpoint's", _tokenizer(artifact.path, source))
    if artifact.pipeline:
        problem = _pipeline(artifact, source)
        yield _verdict("artifact", "pipeline", "the checkpoint's settings", problem)


def _beside(artifact: Artifact) -> list[str]:
    """Models in the folder that are no component's, or are there in a second form."""
    looked_at = set(models_by_component(artifact.path).values())
    return [path.name for path in models_in(artifact.path) if path not in looked_at]


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
        if not problem and artifact.files and owner in artifact.packages:
            problem = _unlisted(artifact.packages[owner], {artifact.path / name for name in names})
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


def _unlisted(package: Path, listed: Collection[Path]) -> str:
    """A file of a package that the manifest does not list, or nothing; macOS leaves hidden ones."""
    unlisted = (f for f in package.rglob("*") if f.is_file() and f not in listed)
    found = sorted(f for f in unlisted if not f.name.startswith("."))
    return f"the manifest does not list {found[0].relative_to(package.parent)}" if found else ""


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
