"""Tensors in PyTorch's pickles (`.ckpt`, `.pt`, `.pth`, `.bin`), by reference; nothing is run.

Since PyTorch 1.6 a file is a zip archive: `data.pkl` says what there is, and `data/KEY` are the
storages that tensors lie in. Before, five pickles stood in a row, and the storages behind them. A
pickle may name what PyTorch's own `weights_only` takes of tensors, and what Lightning and numpy
leave beside them; of that, and of everything else that is no tensor, only the name is kept.
Source: PyTorch `torch/serialization.py`, `torch/_utils.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convert.checkpoint.derived import Strided
from convert.checkpoint.tensors import LARGEST_SIZE, MOST_AXES, StoredTensor, Tensor
from convert.errors import InputError
from convert.files.dtypes import WIDTHS
from convert.files.json_files import reason, shown
from convert.files.pickle_values import LARGEST_PICKLE, LONGEST_KEY, Made, Named, read_pickle
from convert.files.stored_zip import Member, read_members

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
DEEPEST = 8  # dictionaries in each other, among which tensors are looked for
MOST_VALUES = 1 << 16  # in all of them
HINT = "Take the same weights as .safetensors."

STORAGES = {
    "HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32",
    "DoubleStorage": "F64", "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16",
    "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
    "ComplexFloatStorage": "C64", "ComplexDoubleStorage": "C128",
}  # fmt: skip
DTYPES = {
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "uint16": "U16", "uint32": "U32", "uint64": "U64", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "complex64": "C64", "complex128": "C128",
}  # fmt: skip
_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_BUILTINS = (
    "dict", "list", "tuple", "set", "frozenset", "int", "float", "bool", "str", "bytes",
    "bytearray",
)  # fmt: skip
_ALLOWED = {
    *(("torch._utils", name) for name in (*_TENSORS, *_PARAMETERS)),
    *(("torch", name) for name in (*STORAGES, *DTYPES, "Size", "device", "Tensor")),
    ("torch.storage", "UntypedStorage"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ),
    ("argparse", "Namespace"),
    ("typing", "Any"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    *((module, name) for module in ("builtins", "__builtin__") for name in _BUILTINS),
}
# Packages whose objects training leaves in a checkpoint; they stay names.
_PACKAGES = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")


@dataclass(frozen=True)
class Pickled:
    """What a file holds: tensors by their names, and the names of all else."""

    tensors: dict[str, Tensor]
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Storage:
    """Numbers that tensors lie in, `size` of them."""

    dtype: str
    key: str
    size: int
    is_untyped: bool


@dataclass
class _Storages:
    """The storages that a pickle names, and where they lie in the file."""

    path: Path
    length: int  # of a persistent id: before 1.6 it also told of views
    named: dict[str, _Storage] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)

    def load(self, identifier: Any) -> _Storage:
        """The storage that a persistent id means; raises InputError for any other."""
        if not isinstance(identifier, tuple) or len(identifier) != self.length:
            raise _bad(self.path, "has a persistent id that is no storage's")
        what, by, key, location, size = identifier[:5]
        dtype = STORAGES.get(by.name) if isinstance(by, Named) else None
        if (
            what != "storage"
            or dtype is None
            or not isinstance(key, str)
            or not isinstance(location, str)
            or not _is_count(size)
        ):
            raise _bad(self.path, "has a persistent id that is no storage's")
        if any(more is not None for more in identifier[5:]):
            raise _bad(self.path, "has a view of a storage, as PyTorch wrote them before 0.4")
        storage = _Storage(dtype, key, size, by.name == "UntypedStorage")
        if self.named.setdefault(key, storage) != storage:
            raise _bad(self.path, f"tells of storage {shown(key)} in two ways")
        return storage


def read_zip(path: Path) -> Pickled:
    """The tensors of a file that PyTorch 1.6 or newer wrote.

    Raises:
        InputError: another zip archive (says of what), a damaged one, or a pickle that is no
            tensors' or names what they do not need.
    """
    members = read_members(path)
    root = _root(members, path)
    order = members.get(f"{root}byteorder")
    if order is not None and _content(path, order, 16) != b"little":
        raise _bad(path, "is of a big-endian machine")
    storages = _Storages(path, length=5)
    pickle = _content(path, members[f"{root}data.pkl"], LARGEST_PICKLE)
    value, end = read_pickle(pickle, path, allowed=_is_allowed, persistent=storages.load)
    if end != len(pickle):
        raise _bad(path, f"ends at byte {end} of {len(pickle)}")
    for key, storage in storages.named.items():
        member = members.get(f"{root}data/{key}", Member(0, 0))
        if member.size != storage.size * WIDTHS[storage.dtype]:
            what = f"{storage.size} numbers of {storage.dtype}, its member has {member.size} bytes"
            raise _bad(path, f"gives storage {shown(key)} {what}")
        storages.offsets[key] = member.offset
    return _pickled(value, storages)


def _root(members: dict[str, Member], path: Path) -> str:
    """The folder within an archive that `data.pkl` lies in."""
    roots = [name.removesuffix("data.pkl") for name in members]
    roots = [r for r, name in zip(roots, members, strict=True) if f"{r}data.pkl" == name]
    roots = [root for root in roots if not root or root.find("/") == len(root) - 1]
    if len(roots) == 1:
        (root,) = roots
        if f"{root}constants.pkl" in members or any(m.startswith(f"{root}code/") for m in members):
            what = "is a TorchScript program, no file of weights"
            raise InputError(what, where=path, hint="Give the weights that it was made from.")
        return root
    if members and all(name.endswith(".npy") for name in members):
        raise InputError("is a numpy archive (.npz), no file of weights", where=path, hint=HINT)
    held = ", ".join(ascii(name)[1:-1][:60] for name in list(members)[:4]) or "nothing"
    raise InputError(
        f"is a zip archive that PyTorch did not write; it holds {held}",
        where=path,
        hint="If the weights are in it, unpack it and give the file that holds them.",
    )


def _content(path: Path, member: Member, largest: int) -> bytes:
    """A small member's bytes."""
    if member.size > largest:
        raise _bad(path, f"has {member.size} bytes; at most {largest} are read")
    return _read(path, member.offset, member.size)


def _read(path: Path, offset: int, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot be read: {reason(error)}", where=path) from None


def read_legacy(path: Path) -> Pickled:
    """The tensors of a file that PyTorch wrote before 1.6.

    Raises:
        InputError: as `read_zip`.
    """
    data, total = _read(path, 0, LARGEST_PICKLE), path.stat().st_size
    storages = _Storages(path, length=6)
    magic, at = read_pickle(data, path, allowed=_is_allowed)
    if magic != MAGIC:
        raise InputError("is a pickle, but not as PyTorch writes weights", where=path, hint=HINT)
    protocol, at = read_pickle(data, path, start=at)
    system, at = read_pickle(data, path, start=at)
    if protocol != PROTOCOL or not isinstance(system, dict):
        raise _bad(path, "is of an unknown version of PyTorch's format")
    if system.get("little_endian") is not True:
        raise _bad(path, "is of a big-endian machine")
    value, at = read_pickle(data, path, start=at, allowed=_is_allowed, persistent=storages.load)
    keys, at = read_pickle(data, path, start=at)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _bad(path, "lists its storages by what is no list of names")
    if len(set(keys)) != len(keys) or set(keys) != storages.named.keys():
        raise _bad(path, "lists other storages than its tensors lie in")
    for key in keys:  # each behind the number of its elements
        storage = storages.named[key]
        count = int.from_bytes(_read(path, at, 8), "little")
        end = at + 8 + storage.size * WIDTHS[storage.dtype]
        if end > total:
            what = f"truncated: storage {shown(key)} ends at byte {end} of {total}"
            raise InputError(what, where=path, hint="Download the file again.")
        if count != storage.size:
            raise _bad(path, f"gives storage {shown(key)} {storage.size} numbers, its data {count}")
        storages.offsets[key], at = at + 8, end
    if at != total:
        raise _bad(path, f"ends at byte {at} of {total}")
    return _pickled(value, storages)


def _is_allowed(named: Named) -> bool:
    if named.module.partition(".")[0] in _PACKAGES:
        return True
    return (named.module, named.name) in _ALLOWED


def _pickled(value: Any, storages: _Storages) -> Pickled:
    tensors: dict[str, Tensor] = {}
    others: list[str] = []
    for name, item in _items(_unwrapped(value, storages.path), storages.path):
        call = _tensor_call(item)
        if any(letter < " " for letter in name):
            raise _bad(storages.path, f"has a name with control characters: {ascii(name)[:80]}")
        if call is None:
            others.append(name)
        elif name in tensors:
            raise _bad(storages.path, f"has tensor {shown(name)} twice")
        else:
            tensors[name] = _tensor(name, *call, storages)
    if not tensors:
        raise InputError("its pickle holds no tensors", where=storages.path, hint=HINT)
    return Pickled(tensors, tuple(others))


def _unwrapped(value: Any, path: Path) -> dict[Any, Any]:
    """The dictionary of the weights, out of those that training puts around it."""
    for _ in range(DEEPEST):
        if not isinstance(value, dict):
            break
        inner = value.get("state_dict", next(iter(value.values())) if len(value) == 1 else None)
        if not isinstance(inner, dict):
            return value
        value = inner
    what = "a list" if isinstance(value, list | tuple) else "no dictionary of tensors"
    raise InputError(f"its pickle holds {what}; expected are tensors by name", where=path)


def _items(values: dict[Any, Any], path: Path) -> Iterator[tuple[str, Any]]:
    """All values by their names, which dots join where dictionaries lie in each other."""
    waiting: list[tuple[str, dict[Any, Any], int]] = [("", values, 0)]
    count = 0
    while waiting:
        place, inner, depth = waiting.pop()
        for key, value in inner.items():
            count += 1
            if count > MOST_VALUES or depth > DEEPEST:
                raise _bad(path, f"holds more than {MOST_VALUES} values, or nested too deeply")
            if len(place) > LONGEST_KEY:
                raise _bad(path, f"has a name of {len(place)} letters")
            name = f"{place}{key if isinstance(key, str | int) else type(key).__name__}"
            if isinstance(value, dict):
                waiting.append((f"{name}.", value, depth + 1))
            else:
                yield name, value


def _tensor_call(value: Any) -> tuple[str, tuple[Any, ...]] | None:
    """The function of PyTorch that makes a tensor, and its arguments; None for anything else."""
    for _ in range(DEEPEST):
        if not isinstance(value, Made):
            return None
        name, arguments = value.by.name, value.arguments
        if value.by.module == "torch._utils" and name in _TENSORS:
            return name, arguments
        if value.by.module == "torch._utils" and name in _PARAMETERS and arguments:
            value = arguments[0]
        elif name == "_rebuild_from_type_v2" and len(arguments) == 4:
            by, _, inner, _ = arguments
            is_call = isinstance(by, Named) and isinstance(inner, tuple)
            value = Made(by, inner) if is_call else None
        else:
            return None
    return None


_ARGUMENTS = {"_rebuild_tensor": (4,), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}


def _tensor(name: str, function: str, arguments: tuple[Any, ...], storages: _Storages) -> Tensor:
    """A tensor as the arguments of its function place it in a storage."""

    def bad(what: str) -> InputError:
        return _bad(storages.path, f"gives tensor {shown(name)} {what}")

    if len(arguments) not in _ARGUMENTS[function]:
        raise bad(f"{len(arguments)} arguments of {function}")
    storage, start, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage) or not _is_count(start):
        raise bad("no storage")
    if not _are_counts(shape) or not _are_counts(strides) or len(shape) != len(strides):
        raise bad("no shape")
    dtype, extra = storage.dtype, arguments[6:]
    if function == "_rebuild_tensor_v3":
        dtype = DTYPES.get(extra[0].name, "") if isinstance(extra[0], Named) else ""
        extra = extra[1:]
    if any(extra):
        raise bad("a view that negates or conjugates its numbers")
    if not dtype or storage.is_untyped != (function == "_rebuild_tensor_v3"):
        raise bad("no dtype that is known")
    held = storage.size // WIDTHS[dtype] if storage.is_untyped else storage.size
    size = math.prod(shape)
    span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if size else 0
    if start + span > held:
        raise bad(f"elements up to {start + span} of a storage of {held}")
    if size > held or math.prod(n for n in shape if n) >= LARGEST_SIZE:
        raise bad(f"the shape {shown(shape)} on a storage of {held}")
    offset = storages.offsets[storage.key] + start * WIDTHS[dtype]
    whole = StoredTensor(name, dtype, tuple(shape), storages.path, offset)
    if not size or _is_contiguous(shape, strides):
        return whole
    span_of = StoredTensor(name, dtype, (span,), storages.path, offset)
    return Strided(span_of, tuple(shape), tuple(strides), tuple(shape))


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for n, step in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and step != expected:
            return False
        expected *= n
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_SIZE


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= MOST_AXES and all(map(_is_count, values))


def _bad(path: Path, what: str) -> InputError:
    return InputError(f"its pickle {what}", where=path, hint=f"Download the file again. {HINT}")
