"""An ML Program from a compiled model: `model.mil`, with the interface from `coremldata.bin`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from convert.errors import CannotExecute, InputError
from convert.files.git_lfs import refuse_pointer
from verify.mil.aside import of_interface
from verify.mil.package import feature_of
from verify.mil.program import Functions, Program, functions
from verify.mil.text import parse_program

ML_PROGRAM = 502  # first number of `coremldata.bin`: which kind of model it is
OPSETS = {
    "ios15": "CoreML5",
    "ios16": "CoreML6",
    "ios17": "CoreML7",
    "ios18": "CoreML8",
    "ios19": "CoreML9",
}
_REMEDY = "Compile the package again, or download it again; a checkout may need `git lfs pull`."


def compiled_functions(folder: Path) -> Functions:
    """The functions of a `.mlmodelc`; weights stay on disk. Raises as `load_program` does."""
    if not folder.exists():
        raise InputError("no such compiled model", where=folder)
    mil = folder / "model.mil"
    if not mil.is_file():
        raise CannotExecute(
            "no model.mil: a compiled ML Program is needed",
            where=folder,
            hint="Compiled neural networks and pipelines are not supported.",
        )
    refuse_pointer(mil)
    try:
        text = mil.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CannotExecute("not a text", where=mil) from error
    version, description = _interface(folder / "coremldata.bin")
    found = {function.name: function for function in parse_program(text, folder)}
    metadata = description.metadata

    def read(name: str, interface: Any) -> Program:
        function = found[name]
        if function.opset not in OPSETS:
            raise CannotExecute(
                f"opset {function.opset!r} is not known; known are {', '.join(OPSETS)}", where=mil
            )
        inputs = [feature_of(f) for f in interface.input]
        declared = function.main.inputs
        if {f.name for f in inputs} == set(declared):
            # The text sorts them; the interface has them in the package's order.
            function.main.inputs = {f.name: declared[f.name] for f in inputs}
        return Program(
            path=folder,
            opset=OPSETS[function.opset],
            specification_version=version,
            inputs=inputs,
            outputs=[feature_of(f) for f in interface.output],
            main=function.main,
            author=metadata.author,
            license=metadata.license,
            short_description=metadata.shortDescription,
            version=metadata.versionString,
            user_defined=dict(metadata.userDefined),
            function=name,
            aside=(
                *(f"{attribute} of the function" for attribute in function.attributes),
                *of_interface(description, interface),
            ),
        )

    return functions(mil, found, description, read)


def _interface(file: Path) -> tuple[int, Any]:
    """The specification version, and the `ModelDescription` message, of a `coremldata.bin`.

    Layout, little endian: u32 kind of model; three u64 of a version; a string; four u64, of which
    the first is the specification version; a string that holds the message; more that does not
    concern us. A string is a u64 length and its bytes.
    """
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        data = file.read_bytes()
        refuse_pointer(file, data)
        (kind,) = struct.unpack_from("<I", data)
        if kind != ML_PROGRAM:
            raise CannotExecute("no ML Program's", where=file, hint=_REMEDY)
        at = 4 + 3 * 8
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        version, _, _, _, size = struct.unpack_from("<5Q", data, at)
        at += 5 * 8
        if at + size > len(data):
            raise CannotExecute("truncated", where=file, hint=_REMEDY)
        description = Model_pb2.ModelDescription.FromString(data[at : at + size])
    except FileNotFoundError:
        raise CannotExecute("not a compiled model: no coremldata.bin", where=file) from None
    except (struct.error, DecodeError, OverflowError) as error:
        raise CannotExecute("cannot be read", where=file, hint=_REMEDY) from error
    return version, description
