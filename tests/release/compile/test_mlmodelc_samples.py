"""Real pairs of packages and what Xcode made of them, reproduced.

The pairs lie in `../shared/mlmodelc_samples` and are no part of the project; without them these
tests are skipped by name, and `test_mil_text.py` holds the same rules to texts of its own.
Source: FluidInference's repositories mobius (6bf7833, Silero VAD) and FluidAudio (8842adb,
Parakeet EOU, whose 160 ms streaming encoder is `parakeet_eou_160ms`) on GitHub.
Any further pair put there (`NAME/mlpackage`, `NAME/mlmodelc`) is tried, too.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from release.compile.coremldata import analytics, coremldata, serialised_description
from release.compile.metadata import metadata, metadata_json
from release.compile.mil_text import write_program
from release.compile.op_versions import DEFINED, versioned_name
from verify.mil import load_program
from verify.mil.package import read_model

SAMPLES = Path(__file__).parents[4] / "shared" / "mlmodelc_samples"
SILERO = (
    "silero_256ms_int8",
    "silero_256ms_palette_4bit",
    "silero_256ms_palette_8bit",
    "silero_std_int8",
    "silero_std_mixed",
    "silero_std_palette_2bit",
    "silero_std_palette_6bit",
    "silero_std_pruned_int8",
    "silero_unified",
)
PARAKEET = "parakeet_eou_160ms"
FOUND = {p.name for p in SAMPLES.glob("*/") if p.is_dir()} if SAMPLES.is_dir() else set()
NAMES = sorted({*SILERO, PARAKEET, *FOUND})

# Which pair shows which rule of the text: the rule, what shows it in `model.mil`, and where.
RULES: list[tuple[str, str, tuple[str, ...]]] = [
    ("specification 6 to 8 is dialect 1.0", r"^program\(1\.0\)\n", (*SILERO, PARAKEET)),
    (
        "the program's build info joins the compiler's, sorted",
        r'{{"coremlc-component-MIL", "[\d.]+"}, {"coremlc-version", "[\d.]+"}, {"coremltools-',
        ("silero_unified", PARAKEET),
    ),
    (
        "without any of the program's own, the compiler's stands alone",
        r'{{"coremlc-component-MIL", "[\d.]+"}, {"coremlc-version", "[\d.]+"}}\)\]',
        ("silero_std_int8", "silero_std_palette_2bit"),
    ),
    ("CoreML5 is ios15", r"func main<ios15>", ("silero_unified",)),
    ("CoreML6 is ios16", r"func main<ios16>", ("silero_std_int8",)),
    ("CoreML7 is ios17", r"func main<ios17>", (PARAKEET,)),
    (
        "inputs are sorted by name, not in the package's order",
        r"\(tensor<fp32, \[1, \d+\]> audio_input, .* cell_state, .* hidden_state\)",
        ("silero_unified", "silero_256ms_int8"),
    ),
    (
        "a block's outputs are in the package's order",
        r"-> \(vad_output, new_hidden_state, new_cell_state\);",
        ("silero_unified",),
    ),
    (
        "the name is one attribute among others, sorted, and need not be the output's",
        r'\[name = tensor<string, \[\]>\("cast_11"\)\]',
        ("silero_unified",),
    ),
    ("several bindings stand in parentheses", r"values = \(\w+, \w+", ("silero_256ms_int8",)),
    (
        "several outputs stand side by side",
        r"^ +tensor<fp\d\d, \[[\d, ]+\]> \w+, tensor<fp\d\d, .* = lstm\(",
        ("silero_unified",),
    ),
    (
        "scalars are tensors of rank 0",
        r"val = tensor<fp16, \[\]>\(0x",
        ("silero_unified", PARAKEET),
    ),
    (
        "floats are hexadecimal with the shortest mantissa",
        r"\((?:0x1p-\d+|0x0p\+0|0x1\.[\da-f]*[1-9a-f]p[+-]\d+)\)",
        ("silero_unified", PARAKEET),
    ),
    ("infinity is bare", r"\(-inf\)", (PARAKEET,)),
    ("arrays are written out in full", r"\[\[\[(?:true|false), (?:true|false), ", (PARAKEET,)),
    (
        "weights keep their place in the package's file",
        r'BLOBFILE\(path = tensor<string, \[\]>\("@model_path/weights/weight\.bin"\), offset = ten',
        (*SILERO, PARAKEET),
    ),
    (
        "decoders of iOS 16 have everything in attributes",
        r"constexpr_lut_to_dense\(\)\[indices = .*, lut = .*, name = .*, shape = tensor<uint32, ",
        ("silero_256ms_palette_4bit", "silero_std_palette_2bit", "silero_std_palette_6bit"),
    ),
    (
        "so do those of int8",
        r"constexpr_affine_dequantize\(\)\[axis = .*, name = .*, quantized_data = ",
        ("silero_std_int8", "silero_std_mixed"),
    ),
    (
        "and those of pruned weights",
        r"constexpr_sparse_to_dense\(\)\[mask = ",
        ("silero_std_pruned_int8",),
    ),
]


def folder(name: str) -> Path:
    if not (SAMPLES / name).is_dir():
        pytest.skip(f"not checked: there is no {name} in ../shared/mlmodelc_samples")
    return SAMPLES / name


@pytest.fixture(params=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The package, and what Xcode made of it."""
    found = folder(request.param)
    return found / "mlpackage", found / "mlmodelc"


def compilers_own(text: str) -> dict[str, str]:
    """What the compiler wrote of itself."""
    return dict(re.findall(r'{"(coremlc-[\w-]+)", "([^"]*)"}', text[:2000]))


@pytest.mark.parametrize(("rule", "pattern", "names"), RULES, ids=[r[0] for r in RULES])
def test_what_the_pairs_show(rule: str, pattern: str, names: tuple[str, ...]) -> None:
    for name in names:
        text = (folder(name) / "mlmodelc/model.mil").read_text("utf-8")
        assert re.search(pattern, text, re.M), (rule, name)


def test_the_text_is_the_same_to_the_byte(pair: tuple[Path, Path]) -> None:
    package, compiled = pair
    expected = (compiled / "model.mil").read_bytes()
    written: list[str] = []
    write_program(read_model(package)[1], written.append, compilers_own(expected.decode()))
    assert "".join(written).encode() == expected


def test_coremldata_is_the_same_but_for_the_order_of_user_metadata(
    pair: tuple[Path, Path],
) -> None:
    package, compiled = pair
    _, model, content = read_model(package)
    expected = (compiled / "coremldata.bin").read_bytes()
    pointer = re.search(rb"sha256:(\w{64})\nsize (\d+)", expected)
    if pointer is None:
        at = 0x53  # the description
        size = int.from_bytes(expected[0x4B:at], "little")
        theirs = expected[at : at + size]
        assert coremldata(model, theirs) == expected
        ours = serialised_description(content)
        assert len(ours) == len(theirs)
        assert canonical(ours) == canonical(theirs)
    else:  # a pointer of Git LFS has the digest and the size
        candidates = [coremldata(model, d) for d in reordered(serialised_description(content))]
        assert {len(c) for c in candidates} == {int(pointer[2])}
        assert pointer[1].decode() in {hashlib.sha256(c).hexdigest() for c in candidates}


def canonical(description: bytes) -> bytes:
    from coremltools.proto import Model_pb2

    message = Model_pb2.ModelDescription.FromString(description)
    return bytes(message.SerializeToString(deterministic=True))


def reordered(description: bytes) -> list[bytes]:
    """The description with its user-defined metadata in every order."""
    from coremltools.proto import Model_pb2

    message = Model_pb2.ModelDescription.FromString(description)
    pairs = dict(message.metadata.userDefined)
    metadata = Model_pb2.Metadata.FromString(message.metadata.SerializeToString())
    metadata.userDefined.clear()
    message.ClearField("metadata")
    found = []
    for order in itertools.permutations(pairs):
        entries = b"".join(
            Model_pb2.Metadata(userDefined={key: pairs[key]}).SerializeToString() for key in order
        )
        inner = metadata.SerializeToString() + entries
        assert len(inner) < 1 << 14
        length = bytes([len(inner) & 127 | 128, len(inner) >> 7])
        found.append(message.SerializeToString() + b"\xa2\x06" + length + inner)
    return found


def test_analytics_are_the_same(pair: tuple[Path, Path]) -> None:
    package, compiled = pair
    file, _, content = read_model(package)
    expected, ours = (compiled / "analytics/coremldata.bin").read_bytes(), analytics(content, "m")
    if expected.startswith(b"version https://git-lfs"):
        # The digest in it is of another file than the one beside it; its size is what can be told.
        assert f"size {len(analytics(content, file.stem))}".encode() in expected
        return
    assert base64.b64encode(hashlib.sha256(content).digest()) in ours
    assert analytics(content, file.stem) == expected


def test_metadata_is_equal(pair: tuple[Path, Path]) -> None:
    package, compiled = pair
    text = (compiled / "metadata.json").read_text("utf-8")
    (expected,) = json.loads(text)
    # The class is named after the package's file, which the pairs here have lost.
    _, model, _ = read_model(package)
    ours = metadata(model, expected["generatedClassName"])
    assert ours == expected


def test_metadata_is_laid_out_alike(pair: tuple[Path, Path]) -> None:
    package, compiled = pair
    text = (compiled / "metadata.json").read_text("utf-8")
    _, model, _ = read_model(package)
    ours = metadata_json(model, json.loads(text)[0]["generatedClassName"])

    def lines(json_text: str) -> list[str]:  # apart from the order of keys, which follows hashes
        return sorted(line.rstrip(",") for line in json_text.split("\n"))

    assert lines(ours) == lines(text)


def test_the_parser_reads_back_what_xcode_wrote(
    pair: tuple[Path, Path], tmp_path: Path, same_program: Any
) -> None:
    package, compiled = pair
    copy = Path(shutil.copytree(compiled, tmp_path / "x.mlmodelc"))
    _, model, content = read_model(package)
    if (compiled / "coremldata.bin").read_bytes().startswith(b"version https://git-lfs"):
        (copy / "coremldata.bin").unlink()
        (copy / "coremldata.bin").write_bytes(coremldata(model, serialised_description(content)))
    same_program(load_program(copy), load_program(package))


def test_versions_of_operations_are_those_that_were_seen() -> None:
    if not (SAMPLES / "opversions.json").is_file():
        pytest.skip("not checked: there is no opversions.json in ../shared/mlmodelc_samples")
    seen: Mapping[str, Mapping[str, str]] = json.loads((SAMPLES / "opversions.json").read_text())
    for opset, operations in seen.items():
        for op, prefix in operations.items():
            name = versioned_name(op, int(opset.removeprefix("ios")))
            assert name.rpartition(".")[0] == prefix, (opset, op)
            assert op in DEFINED
