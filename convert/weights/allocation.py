"""allocation.json: the width of every tensor under mixed bits, by name, for review and reuse.

Fine-tunes of one architecture have the same names and shapes, and much the same sensitivities.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from convert.errors import InputError
from convert.files.documents import Document, checked
from convert.files.json_files import read_object, shown
from convert.values import Bits, DeploymentTarget, is_mixed
from convert.weights.compress import METHODS, TARGETS, UNCOMPRESSED, ComponentWeights

FILE = "allocation.json"
SCHEMA = 1
HINT = "An allocation is what a run with mixed bits leaves as allocation.json."


class _Facts(Document):
    """A tensor's width, as the file has it."""

    shape: list[Annotated[int, Field(ge=1)]]
    bits: str
    sensitivity: Annotated[float, Field(ge=0)]
    expected_error: Annotated[float, Field(ge=0)]


class _Part(Document):
    """A component's widths, as the file has them."""

    average_bits: Annotated[float, Field(gt=0, le=32)]
    tensors: dict[str, _Facts]


class _Document(Document):
    """The file."""

    bits: str
    components: dict[str, _Part]


# The bits of a component, by its name and by the bits of the artifact that it is in.
BitsByComponent = Mapping[str, Mapping[Bits, Bits]]


@dataclass(frozen=True)
class Allotted:
    """The width of a tensor, and why."""

    shape: tuple[int, ...]
    bits: str
    sensitivity: float
    expected_error: float


@dataclass(frozen=True)
class Allocation:
    """The widths of an artifact's tensors, by component and name.

    Attributes:
        bits: what they were made for, such as mixed-4.5.
        average_bits: what they come to, by component.
    """

    bits: Bits
    average_bits: Mapping[str, float]
    components: Mapping[str, Mapping[str, Allotted]]

    def widths(self, component: str) -> dict[str, str]:
        """Bits by tensor's name."""
        return {name: allotted.bits for name, allotted in self.components[component].items()}

    def text(self) -> str:
        """The file, for review and for a recipe's `compress.allocation`."""
        components = {
            component: {
                "average_bits": self.average_bits[component],
                "tensors": {
                    name: {**vars(allotted), "shape": list(allotted.shape)}
                    for name, allotted in sorted(tensors.items())
                },
            }
            for component, tensors in self.components.items()
        }
        document = {"schema": SCHEMA, "bits": self.bits, "components": components}
        return json.dumps(document, indent=1, sort_keys=True) + "\n"


def read_allocation(path: Path) -> Allocation:
    """The allocation in a file; raises InputError for anything that is none."""
    values = read_object(path)
    if values.get("schema") != SCHEMA:
        raise InputError(f"is of schema {shown(values.get('schema'))}, not {SCHEMA}", where=path)
    document = checked(_Document, values, path, hint=HINT)
    found = Allocation(
        Bits(document.bits),
        {component: part.average_bits for component, part in document.components.items()},
        {
            component: {
                name: Allotted(tuple(f.shape), f.bits, f.sensitivity, f.expected_error)
                for name, f in part.tensors.items()
            }
            for component, part in document.components.items()
        },
    )
    for component, tensors in found.components.items():
        for name, allotted in tensors.items():
            if allotted.bits not in (UNCOMPRESSED, *METHODS):
                raise InputError(
                    f"gives {component}'s `{name}` {allotted.bits} bits",
                    where=path,
                    hint=f"Widths are {', '.join((UNCOMPRESSED, *METHODS))}.",
                )
    return found


def fitting_allocations(
    file: str | None,
    weights: Mapping[str, ComponentWeights],
    bits: BitsByComponent,
    target: DeploymentTarget,
) -> dict[Bits, Allocation]:
    """A recipe's own allocation, by the mixed bits that it is asked for; empty if it names none.

    Raises:
        InputError: as `read_allocation`, or it does not fit all that is asked for.
    """
    if file is None:
        return {}
    allocation = read_allocation(Path(file))
    mixed = dict.fromkeys(asked for of in bits.values() for asked in of if is_mixed(asked))
    for asked in mixed:
        if asked != allocation.bits:
            raise InputError(
                f"is for {allocation.bits}; {asked} is asked for",
                where=file,
                hint="Leave it away to measure what each tensor needs.",
            )
        for component, of in bits.items():
            if of.get(asked) == asked:
                _require_fit(allocation, weights[component], target, where=file)
    return dict.fromkeys(mixed, allocation)


def _require_fit(
    allocation: Allocation, weights: ComponentWeights, target: DeploymentTarget, *, where: object
) -> None:
    """Raise InputError unless an allocation has a width for each tensor, which the target holds."""
    hint = "An allocation is for checkpoints of one architecture; leave it away to measure anew."
    component, wanted = weights.component, weights.compressible
    if component not in allocation.components:
        raise InputError(f"has no widths for {component}", where=where, hint=hint)
    given = allocation.components[component]
    for name in sorted(wanted.keys() ^ given.keys()):
        problem = "lacks a width for" if name in wanted else "has a width for an unknown tensor,"
        raise InputError(f"{problem} {component}'s `{name}`", where=where, hint=hint)
    for name, allotted in given.items():
        if allotted.shape != wanted[name].shape:
            raise InputError(
                f"has {component}'s `{name}` as {list(allotted.shape)}; "
                f"the checkpoint's is {list(wanted[name].shape)}",
                where=where,
                hint=hint,
            )
        able = TARGETS[allotted.bits]
        if target not in able:
            raise InputError(
                f"gives {component}'s `{name}` {allotted.bits} bits, which need a deployment "
                f"target of {' or '.join(able[:2])} or newer, not {target}",
                where=where,
            )
