"""Spoiling packages and artifact folders for tests, and telling what a verification found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.files.appearing import appearing
from convert.networks.graph import Network
from convert.package.mlpackage import MODEL, WEIGHTS, Description, assemble, serialise
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import Format
from convert.weights.weight_file import layout, write
from verify.judge.checks import Results
from verify.reports.report import to_json


def write_package(
    path: Path, network: Network, description: Description, *, format: Format
) -> None:
    """A package with a weight file of its own, as the native engine makes them in a run."""
    if path.exists():
        raise InputError("exists already", where=path)
    plan = layout(network.blobs.values())
    with appearing(path) as new, TemporaryDirectory(dir=new.parent) as folder:
        weights = Path(folder) / "weight.bin"
        write(weights, plan)
        assemble(new, serialise(network, plan, description, format=format), weights)


def packages(
    checkpoint: Checkpoint, out: Path, components: tuple[str, ...] = (), bits: str = "16"
) -> dict[str, str]:
    """The digests of what is in the packages of an artifact, by path."""
    text = f"""
    name = "x"
    source.path = "x"
    matrix = {{ attention = ["original"], resolution = ["64x64"], bits = ["{bits}"] }}
    """
    plan = make_plan(parse_recipe(text, where="test"), checkpoint, components=components)
    (result,) = run(plan, Snapshot(checkpoint.path, None, None, ()), out, jobs=1)
    files = sorted(result.path.glob("*.mlpackage/**/*"))
    return {
        str(file.relative_to(result.path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }


def json_of(results: Results) -> Any:
    """The document of a verification as it comes back from JSON, which has no NaN."""
    return json.loads(json.dumps(to_json(results), allow_nan=False))


def failing(results: Results) -> set[str]:
    """The failed checks as component/case."""
    return {f"{check.component}/{check.case}" for check in results.failures}


def edit_model(package: Path, change: Callable[[Any], Any]) -> None:
    """Rewrite a package's protobuf."""
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    change(model)
    (package / MODEL).unlink()  # it may be a hard link to the cache's
    (package / MODEL).write_bytes(model.SerializeToString())


def operations(model: Any) -> Any:
    main = model.mlProgram.functions["main"]
    return main.block_specializations[main.opset].operations


def edit_weights(package: Path, change: Callable[[np.ndarray], Any]) -> None:
    """Rewrite a package's weight file, as bytes."""
    data = bytearray((package / WEIGHTS).read_bytes())
    change(np.frombuffer(data, np.uint8))
    (package / WEIGHTS).unlink()
    (package / WEIGHTS).write_bytes(data)


def edit_manifest(artifact: Path, **changes: Any) -> None:
    file = artifact / "manifest.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
