"""Packages: what coremltools reads back, the weight file's format, atomic and repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Var
from coremltools.libmilstoragepython import _BlobStorageReader
from safetensors.torch import load_file, save_file

from convert.checkpoint.tensors import read_header
from convert.errors import InputError
from convert.networks.graph import Input, Module, Network, build
from convert.networks.layers import conv
from convert.package.mlpackage import WEIGHTS, Description
from convert.values import FORMATS
from convert.weights.weight_file import layout
from tests.support.packages import write_package

DESCRIPTION = Description(
    short="what", author="who", license="terms", version="v1",
    inputs={"x": "an image"}, outputs={"y": "another"}, user={"k": "v"},
)  # fmt: skip


def body(m: Module, x: Var) -> Mapping[str, Var]:
    return {"y": conv(m["b"], conv(m["a"], x, 8, 3), 4)}


def make(folder: Path, order: list[str]) -> tuple[Network, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (8, 4, 3, 3), "a.bias": (8,), "b.weight": (4, 8, 1, 1), "b.bias": (4,)}
    values = {k: torch.randn(s, generator=generator).half() for k, s in shapes.items()}
    folder.mkdir()
    for key in order:  # one file a tensor: the order in the checkpoint must not matter
        save_file({key: values[key]}, folder / f"{key}.safetensors")
    tensors = {k: read_header(folder / f"{k}.safetensors")[k] for k in order}
    inputs = {"x": Input((1, 4, 6, 6), np.dtype(np.float16))}
    return build(tensors, inputs, body, dtype=np.float16, target=ct.target.iOS17), values


def save(path: Path, network: Network) -> None:
    write_package(path, network, DESCRIPTION, format=FORMATS["macOS14"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


KEYS = ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_coremltools_reads_what_we_wrote(tmp_path: Path) -> None:
    network, _ = make(tmp_path / "ck", KEYS)
    save(tmp_path / "m.mlpackage", network)
    spec = ct.models.MLModel(str(tmp_path / "m.mlpackage"), skip_model_load=True).get_spec()
    assert spec.specificationVersion == 8
    assert list(spec.mlProgram.functions["main"].block_specializations) == ["CoreML7"]
    (given,), (made,) = spec.description.input, spec.description.output
    assert (given.name, list(given.type.multiArrayType.shape)) == ("x", [1, 4, 6, 6])
    assert (made.name, made.shortDescription) == ("y", "another")
    metadata = spec.description.metadata
    assert (metadata.author, metadata.license, metadata.versionString) == ("who", "terms", "v1")
    assert dict(metadata.userDefined) == {"k": "v"}


def test_coremltools_changes_nothing_when_it_opens_a_package(tmp_path: Path) -> None:
    save(tmp_path / "m.mlpackage", make(tmp_path / "ck", KEYS)[0])
    before = contents(tmp_path / "m.mlpackage")
    ct.models.MLModel(str(tmp_path / "m.mlpackage"), skip_model_load=True)
    assert contents(tmp_path / "m.mlpackage") == before


def test_coremltools_blob_reader_finds_every_weight(tmp_path: Path) -> None:
    network, values = make(tmp_path / "ck", KEYS)
    save(tmp_path / "m.mlpackage", network)
    reader = _BlobStorageReader(str(tmp_path / "m.mlpackage" / WEIGHTS))
    offsets = layout(network.blobs.values()).offsets
    assert set(offsets) == {"a_weight", "b_weight"}  # the biases are too small for the file
    for name, offset in offsets.items():
        found = np.array(reader.read_fp16_data(offset), np.uint16).view(np.float16)
        expected = values[name.replace("_", ".")].numpy().reshape(-1)
        np.testing.assert_array_equal(found, expected)


def test_packages_are_repeatable_whatever_the_checkpoints_order(tmp_path: Path) -> None:
    for name, order in (("one", KEYS), ("two", KEYS[::-1])):
        save(tmp_path / f"{name}.mlpackage", make(tmp_path / name, order)[0])
    assert contents(tmp_path / "one.mlpackage") == contents(tmp_path / "two.mlpackage")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    network, _ = make(tmp_path / "ck", KEYS)
    broken = tmp_path / "ck" / "a.weight.safetensors"
    value = load_file(broken)["a.weight"]
    value[0, 0, 0, 0] = float("nan")
    save_file({"a.weight": value}, broken)
    with pytest.raises(InputError, match="not a finite number"):
        save(tmp_path / "m.mlpackage", network)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck"]


def test_an_existing_package_is_not_overwritten(tmp_path: Path) -> None:
    network, _ = make(tmp_path / "ck", KEYS)
    (tmp_path / "m.mlpackage").mkdir()
    with pytest.raises(InputError, match="exists already"):
        save(tmp_path / "m.mlpackage", network)


def test_tensors_missing_extra_or_of_another_shape_are_named(tmp_path: Path) -> None:
    make(tmp_path / "ck", KEYS)
    tensors = {k: read_header(tmp_path / "ck" / f"{k}.safetensors")[k] for k in KEYS}
    inputs = {"x": Input((1, 4, 6, 6), np.dtype(np.float16))}

    def attempt(change: dict[str, str | None]) -> None:
        changed = {k: tensors[v] for k, v in ({k: k for k in KEYS} | change).items() if v}
        build(changed, inputs, body, dtype=np.float16, target=ct.target.iOS17)

    with pytest.raises(InputError, match=r"`b.bias` is missing; .* of shape \[4\]"):
        attempt({"b.bias": None})
    with pytest.raises(InputError, match=r"`c.bias` has no place"):
        attempt({"c.bias": "a.bias"})
    with pytest.raises(InputError, match=r"`a.bias` has shape \[4\]; the config makes it \[8\]"):
        attempt({"a.bias": "b.bias"})
