"""Files of weights whose bytes are changed at random: each is read, or refused in one sentence.

    python -m tests.support.fuzz_weights --cases 50000

Bits flip, files are cut, bytes are put in, taken out, doubled and mixed with those of another file,
mostly in what describes the tensors and not in their values. Nothing but an `InputError` may come
of it, no warning either, and soon.
"""

from __future__ import annotations

import argparse
import gc
import io
import random
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from convert.files.dtypes import FLOATS

SLOW = 10.0  # seconds of a case; the largest of these files takes a few milliseconds
LARGEST = 1 << 20  # elements of a tensor whose values are read as well
# Bytes that mean something in headers, archives and pickles.
WORDS: tuple[bytes, ...] = (
    b"\0", b"\xff", b"\x80", b"[", b"]", b"{", b"}", b'"', b":", b",", b"-", b"1e999", b"NaN",
    b"null", b"0", b"9" * 20, b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff" * 8, b"\x7f" + b"\xff" * 7,
    b"F8_E4M3", b"F64", b"I64", b"BOOL", b"__metadata__", b"shape", b"data_offsets",
    b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"../", b"/",
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"cbuiltins\ngetattr\n", b"ccopyreg\n_reconstructor\n",
    b"R", b"b", b".", b"(", b"t", b"u", b"s", b"0", b"2", b"Q", b"q\0", b"h\0", b"\x81", b"\x93",
    b"\x94", b"ccollections\nOrderedDict\n", b"ctorch\nHalfStorage\n", b"X\xff\xff\xff\xff",
    b"\x8e" + b"\xff" * 8, b"\x8b\xff\xff\xff\x7f", b"\x95" + b"\xff" * 8,
)  # fmt: skip


@dataclass
class Tally:
    """How the cases ended."""

    read: int = 0
    refused: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0


def make_files(folder: Path) -> dict[str, bytes]:
    """The content of files of every format, by name."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator)
    tensors = {
        "a.weight": weight.half(),
        "a.bias": weight[0].bfloat16(),
        "b.0.weight": weight.double(),
        "position_ids": torch.arange(4)[None],
        "alpha": torch.tensor(4),
        "v_pred": torch.zeros(0),
    }
    codes = {
        "c.weight": weight.to(torch.float8_e4m3fn),
        "c.scale_weight": torch.tensor(0.5),
        "d.weight": weight.to(torch.float8_e5m2),
        "d.weight_scale": torch.tensor([2.0]),
        "d.comfy_quant": torch.tensor(list(b'{"format": "float8_e5m2"}'), dtype=torch.uint8),
        "scaled_fp8": torch.zeros(0),
    }
    linear = torch.nn.Linear(4, 6)
    training = {
        "state_dict": {**linear.state_dict(), "t": weight.t(), "tied": weight, "rows": weight[1:3]},
        "epoch": 3,
        "optimizer_states": [torch.optim.SGD(linear.parameters()).state_dict()],
        "note": np.float32(2),
    }
    notes = {"modelspec.architecture": "stable-diffusion-xl-v1-base", "other": "{}"}
    save_file(tensors, folder / "plain.safetensors", notes)
    layers = '{"layers": {"d": {"format": "float8_e5m2"}}}'
    save_file(codes, folder / "scaled.safetensors", {"_quantization_metadata": layers})
    torch.save({**tensors, **codes}, folder / "zip.bin")
    torch.save(training, folder / "zip.ckpt")
    torch.save(training, folder / "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(tensors, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def spans(data: bytes) -> list[tuple[int, int]]:
    """Where a file describes its tensors, and all of it."""
    if data.startswith(b"PK"):
        begin, end = data.index(b"\x80\x02"), data.index(b"PK\x07\x08")
        return [(begin, end), (begin, end), (data.index(b"PK\1\2"), len(data)), (0, len(data))]
    if data.startswith(b"\x80"):
        end = min(len(data), 1500)
        return [(0, end), (0, end), (0, len(data))]
    end = 8 + int.from_bytes(data[:8], "little")
    return [(8, end), (8, end), (8, end), (0, len(data))]


def spoilt(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """The file with one to four changes; of an archive, half the time of its pickle alone."""
    if data.startswith(b"PK") and rng.random() < 0.5:
        return _repacked(data, lambda pickle: _changed(pickle, [(0, len(pickle))], others, rng))
    return _changed(data, spans(data), others, rng)


def _changed(
    data: bytes, places: Sequence[tuple[int, int]], others: Sequence[bytes], rng: random.Random
) -> bytes:
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        begin, end = rng.choice(places)
        at = min(rng.randrange(begin, end), len(content))
        change = rng.choice(CHANGES)
        change(content, at, others, rng)
    return bytes(content)


def _repacked(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The archive with another pickle, whose directory fits it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as new:
        for name in archive.namelist():
            content = archive.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return stream.getvalue()


def _flip(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    if at < len(content):
        content[at] ^= 1 << rng.randrange(8)


def _byte(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    content[at : at + 1] = bytes([rng.randrange(256)])


def _word(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    word = rng.choice(WORDS)
    content[at : at + (len(word) if rng.random() < 0.5 else 0)] = word


def _number(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    value = rng.choice((0, 1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
    size = rng.choice((2, 4, 8))
    content[at : at + size] = struct.pack("<Q", value)[:size]


def _digits(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    digits = [i for i in range(at, min(at + 200, len(content))) if 48 <= content[i] < 58]
    if digits:
        i = rng.choice(digits)
        content[i : i + 1] = rng.choice((b"0", b"1", b"7", b"99", b"-1", b"1" * 19, b"1.5", b""))


def _cut(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    if rng.random() < 0.3:
        del content[at:]
    else:
        del content[at : at + rng.choice((1, 2, 4, 8, 16, 64))]


def _double(content: bytearray, at: int, _: Sequence[bytes], rng: random.Random) -> None:
    piece = content[at : at + rng.choice((1, 4, 16, 64, 256))]
    content[at:at] = piece * rng.choice((1, 1, 2, 50))


def _splice(content: bytearray, at: int, others: Sequence[bytes], rng: random.Random) -> None:
    other = rng.choice(others)
    begin = rng.randrange(len(other))
    piece = other[begin : begin + rng.choice((4, 16, 64, 512, len(other)))]
    content[at : at + (len(piece) if rng.random() < 0.5 else 0)] = piece


CHANGES: tuple[Callable[[bytearray, int, Sequence[bytes], random.Random], None], ...] = (
    _flip, _flip, _byte, _word, _word, _number, _digits, _cut, _double, _splice,
)  # fmt: skip


def check(file: Path, what: str, tally: Tally) -> None:
    """Read a file and its values, and note what is wrong with how that ends."""
    start = time.process_time()
    try:
        found = read_weights(file)
        for tensor in found.tensors.values():
            if tensor.size <= LARGEST and (tensor.dtype in FLOATS or tensor.size == 1):
                tensor.read(np.float32)
        tally.read += 1
        tally.formats[found.format] += 1
    except InputError as error:
        tally.refused += 1
        tally.problems[" ".join(error.problem.split()[:4])] += 1
        if "\n" in error.problem or len(error.problem) > 3000 or error.where is None:
            tally.faults.append(
                f"{what}: an error that is not one sentence: {error.problem[:200]!r}"
            )
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        tally.faults.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    took = time.process_time() - start
    tally.slowest = max(tally.slowest, took)
    if took > SLOW:
        tally.faults.append(f"{what}: {took:.0f} s")


def fuzz(folder: Path, cases: int, seed: int) -> Tally:
    """That many cases, the same for the same seed.

    Args:
        folder: an empty folder, for the files.
    """
    rng, tally = random.Random(seed), Tally()
    gc.collect()
    gc.freeze()  # the libraries' objects are not looked through again for every few cases
    made = folder / "made"
    made.mkdir()
    files = make_files(made)
    contents = list(files.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(cases):
            name = rng.choice(list(files))
            file = folder / f"spoilt_{number}"  # a new one: what is written again is flushed
            file.write_bytes(spoilt(files[name], contents, rng))
            check(file, f"case {number} of seed {seed}, from {name}", tally)
            file.unlink()
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-weights-") as folder:
        tally = fuzz(Path(folder), options.cases, options.seed)
    print(f"{options.cases} cases in {time.monotonic() - start:.0f} s: ", end="")
    print(f"{tally.read} read ({dict(tally.formats)}), {tally.refused} refused, ", end="")
    print(f"{len(tally.faults)} faults; the slowest took {tally.slowest:.2f} s")
    for problem, count in tally.problems.most_common(25):
        print(f"{count:7} {problem}")
    for fault in tally.faults[:50]:
        print(fault)
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
