"""A compiled model as far as lint needs it: is it complete, and does metadata.json tell the truth?

Reads `model.mil` as a stream, so that a full-size UNet costs neither memory nor a parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from release.tree import Tree

NEEDED = ("coremldata.bin", "model.mil", "metadata.json")
FEATURE = re.compile(rb"(?:tensor<)?(\w+), \[([\d, ]*)\]> (\w+)")
BLOB = re.compile(rb'BLOBFILE\(path = [^"]*"@model_path/([^"]+)"\), offset = [^(]*\((\d+)\)\)')


def completeness(tree: Tree, model: str) -> Iterator[tuple[str, str, str]]:
    """(rule, file, problem) for every file that the model needs and lacks."""
    for name in NEEDED[:2]:  # what a missing metadata.json means is told by the apps
        if f"{model}/{name}" not in tree.files:
            yield "incomplete-model", f"{model}/{name}", "is missing"
    if f"{model}/model.mil" not in tree.files:
        return
    ends: dict[str, int] = {}
    for line in lines(tree, f"{model}/model.mil"):
        for match in BLOB.finditer(line):
            name = match[1].decode()
            ends[name] = max(ends.get(name, 0), int(match[2]))
    for name, offset in ends.items():
        path = f"{model}/{name}"
        size = tree.files.get(path)
        if size is None:
            yield "missing-weights", path, "is missing; the program refers to it"
        elif size <= offset:
            yield "missing-weights", path, f"ends after {size} bytes; weights start at {offset}"


def disagreements(tree: Tree, model: str, entry: Any) -> Iterator[str]:
    """What metadata.json says of inputs and einsum ops that the program does not bear out."""
    if f"{model}/model.mil" not in tree.files or not isinstance(entry, dict):
        return
    einsums, inputs = 0, None
    for line in lines(tree, f"{model}/model.mil"):
        if inputs is None and line.lstrip().startswith(b"func "):
            inputs = {m[3].decode(): _sizes(m[2]) for m in FEATURE.finditer(line)}
        einsums += b" = einsum(" in line
    counts = entry.get("mlProgramOperationTypeHistogram")
    if isinstance(counts, dict):
        claimed = sum(n for k, n in counts.items() if k.lower().endswith("einsum") and _is_int(n))
        if claimed != einsums:
            yield f"counts {claimed} einsum ops; the program has {einsums}"
    try:
        told = {str(i["name"]): str(i["shape"]).strip("[]") for i in entry["inputSchema"]}
    except (LookupError, TypeError):
        return
    if inputs is not None and told != inputs:
        names = sorted(n for n in told.keys() | inputs.keys() if told.get(n) != inputs.get(n))
        yield f"tells other inputs than the program has: {', '.join(names)}"


def lines(tree: Tree, path: str) -> Iterator[bytes]:
    """The lines of a text file, whatever its size."""
    rest = b""
    for piece in tree.pieces(path):
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    yield rest


def _sizes(text: bytes) -> str:
    return text.decode().strip()


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
