"""Pickles of weights: read as torch reads them, and nothing of them is run."""

from __future__ import annotations

import collections
import contextlib
import io
import pickle
import stat
import struct
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from convert.checkpoint.derived import Strided
from convert.checkpoint.weights import read_weights
from convert.errors import InputError
from tests.support.torch_files import (
    MAGIC,
    NUMBERS,
    call,
    mapping,
    name,
    number,
    row,
    storage,
    tensor,
    text,
    whole,
    write_archive,
    write_legacy,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
NEW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16)  # torch.save has no old way for them


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.ckpt"


# ---- what torch writes ----


@pytest.mark.parametrize("is_zip", [True, False])
def test_files_of_torch_equal_the_safetensors_file_of_the_same_values(
    is_zip: bool, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for dtype in (*FLOATS, *(NEW if is_zip else ())):
        for shape in ((), (1,), (5, 7), (2, 3, 4, 1), (0,)):
            value = torch.randn(shape, generator=generator) * 9
            tensors[f"{dtype}{list(shape)}"] = value.abs().to(dtype)
    tensors |= {f"{dtype}": torch.tensor(1, dtype=dtype) for dtype in INTEGERS}
    save_file(tensors, tmp_path / "x.safetensors")
    torch.save(tensors, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip)
    expected = read_weights(tmp_path / "x.safetensors").tensors
    found = read_weights(tmp_path / "x.pt")
    assert found.format == ("zip pickle" if is_zip else "legacy pickle")
    assert found.tensors.keys() == expected.keys()
    for key, one in expected.items():
        other = found.tensors[key]
        assert (other.name, other.dtype, other.shape) == (key, one.dtype, one.shape)
        if one.dtype != "U16" or one.size == 1:
            np.testing.assert_array_equal(other.read(np.float32), one.read(np.float32))


@pytest.mark.parametrize("is_zip", [True, False])
def test_views_and_tied_tensors_are_their_elements(is_zip: bool, file: Path) -> None:
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).half()
    odd = {
        "transposed": base.t(),
        "columns": base[:, 2:5],
        "every second": base[::2],
        "permuted": torch.randn(4, 5, 6).permute(2, 0, 1).half(),
    }
    plain = {"base": base, "tied": base, "rows": base[2:4], "channels": base.reshape(1, 6, 1, 8)}
    torch.save({**plain, **odd}, file, _use_new_zipfile_serialization=is_zip)
    found = read_weights(file).tensors
    for key, value in {**plain, **odd}.items():
        np.testing.assert_array_equal(found[key].read(np.float16), value.numpy())
        assert isinstance(found[key], Strided) == (key in odd)
    flat = found["transposed"].reshape((2, 24)).read(np.float32)
    np.testing.assert_array_equal(flat, base.t().reshape(2, 24).float().numpy())
    assert found["base"].key({file: "0"}) == found["tied"].key({file: "0"})
    assert found["transposed"].key({file: "0"}) != found["base"].key({file: "0"})


class ModelCheckpoint:
    """As Lightning leaves one: an object of a package that is not installed."""

    __module__ = "pytorch_lightning.callbacks.model_checkpoint"
    __qualname__ = "ModelCheckpoint"

    def __init__(self) -> None:
        self.best = Path("x.ckpt")


@pytest.mark.parametrize("is_zip", [True, False])
def test_what_training_leaves_beside_the_weights_is_passed_over(
    is_zip: bool, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, part, module)
    linear = torch.nn.Linear(3, 2)
    state = linear.state_dict()
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    state["note"] = np.float64(3)
    document = {
        "epoch": 3,
        "state_dict": state,
        "callbacks": {ModelCheckpoint: ModelCheckpoint(), "best": np.float32(0.5)},
        "optimizer_states": [torch.optim.Adam(linear.parameters()).state_dict()],
        "array": np.arange(5.0),
        "set": {1, 2},
        "counts": collections.Counter("aab"),
    }
    torch.save(document, file, _use_new_zipfile_serialization=is_zip)
    found = read_weights(file)
    assert set(found.tensors) == {"weight", "bias", "parameter"}
    assert found.others == ("note",)
    np.testing.assert_array_equal(
        found.tensors["weight"].read(np.float32), linear.weight.detach().numpy()
    )


def test_dictionaries_within_are_joined_by_dots(file: Path) -> None:
    document = {"string_to_param": {"*": torch.ones(2, 3)}, "name": "x", "step": 4}
    torch.save(document, file)
    found = read_weights(file)
    assert list(found.tensors) == ["string_to_param.*"]
    assert set(found.others) == {"name", "step"}


# ---- what runs code, in Python's own unpickler ----

Payload = Callable[[str], bytes]  # of the file that it would make


def python(trace: str) -> str:
    return f"open({trace!r}, 'w').close()"


def ran(trace: str) -> bytes:
    """A call that makes a file."""
    return call(name("builtins", "exec"), text(python(trace)))


PAYLOADS: dict[str, tuple[Payload, str]] = {
    "os.system": (lambda t: call(name("os", "system"), text(f"touch '{t}'")), "os.system"),
    "posix.system": (lambda t: call(name("posix", "system"), text(f"touch '{t}'")), "posix"),
    "eval": (lambda t: call(name("builtins", "eval"), text(python(t))), "builtins.eval"),
    "exec": (ran, "builtins.exec"),
    "of Python 2": (
        lambda t: call(name("__builtin__", "eval"), text(python(t))),
        "__builtin__.eval",
    ),
    "subprocess": (
        lambda t: call(name("subprocess", "call"), b"](" + text("touch") + text(t) + b"e"),
        "subprocess.call",
    ),
    "nested": (
        lambda t: mapping({"state_dict": mapping({"x": b"](" + ran(t) + b"e", "w": tensor()})}),
        "builtins.exec",
    ),
    "in place of a storage": (
        lambda t: mapping({"w": tensor(ran(t))}),
        "builtins.exec",
    ),
    "within a persistent id": (
        lambda t: mapping({"w": tensor(storage(kind=ran(t)))}),
        "builtins.exec",
    ),
    "a storage's reduce": (
        lambda t: mapping(
            {"w": tensor(call(name("torch.storage", "_load_from_bytes"), pickled(ran(t))))}
        ),
        "torch.storage._load_from_bytes",
    ),
    "copyreg": (
        lambda t: mapping(
            {"x": call(name("copyreg", "_reconstructor"), name("builtins", "object"), ran(t), b"N")}
        ),
        "copyreg._reconstructor",
    ),
    "getattr": (
        lambda t: call(
            call(name("builtins", "getattr"), name("os", "path"), text("os")), text("x")
        ),
        "builtins.getattr",
    ),
    "a chain of attributes": (
        lambda t: stack_global("os", "path.os.system") + row(text(f"touch '{t}'")) + b"R",
        "os.path.os.system",
    ),
    "a chain within what is allowed": (
        lambda t: stack_global("collections", "abc.sys.modules.get") + row(text("os")) + b"R",
        "collections.abc.sys.modules.get",
    ),
    "a chain within a package": (
        lambda t: stack_global("pytorch_lightning", "os.system") + row(text("touch x")) + b"R",
        "pytorch_lightning.os.system",
    ),
    "an instance": (
        lambda t: b"(" + text(python(t)) + b"ibuiltins\nexec\n",
        "builtins.exec",
    ),
    "an object": (lambda t: b"(" + name("builtins", "exec") + text(python(t)) + b"o", "exec"),
    "a state": (
        lambda t: name("builtins", "exec") + mapping({"__setstate__": text(python(t))}) + b"b",
        "builtins.exec",
    ),
    "as a parameter": (
        lambda t: mapping(
            {"w": call(name("torch._utils", "_rebuild_parameter"), ran(t), b"\x89", b"}")}
        ),
        "builtins.exec",
    ),
    "as a key": (lambda t: b"}(" + ran(t) + tensor() + b"u", "builtins.exec"),
    "dropped again": (lambda t: ran(t) + b"0" + mapping({"w": tensor()}), "builtins.exec"),
    "runpy": (lambda t: call(name("runpy", "_run_code"), text(python(t)), b"}"), "runpy"),
}


def stack_global(module: str, attribute: str) -> bytes:
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93"


def pickled(value: bytes) -> bytes:
    data = whole(value)
    return b"B" + struct.pack("<I", len(data)) + data


LAYOUTS: dict[str, Callable[[Path, bytes], Path]] = {
    "zip": lambda path, value: write_archive(path, whole(value), {"0": NUMBERS}),
    "legacy": lambda path, value: write_legacy(path, whole(value), {"0": NUMBERS}),
    "bare": lambda path, value: (path.write_bytes(whole(value)), path)[1],
    "magic": lambda path, value: write_legacy(
        path, b"", system=pickle.dumps({"little_endian": True}, 2)[:-1] + b"0" + value + b"."
    ),
    "keys": lambda path, value: write_legacy(
        path, whole(mapping({"w": tensor()})), {"0": NUMBERS}, keys=whole(value)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_pickle_that_runs_code_is_refused_by_the_name_of_what_it_calls(
    payload: str, layout: str, file: Path
) -> None:
    trace = file.with_name("ran")
    make, named = PAYLOADS[payload]
    LAYOUTS[layout](file, make(str(trace)))
    with pytest.raises(InputError, match=r"its pickle (names|has a persistent)") as error:
        read_weights(file)
    if layout in ("zip", "legacy"):  # elsewhere nothing may be named, or no storage be
        assert named in error.value.problem
    assert not trace.exists()


# Those that do harm at once; the others are steps on the way to it.
RUNNING = set(PAYLOADS) - {
    "getattr", "a chain within what is allowed", "a chain within a package", "a storage's reduce",
    "a state", "runpy",
}  # fmt: skip


@pytest.mark.parametrize("payload", sorted(RUNNING))
def test_the_payloads_do_run_in_an_unpickler_that_calls(payload: str, tmp_path: Path) -> None:
    class Careless(pickle.Unpickler):
        def persistent_load(self, identifier: Any) -> Any:
            return torch.ones(4).untyped_storage()

    trace = tmp_path / "ran"
    with contextlib.suppress(Exception):
        Careless(io.BytesIO(whole(PAYLOADS[payload][0](str(trace))))).load()
    assert trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_that_reduces_to_a_call_is_refused_in_every_protocol(
    protocol: int, file: Path
) -> None:
    trace = file.with_name("ran")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (python(str(trace)),)

    data = pickle.dumps({"w": Evil()}, protocol)
    for write in (lambda: file.write_bytes(data), lambda: write_archive(file, data)):
        write()
        with pytest.raises(InputError):
            read_weights(file)
    assert not trace.exists()
    with pytest.raises(InputError, match=r"names `(builtins|__builtin__)\.exec`"):
        read_weights(write_archive(file, data))


def test_a_registered_extension_is_refused(file: Path) -> None:
    write_archive(file, whole(b"\x82\x01" + row(text("x")) + b"R"))
    with pytest.raises(InputError, match="opcode EXT1"):
        read_weights(file)


def test_a_second_pickle_behind_the_first_is_refused(file: Path) -> None:
    good = whole(mapping({"w": tensor()}))
    write_archive(file, good + whole(ran(str(file.with_name("ran")))), {"0": NUMBERS})
    with pytest.raises(InputError, match="ends at byte"):
        read_weights(file)


# ---- what lies ----

FLOAT = name("torch", "FloatStorage")
LIES: dict[str, bytes] = {
    "more elements": storage(count=5),
    "a huge count": storage(count=2**62),
    "a negative count": storage(count=-1),
    "no member": storage(key="9"),
    "a path": storage(key="../byteorder"),
    "an absolute path": storage(key="/etc/passwd"),
    "another dtype": storage(kind=name("torch", "HalfStorage")),
    "no storage class": storage(kind=name("collections", "OrderedDict")),
    "a text for a class": storage(kind=text("FloatStorage")),
    "a text for a count": row(text("storage"), FLOAT, text("0"), text("cpu"), text("4")) + b"Q",
    "a truth for a count": row(text("storage"), FLOAT, text("0"), text("cpu"), b"\x88") + b"Q",
    "another kind": row(text("module"), FLOAT, text("0"), text("cpu"), number(4)) + b"Q",
    "too short": row(text("storage"), FLOAT, text("0")) + b"Q",
    "too long": storage("0", 4, None, text("x"), text("y")),
    "a list": b"](" + text("storage") + FLOAT + text("0") + text("cpu") + number(4) + b"eQ",
    "a text": text("storage") + b"Q",
}


@pytest.mark.parametrize("layout", ["zip", "legacy"])
@pytest.mark.parametrize("lie", LIES)
def test_a_persistent_id_that_lies_is_refused(lie: str, layout: str, file: Path) -> None:
    LAYOUTS[layout](file, mapping({"w": tensor(LIES[lie])}))
    with pytest.raises(InputError, match="its pickle"):
        read_weights(file)


TENSORS: dict[str, tuple[bytes, str]] = {
    "behind its storage": (tensor(start=1), "up to 5 of a storage of 4"),
    "too large": (tensor(shape=(2, 3), strides=(3, 1)), "up to 6 of a storage of 4"),
    "too wide a stride": (tensor(shape=(2, 2), strides=(3, 1)), "up to 5"),
    "a negative stride": (tensor(start=3, strides=(-1,)), "no shape"),
    "a negative start": (tensor(start=-1), "no storage"),
    "an expanded one": (tensor(shape=(10**6, 10**6), strides=(0, 0)), "on a storage of 4"),
    "an empty one of any size": (tensor(shape=(0, 2**59, 2**59), strides=(1, 1, 1)), "the shape"),
    "strides missing": (tensor(shape=(2, 2)), "no shape"),
    "too many axes": (tensor(shape=(1,) * 17, strides=(1,) * 17), "no shape"),
    "a huge axis": (tensor(shape=(2**61,), strides=(1,)), "no shape"),
    "of no storage": (tensor(text("0")), "no storage"),
    "few arguments": (call(name("torch._utils", "_rebuild_tensor_v2"), storage()), "1 arguments"),
}


@pytest.mark.parametrize("lie", TENSORS)
def test_a_tensor_outside_of_its_storage_is_refused(lie: str, file: Path) -> None:
    value, problem = TENSORS[lie]
    write_archive(file, whole(mapping({"w": value})), {"0": NUMBERS})
    with pytest.raises(InputError, match=problem):
        read_weights(file)


def test_a_view_that_negates_is_refused(file: Path) -> None:
    arguments = tensor()[:-2] + mapping({"neg": b"\x88"}) + b"tR"
    write_archive(file, whole(mapping({"w": arguments})), {"0": NUMBERS})
    with pytest.raises(InputError, match="negates or conjugates"):
        read_weights(file)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (mapping({}), "holds no tensors"),
        (mapping({"a": number(3)}), "holds no tensors"),
        (b"](" + tensor() + b"e", "holds a list"),
        (tensor(), "holds no dictionary"),
        (b"}(" + text("w") + tensor() + text("w") + tensor() + b"u", "the key 'w' twice"),
        (mapping({"a.b": tensor(), "a": mapping({"b": tensor()}), "c": tensor()}), "twice"),
        (mapping({"a\nb": tensor()}), "control characters"),
        (mapping({"a" * 2000: tensor()}), "a key of 2000 letters"),
        (mapping({"w": tensor()})[:-1], "does not end with one value"),
        (b"a", "takes values that are not there"),
        (b"0", "takes values that are not there"),
        (b"(0" + mapping({"w": tensor()}) + b"(", "does not end with one value"),
        (b"h\x07", "entry 7 of its memo"),
        (number(4) + b")R", "calls what is no function"),
        (b"]" + number(4) + number(4) + b"s", "sets an item"),
        (number(4) + number(4) + b"a", "appends to what is no list"),
        (b"]" + number(4) + b"b", "gives a state"),
        (b"Pabc\n", "opcode PERSID"),
        (b"\x8a\xff" + b"\x01" * 255, "an integer of 2033 bits"),
        (b"}" + text("state_dict") + b"\x8c\x00\x94", "is cut or no pickle|does not end"),
    ],
)
def test_a_pickle_of_another_kind_is_one_error(value: bytes, problem: str, file: Path) -> None:
    write_archive(file, whole(value), {"0": NUMBERS})
    with pytest.raises(InputError, match=problem):
        read_weights(file)


def cyclic() -> bytes:
    return b"}q\x00" + text("state_dict") + b"h\x00s"


DEEP: dict[str, bytes] = {
    "tuples": b")" + b"\x85" * 300_000,
    "tuples as a key": b"}" + b")" + b"\x85" * 300_000 + b"Ns",
    "lists": b"]" * 200_000 + b"a" * 199_999,
    "dictionaries": (b"}" + text("a")) * 100_000 + b"N" + b"s" * 100_000,
    "calls": name("collections", "Counter") + b"q\x000"
    + b"h\x00" * 150_000 + b")R" + b"\x85R" * 149_999,
    "too many": b"N0" * 700_000,
    "marks": b"(" * 300_000,
    "doubled at every level": b"}q\x00" + b"".join(
        b"}(" + text("a") + b"h%c" % i + text("b") + b"h%c" % i + b"uq%c" % (i + 1)
        for i in range(60)
    ),
    "a list of pairs, many times": name("collections", "OrderedDict") + b"q\x000]q\x01("
    + b"".join(row(number(i), b"N") for i in range(9000)) + b"e0" + b"h\x00h\x01\x85R0" * 9000,
    "itself": cyclic(),
    "itself among others": mapping({"a": tensor(), "b": b"}q\x00" + text("x") + b"h\x00s"}),
}  # fmt: skip


@pytest.mark.parametrize("shape", DEEP)
def test_a_deep_or_endless_pickle_ends_soon_and_in_one_error(shape: str, file: Path) -> None:
    write_archive(file, whole(DEEP[shape]), {"0": NUMBERS})
    start = time.process_time()
    with pytest.raises(InputError):
        read_weights(file)
    assert time.process_time() - start < 20  # a hang is hours; a slow machine is not one


def test_a_pickle_of_many_bytes_is_not_read(file: Path) -> None:
    write_archive(file, whole(b"B" + struct.pack("<I", 17 << 20) + bytes(17 << 20)))
    with pytest.raises(InputError, match="at most 16777216 are read"):
        read_weights(file)


# ---- archives ----


def link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("archive/data/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(info, "/etc/passwd")


def compressed(archive: zipfile.ZipFile) -> None:
    archive.writestr("archive/data/1", bytes(10**7), zipfile.ZIP_DEFLATED)


ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile], Any], str]] = {
    "a compressed member": (compressed, "the compressed member 'archive/data/1'"),
    "an absolute path": (lambda z: z.writestr("/etc/x", b""), "leads out of the archive"),
    "a parent path": (lambda z: z.writestr("archive/../../x", b""), "leads out of the archive"),
    "a path of Windows": (lambda z: z.writestr("archive\\..\\x", b""), "leads out"),
    "a drive": (lambda z: z.writestr("C:x", b""), "leads out of the archive"),
    "a link": (link, "holds the link 'archive/data/link'"),
    "a member twice": (lambda z: z.writestr("archive/data/0", NUMBERS), "'archive/data/0' twice"),
    "two pickles": (lambda z: z.writestr("other/data.pkl", b""), "PyTorch did not write"),
    "a program": (lambda z: z.writestr("archive/code/x.py", b""), "a TorchScript program"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_torch_would_not_write_is_refused(kind: str, file: Path) -> None:
    change, problem = ARCHIVES[kind]
    write_archive(file, whole(mapping({"w": tensor()})), {"0": NUMBERS}, change)
    with pytest.raises(InputError, match=problem):
        read_weights(file)


def test_an_archive_behind_another_is_refused(file: Path) -> None:
    """Readers differ in which of the two they see."""
    one = write_archive(file, whole(mapping({"w": tensor()})), {"0": NUMBERS}).read_bytes()
    file.write_bytes(one + one)
    with pytest.raises(InputError, match="does not begin where the file does"):
        read_weights(file)


def test_folders_in_an_archive_are_passed_over(file: Path) -> None:
    value = whole(mapping({"w": tensor()}))
    write_archive(file, value, {"0": NUMBERS}, lambda z: z.writestr("archive/data/", b""))
    assert read_weights(file).tensors["w"].read(np.float32).tolist() == [1, 2, 3, 4]


def test_an_archive_without_a_folder_of_its_own_is_read(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", whole(mapping({"w": tensor()})))
        archive.writestr("data/0", NUMBERS)
    assert read_weights(file).tensors["w"].read(np.float32).tolist() == [1, 2, 3, 4]


def test_a_directory_that_promises_more_than_the_file_has_is_refused(file: Path) -> None:
    write_archive(file, whole(mapping({"w": tensor()})), {"0": NUMBERS})
    data = bytearray(file.read_bytes())
    at = data.rindex(b"PK\x01\x02")  # of the last member, the storage
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    file.write_bytes(data)
    with pytest.raises(InputError, match="gives member 'archive/data/0' 1073741824 bytes"):
        read_weights(file)


def test_members_that_share_their_bytes_are_refused(file: Path) -> None:
    write_archive(file, whole(mapping({"w": tensor()})), {"0": NUMBERS, "1": NUMBERS})
    data = bytearray(file.read_bytes())
    last = data.rindex(b"PK\x01\x02")
    first = data.rindex(b"PK\x01\x02", 0, last)
    data[last + 42 : last + 46] = data[first + 42 : first + 46]  # where its header is
    file.write_bytes(data)
    with pytest.raises(InputError, match="no header of member 'archive/data/1'"):
        read_weights(file)


def test_a_large_file_is_read_where_it_lies(file: Path) -> None:
    """Beyond 4 GiB a directory has other fields (zip64); the file is a hole but for its end."""
    far = (4 << 30) + 64
    data = whole(mapping({"w": tensor(), "far": tensor(storage(key="1"))}))
    with file.open("wb") as raw, zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        archive.writestr("archive/data/0", NUMBERS)
        raw.truncate(far)
        raw.seek(far)
        archive.start_dir = far
        archive.writestr("archive/data/1", struct.pack("<4f", 5, 6, 7, 8))
    found = read_weights(file).tensors
    assert found["far"].read(np.float32).tolist() == [5, 6, 7, 8]
    assert torch.load(file, weights_only=True, mmap=True)["far"].tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("order", [b"big", b"BIG\0", b""])
def test_another_byte_order_is_refused(order: bytes, file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", whole(mapping({"w": tensor()})))
        archive.writestr("archive/byteorder", order)
        archive.writestr("archive/data/0", NUMBERS)
    with pytest.raises(InputError, match="big-endian"):
        read_weights(file)


# ---- the old layout ----


def test_the_old_layout_is_checked_against_its_file(file: Path) -> None:
    old = storage("0", 4, None, b"N")
    good = whole(mapping({"w": tensor(old)}))
    write_legacy(file, good, {"0": NUMBERS})
    assert read_weights(file).tensors["w"].read(np.float32).tolist() == [1, 2, 3, 4]
    data = file.read_bytes()
    changes = {
        "ends at byte": data + b"\0",
        "truncated: storage": data[:-1],
        "its data 5": data.replace(struct.pack("<q", 4) + NUMBERS, struct.pack("<q", 5) + NUMBERS),
        "is a pickle, but not as PyTorch": data.replace(
            pickle.dumps(MAGIC, 2), pickle.dumps(MAGIC + 1, 2)
        ),
    }
    for problem, content in changes.items():
        file.write_bytes(content)
        with pytest.raises(InputError, match=problem):
            read_weights(file)
    for options, problem in (
        ({"system": pickle.dumps({"little_endian": False}, 2)}, "big-endian"),
        ({"system": pickle.dumps([], 2)}, "unknown version"),
        ({"keys": pickle.dumps(["0", "0"], 2)}, "other storages"),
        ({"keys": pickle.dumps(["1"], 2)}, "other storages"),
        ({"keys": pickle.dumps(3, 2)}, "no list of names"),
    ):
        write_legacy(file, good, {"0": NUMBERS}, **options)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=problem):
            read_weights(file)
    view = storage("0", 4, None, row(text("1"), number(0), number(2)))
    write_legacy(file, whole(mapping({"w": tensor(view)})), {"0": NUMBERS})
    with pytest.raises(InputError, match="a view of a storage"):
        read_weights(file)
