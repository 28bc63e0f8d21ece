"""A compiled model as far as lint needs it: is it complete, and does metadata.json tell the truth?

Reads `model.mil` as a stream, so that a full-size UNet costs neither memory nor a parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from convert.files.git_lfs import PROBLEM, is_pointer
from release.lint.tree import Tree
from verify.mil.blob import HEADER, header_problem, record_problem

NEEDED = ("coremldata.bin", "model.mil", "metadata.json")
FEATURE = re.compile(rb"(?:tensor<)?(\w+), \[([\d, ]*)\]> (\w+)")
BLOB = re.compile(rb'BLOBFILE\(path = [^"]*"@model_path/([^"]+)"\), offset = [^(]*\((\d+)\)\)')
TYPE = re.compile(rb"(?:^|[ (])(?:tensor<)?(\w+)(?:, \[([\d, ]*)\]>)?\($")  # of what stands next
STATE = re.compile(rb"state<[^()]*?> (\w+)[,)]")
LONGEST_TYPE = 200  # letters
BlobPlace = tuple[int, str, tuple[int, ...]]  # offset, dtype, shape


def completeness(tree: Tree, model: str) -> Iterator[tuple[str, str, str]]:
    """(rule, file, problem) for every file that the model needs and lacks."""
    for name in NEEDED[:2]:  # what a missing metadata.json means is told by the apps
        path = f"{model}/{name}"
        if path not in tree.files:
            yield "incomplete-model", path, "is missing"
        elif is_pointer(next(tree.at(path, [(0, HEADER)]))):
            yield "incomplete-model", path, PROBLEM
    if f"{model}/model.mil" not in tree.files:
        return
    blobs: dict[str, set[BlobPlace]] = {}
    for line in lines(tree, f"{model}/model.mil"):
        for match in BLOB.finditer(line):
            found = blobs.setdefault(match[1].decode(), set())
            if type_ := TYPE.search(line[max(0, match.start() - LONGEST_TYPE) : match.start()]):
                shape = tuple(int(n) for n in (type_[2] or b"").split(b",") if n.strip())
                found.add((int(match[2]), type_[1].decode(), shape))
    for name, found in blobs.items():
        if problem := _weights_problem(tree, f"{model}/{name}", sorted(found)):
            yield "missing-weights", f"{model}/{name}", problem


def _weights_problem(tree: Tree, path: str, blobs: list[BlobPlace]) -> str | None:
    """Why a weight file does not hold what the program refers to, or None."""
    size = tree.files.get(path)
    if size is None:
        return "is missing; the program refers to it"
    places = [(0, HEADER), *((offset, HEADER) for offset, _, _ in blobs)]
    try:
        start, *records = tree.at(path, places)
    except OSError as error:
        return f"cannot be read: {error}"
    found = zip(records, blobs, strict=True)
    problems = (record_problem(record, blob[0], size, *blob[1:]) for record, blob in found)
    return header_problem(start, size) or next(filter(None, problems), None)


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


def states(tree: Tree, model: str) -> list[str]:
    """The states of a model's functions, which are among their inputs in the program."""
    if f"{model}/model.mil" not in tree.files:
        return []
    heads = (t for t in lines(tree, f"{model}/model.mil") if t.lstrip().startswith(b"func "))
    return [name.decode() for head in heads for name in STATE.findall(head)]


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
