"""How numbers are stored in files of weights: their widths, and what their codes mean in numpy.

numpy has neither bfloat16 nor 8-bit floats. A bfloat16 is the upper half of a float32; an 8-bit
float has 256 values, all of them exact in float16. The names are those of safetensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# dtype → numpy dtype of its codes. A network's weights are one of these.
FLOATS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
}
# Counts and marks; a single one can be a number of its own, such as a LoRA's alpha.
INTEGERS: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
# Bytes of an element; of what is not here (four bits, say) the header alone knows the size.
WIDTHS: dict[str, int] = {
    **{name: stored.itemsize for name, stored in (FLOATS | INTEGERS).items()},
    "C64": 8,
    "C128": 16,
    "F8_E8M0": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2FNUZ": 1,
}
READ = "F16, BF16, F32, F64, F8_E4M3 or F8_E5M2"


def _e4m3() -> np.ndarray:
    """The values of float8_e4m3fn by code: no infinity, one NaN of each sign, at most 448.

    Source: Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433), table 1.
    """
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    fraction = np.where(exponent == 0, mantissa / 8, 1 + mantissa / 8)
    values = fraction * np.exp2(np.maximum(exponent, 1) - 7.0)
    values[codes & 127 == 127] = np.nan
    return np.copysign(values, np.where(codes < 128, 1.0, -1.0)).astype(np.float16)


def _e5m2() -> np.ndarray:
    """The values of float8_e5m2 by code, which is the upper half of a float16's."""
    return (np.arange(256, dtype=np.uint16) << 8).view(np.float16)


_TABLES = {"F8_E4M3": _e4m3(), "F8_E5M2": _e5m2()}


def decoded(codes: np.ndarray, dtype: str) -> np.ndarray:
    """Codes as they are stored, flat → floats that hold the same values.

    Args:
        codes: of the numpy dtype that `FLOATS` or `INTEGERS` has.
        dtype: a key of either.
    """
    if dtype == "BF16":
        return (codes.astype(np.uint32) << 16).view(np.float32)
    if dtype in _TABLES:
        return _TABLES[dtype][codes]
    return codes if dtype in FLOATS else codes.astype(np.float64)
