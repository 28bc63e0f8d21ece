"""The values that recipes and commands are written in: attention, resolution, bits, target.

Each parser accepts one spelling only and says which one was probably meant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NewType, get_args

from convert.errors import InputError, nearest

Attention = Literal["original", "split_einsum", "split_einsum_v2"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
QUERY_CHUNK = 512  # queries that split_einsum_v2 takes at a time

# What is verified; verify/judge/checks.py says what each level means.
Level = Literal[
    "structure", "weights", "graph", "conversion", "compression", "generation", "sanity"
]
LEVELS: tuple[Level, ...] = get_args(Level)
# Without whole runs, which take the reference and the artifact dozens of steps for every picture.
COMPONENT_LEVELS: tuple[Level, ...] = ("structure", "conversion", "compression")
# What is checked where nothing says otherwise.
DEFAULT_LEVELS: tuple[Level, ...] = ("structure", "weights", "graph", "conversion", "compression")

Verdict = Literal["pass", "fail", "indeterminate"]

# How much is done to verify a run's artifacts.
Effort = Literal["quick", "standard", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)

VaePrecision = Literal["float32", "float16"]
AskedVaePrecision = Literal["float32", "float16", "auto"]

DeploymentTarget = Literal["macOS14", "iOS17", "macOS15", "iOS18", "macOS26", "iOS26"]
DEPLOYMENT_TARGETS: tuple[DeploymentTarget, ...] = get_args(DeploymentTarget)


@dataclass(frozen=True)
class Format:
    """What a deployment target reads: Core ML specification version and MIL opset.

    Source: `coremltools.target` and `coremltools._OPSET`, 9.0.
    """

    specification_version: int
    opset: str


_CORE_ML_7 = Format(8, "CoreML7")
_CORE_ML_8 = Format(9, "CoreML8")
_CORE_ML_9 = Format(10, "CoreML9")
FORMATS: dict[DeploymentTarget, Format] = {
    "macOS14": _CORE_ML_7,
    "iOS17": _CORE_ML_7,
    "macOS15": _CORE_ML_8,
    "iOS18": _CORE_ML_8,
    "macOS26": _CORE_ML_9,
    "iOS26": _CORE_ML_9,
}

Bits = NewType("Bits", str)
PLAIN_BITS = ("16", "8", "6", "4", "3", "2", "1", "int8", "int4")
MIXED_BITS_PATTERN = r"^mixed-(([1-9]|1[0-5])\.[0-9]|16\.0)$"
# 3-bit palettes and 4-bit integers came with `ios18.constexpr_*`; coremltools, `iOS18.compression`.
_FIRST_FORMAT = {"3": _CORE_ML_8, "int4": _CORE_ML_8}

# Successive output channels that share a palette; coremltools' `iOS18.constexpr_lut_to_dense`.
GROUP_SIZES = (4, 64)  # smallest, largest
_GROUPS_FORMAT = _CORE_ML_8

# What compression is for. The VAE is small, and its error is seen in every pixel: it stays at 16
# bits unless a recipe asks for less.
Compressible = Literal["text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"]

RESOLUTION_PATTERN = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
# The VAE's downsampling; what the UNet needs on top is the converter's to check.
RESOLUTION_STEP = 8


@dataclass(frozen=True)
class Resolution:
    """The size of the images a model makes, in pixels: `str(Resolution(832, 1216))` is "832x1216".

    Raises:
        InputError: a side is not a positive multiple of 8.
    """

    width: int
    height: int

    def __post_init__(self) -> None:
        sides = (self.width, self.height)
        if any(side <= 0 or side % RESOLUTION_STEP for side in sides):
            near = [max(1, round(side / RESOLUTION_STEP)) * RESOLUTION_STEP for side in sides]
            raise InputError(
                f"`{self}` has a side that is not a positive multiple of {RESOLUTION_STEP}",
                hint=f"the nearest is `{near[0]}x{near[1]}`",
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Resolution:
        """The resolution written as "WIDTHxHEIGHT" in pixels; anything else is an `InputError`."""
        if re.fullmatch(RESOLUTION_PATTERN, text):
            width, height = text.split("x")
            return cls(int(width), int(height))
        # People write 1024×1024, 1024X1024, 1024 x 1024, 1024*1024, 1024,1024 or just 1024.
        sides = [side.lstrip("0") for side in re.findall(r"[0-9]+", text)]
        if len(sides) == 1 and text.strip().isdecimal():
            sides *= 2
        meant = "x".join(sides) if len(sides) == 2 else ""
        likely = re.fullmatch(RESOLUTION_PATTERN, meant) and all(
            int(side) % RESOLUTION_STEP == 0 for side in sides
        )
        raise InputError(
            f"`{text}` is not a resolution; write WIDTHxHEIGHT in pixels, such as 832x1216",
            hint=f"did you mean `{meant}`?" if likely else None,
        )


def parse_bits(text: str) -> Bits:
    """The compression named by `text`: bits per weight, "int8", "int4" or "mixed-N.N".

    Plain numbers are palettes (16 is no compression), `int` is linear quantization, "mixed-4.5"
    palettes of several sizes that average 4.5 bits. Raises `InputError` for anything else.
    """
    if text in PLAIN_BITS or re.fullmatch(MIXED_BITS_PATTERN, text):
        return Bits(text)
    allowed = f"allowed: {', '.join(PLAIN_BITS)}, mixed-N.N"
    if re.fullmatch(r"mixed-[0-9.]+", text):
        raise InputError(
            f"`{text}` is not an average of 1.0 to 16.0 bits with one decimal",
            hint="write it as in mixed-4.5",
        )
    meant = re.sub(r"[-_ ]?bits?$", "", text.strip().lower()).replace("-", "").replace("_", "")
    suggestion = meant if meant in PLAIN_BITS else nearest(text, PLAIN_BITS)
    raise InputError(
        f"`{text}` is not a bit width; {allowed}",
        hint=f"did you mean `{suggestion}`?" if suggestion else None,
    )


def is_mixed(bits: Bits) -> bool:
    """Whether the bits are an average over tensors of several widths."""
    return bits.startswith("mixed-")


def target_of(opset: str, specification_version: int | None = None) -> DeploymentTarget | None:
    """The first deployment target whose format has this opset; None if there is none.

    Args:
        specification_version: that the format must have as well.
    """
    for target, found in FORMATS.items():
        if found.opset == opset and specification_version in (None, found.specification_version):
            return target
    return None


def targets_for(bits: Bits, *, grouped: bool = False) -> tuple[DeploymentTarget, ...]:
    """The deployment targets whose format can hold weights of this bit width, oldest first.

    Args:
        grouped: with a palette for each group of output channels.
    """
    formats = (_FIRST_FORMAT.get(bits, _CORE_ML_7), _GROUPS_FORMAT if grouped else _CORE_ML_7)
    first = max(f.specification_version for f in formats)
    return tuple(t for t in DEPLOYMENT_TARGETS if FORMATS[t].specification_version >= first)


def suggestion(value: str, known: tuple[str, ...]) -> str | None:
    """The known name that `value` probably means, whatever its case, or None."""
    by_case = {name.casefold(): name for name in known}
    found = nearest(value.strip().casefold(), list(by_case))
    return None if found is None else by_case[found]
