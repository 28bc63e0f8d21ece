"""What a piece of a proof takes: seconds of a core, and memory, by what it computes and reads.

The constants were measured with SDXL at 224x288, 320x448 and 1024x1024 on two cores (AMD EPYC,
PyTorch 2.13), as those of `convert.plan.estimate` were.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.plan.estimate import SECONDS_PER_OP
from convert.values import Resolution
from verify.proof.cost import cost_of

PRODUCTS = 12.1e-12  # seconds of a core for one multiplication, in convolutions and matrices
VAE_PRODUCTS = 14.0e-12  # the same of a VAE's, whose images are large beside its weights
ATTENDED = 103e-12  # in attentions, softmax and all
REFERENCE_WEIGHT = 2.7e-9  # for each weight in each run: widened, and read
EVALUATED_WEIGHT = 4.1e-9
DECODED_WEIGHT = 2.3e-9  # decoded in each run
EVALUATED_OP = 20e-6  # for each op in each run, constants counted
LOADED_OP = 25e-6  # to read a program
JUDGED_OP = 110e-6  # levels structure and graph
JUDGED_PLAIN, JUDGED_PALETTE = 0.5e-9, 2.2e-9  # level weights, for each weight
READ_BYTE = 0.6e-9  # hashed
GATHERED_WEIGHT = 5.8e-9  # decoded to be kept
COMPARED_WEIGHT = 6e-9  # level compression, but for fitting palettes
LOADED_WEIGHT = 2.4e-9  # of the reference, where it is not mapped
RUN_SECONDS = 0.05  # of any, however small its network is
PIECE_SECONDS = 0.3
REFERENCE_SECONDS = 0.3  # to build a network with diffusers
TEXTS, PROMPTS = 4, 2  # recorded texts, and those that other components need

START_BYTES = 370_000_000  # of a process with PyTorch and diffusers
WORK_BYTES = 500_000_000  # of whatever runs a network, aside from its values
VALUES = 5  # values as wide as the widest that PyTorch keeps at once, float32
POOL_BYTES, POOLED = 3 << 30, 12  # what the evaluator keeps idle, and of how many such values
LIVE = 3  # such values in use
BYTES_PER_OP = 6_800  # of a program in memory
MAPPED_WEIGHTS = 1 << 29  # of a UNet in float16, from which on PyTorch reads them where they are


class Work(NamedTuple):
    """Seconds of a core: that several threads can share, and that one has to do by itself."""

    wide: float = 0.0
    serial: float = 0.0

    def plus(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(self.wide + other.wide, self.serial + other.serial)

    def seconds(self, threads: int) -> float:
        """Wall time with so many threads."""
        return self.serial + self.wide / threads


@dataclass(frozen=True)
class ProofPiece:
    """A task of a proof, told by what it takes.

    Attributes:
        kind: as `verify.proof.tasks` calls it.
        components: that are looked at or run.
        size: of the images.
        steps: of the UNet.
        half: components that compute in float16, of which the reference runs both.
        decoded: how many weights of these components are stored compressed, by component.
        fit_seconds: to fit the palettes that theirs are compared with.
        ops: of the program, constants counted.
        attention: of a UNet.
        own: whether a recording is of decoded weights.
        bytes: of a weight file that is looked at for the first time.
        probe: whether a small program is made on the way.
    """

    kind: str
    components: tuple[str, ...]
    size: Resolution | None = None
    steps: int = 1
    half: Collection[str] = ()
    decoded: tuple[tuple[str, int], ...] = ()
    fit_seconds: float = 0.0
    ops: int = 0
    attention: str | None = None
    own: bool = False
    bytes: int = 0
    probe: bool = False

    @property
    def decoded_weights(self) -> int:
        """Of all components."""
        return sum(count for _, count in self.decoded)


def work_of(source: Checkpoint, piece: ProofPiece) -> Work:
    """What a piece takes."""
    found = {
        "artifact": _artifact,
        "package": _package,
        "recording": _recording,
        "decoded": _decoded,
        "numbers": _numbers,
        "traces": _traces,
        "pictures": _pictures,
    }[piece.kind](source, piece)
    return found.plus(Work(serial=PIECE_SECONDS))


def memory_of(source: Checkpoint, piece: ProofPiece) -> int:
    """Anonymous memory in bytes of a process that does it, at its peak."""
    if piece.kind in ("artifact", "package"):
        return START_BYTES + WORK_BYTES + piece.ops * BYTES_PER_OP
    decoded = dict(piece.decoded) if piece.kind == "decoded" or piece.own else {}
    runs = [_running_bytes(source, c, piece) + 2 * decoded.get(c, 0) for c in piece.components]
    return START_BYTES + WORK_BYTES + max(runs, default=0)


def weights_of(source: Checkpoint, component: str) -> int:
    """How many weights a component has."""
    return sum(tensor.size for tensor in source.component_tensors(component).values())


# ---- seconds ----


def _artifact(_source: Checkpoint, piece: ProofPiece) -> Work:
    return Work(serial=piece.bytes * READ_BYTE)


def _package(source: Checkpoint, piece: ProofPiece) -> Work:
    (component,) = piece.components
    serial = piece.ops * (LOADED_OP + JUDGED_OP)
    if piece.probe:
        serial += piece.ops * SECONDS_PER_OP
    if not piece.bytes:
        return Work(serial=serial)
    plain = weights_of(source, component) - piece.decoded_weights
    judged = plain * JUDGED_PLAIN + piece.decoded_weights * JUDGED_PALETTE
    return Work(judged, serial)


def _recording(source: Checkpoint, piece: ProofPiece) -> Work:
    total = Work()
    for component in piece.components:
        runs = _runs(source, component, piece)
        for _ in range(1 + (component in piece.half)):
            total = total.plus(_reference(source, component, piece.size, runs))
            total = total.plus(_gathered(piece, component)) if piece.own else total
    for component in source.text_encoders:
        if component not in piece.components:
            total = total.plus(_reference(source, component, None, PROMPTS))
    return total


def _gathered(piece: ProofPiece, component: str) -> Work:
    """A component's weights decoded to be kept: half of it is done by one thread."""
    half = dict(piece.decoded).get(component, 0) * GATHERED_WEIGHT / 2
    return Work(half, half)


def _decoded(source: Checkpoint, piece: ProofPiece) -> Work:
    (component,) = piece.components
    fits = piece.fit_seconds / 2  # one thread's by itself, and another half that several share
    compared = Work(piece.decoded_weights * COMPARED_WEIGHT + fits, fits)
    total = _gathered(piece, component).plus(compared)
    runs = _runs(source, component, piece)
    for _ in range(1 + (component in piece.half)):
        total = total.plus(_reference(source, component, piece.size, runs))
    return total


def _numbers(source: Checkpoint, piece: ProofPiece) -> Work:
    (component,) = piece.components
    return _evaluated(source, piece, component, _runs(source, component, piece))


def _traces(source: Checkpoint, piece: ProofPiece) -> Work:
    """Whole runs of the reference."""
    total = Work()
    for component in piece.components:
        runs = piece.steps if COMPONENTS[component].kind == "unet" else PROMPTS
        total = total.plus(_reference(source, component, piece.size, runs))
    return total


def _pictures(source: Checkpoint, piece: ProofPiece) -> Work:
    """The same of an artifact, each step on its own and once more as the reference went."""
    total = Work()
    for component in piece.components:
        runs = 2 * piece.steps if COMPONENTS[component].kind == "unet" else 2 * PROMPTS
        total = total.plus(_evaluated(source, piece, component, runs))
    return total


def _evaluated(source: Checkpoint, piece: ProofPiece, component: str, runs: int) -> Work:
    """The evaluator's runs of a component; each reads and decodes the weights anew."""
    decoded = dict(piece.decoded).get(component, 0) * DECODED_WEIGHT
    weights = weights_of(source, component) * EVALUATED_WEIGHT + decoded
    wide = runs * (_computed(source, component, piece.size) + weights)
    return Work(wide, piece.ops * (LOADED_OP + runs * EVALUATED_OP) + runs * RUN_SECONDS)


def _reference(source: Checkpoint, component: str, size: Resolution | None, runs: int) -> Work:
    """PyTorch's runs of a component in one precision."""
    weights = weights_of(source, component)
    wide = runs * (_computed(source, component, size) + weights * REFERENCE_WEIGHT)
    serial = REFERENCE_SECONDS + runs * RUN_SECONDS
    if not _is_mapped(source, component):
        serial += weights * LOADED_WEIGHT
    return Work(wide, serial)


def _computed(source: Checkpoint, component: str, size: Resolution | None) -> float:
    cost = cost_of(source, component, size)
    each = VAE_PRODUCTS if COMPONENTS[component].part == "vae" else PRODUCTS
    return cost.products * each + cost.attended * ATTENDED


def _runs(source: Checkpoint, component: str, piece: ProofPiece) -> int:
    kind = COMPONENTS[component].kind
    if kind == "text_encoder":
        return TEXTS + sum(component in one.text_encoders for one in source.embeddings)
    return piece.steps if kind == "unet" else 1


# ---- memory ----


def _running_bytes(source: Checkpoint, component: str, piece: ProofPiece) -> int:
    cost = cost_of(source, component, piece.size)
    if piece.kind in ("numbers", "pictures"):
        attention = 4 * cost.widest if piece.attention == "original" else 0
        return min(POOL_BYTES, POOLED * 4 * cost.values) + LIVE * 4 * cost.values + attention
    held = 0 if _is_mapped(source, component) else 4 * weights_of(source, component)
    return held + VALUES * 4 * cost.values


def _is_mapped(source: Checkpoint, component: str) -> bool:
    """Whether the reference leaves the weights in their file, as it does where memory matters."""
    part = source.part(component)
    is_half = all(tensor.dtype == "F16" for tensor in part.tensors.values())
    return part.name == "unet" and is_half and part.size >= MAPPED_WEIGHTS
