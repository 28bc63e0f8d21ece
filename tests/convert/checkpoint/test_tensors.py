"""Tensors by reference: read as safetensors reads them, and damaged files are said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from convert.checkpoint.tensors import CHUNK_BYTES, are_finite, read_header, read_safetensors
from convert.errors import InputError

DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=0, max_size=4),
    dtype=st.sampled_from(list(DTYPES)),
    wanted=st.sampled_from([np.float16, np.float32]),
    seed=st.integers(0, 99),
)
def test_values_are_those_that_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    dtype: str,
    wanted: type,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(shape, generator=generator).to(DTYPES[dtype])
    save_file({"other": torch.zeros(3), "x": value}, path)
    tensor = read_header(path)["x"]
    assert (tensor.dtype, tensor.shape) == (dtype, tuple(shape))
    expected = (value if dtype == "F64" else value.float()).numpy().astype(wanted)
    np.testing.assert_array_equal(tensor.read(wanted), expected)


def test_a_tensor_larger_than_a_chunk_arrives_in_order(file: Path) -> None:
    value = torch.arange(CHUNK_BYTES // 4 + 1000, dtype=torch.float32)
    save_file({"x": value}, file)
    tensor = read_header(file)["x"]
    sizes = [len(chunk) for chunk in tensor.chunks(np.float32)]
    assert len(sizes) == 2
    np.testing.assert_array_equal(tensor.read(np.float32), value.numpy())


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_code_of_an_8_bit_float_is_the_value_that_torch_gives_it(
    dtype: str, file: Path
) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(DTYPES[dtype]).float()
    for code in range(256):
        if not expected[code].isfinite():
            codes[code] = 0  # refused: see below
    save_file({"x": codes.view(DTYPES[dtype])}, file)
    found = read_header(file)["x"].read(np.float16)
    np.testing.assert_array_equal(found, expected.where(expected.isfinite(), 0).half().numpy())
    assert (np.signbit(found) == np.signbit(codes.view(DTYPES[dtype]).float().numpy())).all()
    assert np.isfinite(expected.numpy()).sum() == (254 if dtype == "F8_E4M3" else 248)


@pytest.mark.parametrize(
    ("dtype", "code", "said"),
    [("F8_E4M3", 0x7F, "nan"), ("F8_E4M3", 0xFF, "nan"), ("F8_E5M2", 0x7C, "inf"),
     ("F8_E5M2", 0xFC, "-inf"), ("F8_E5M2", 0x7D, "nan")],
)  # fmt: skip
def test_a_code_that_is_not_finite_is_named(dtype: str, code: int, said: str, file: Path) -> None:
    codes = torch.tensor([[0, 1], [code, 2]], dtype=torch.uint8)
    save_file({"w": codes.view(DTYPES[dtype])}, file)
    with pytest.raises(InputError, match=rf"`w`\[1, 0\] is {said}: not a finite"):
        read_header(file)["w"].read(np.float32)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_an_integer_of_its_own_is_read_as_a_number(dtype: torch.dtype, file: Path) -> None:
    save_file({"alpha": torch.tensor(1, dtype=dtype), "one": torch.ones(1, dtype=dtype)}, file)
    header = read_header(file)
    assert header["alpha"].read(np.float32).shape == ()
    assert header["alpha"].read(np.float32) == 1
    assert header["one"].read(np.float16).tolist() == [1]


def test_empty_tensors_are_read(file: Path) -> None:
    shapes = {"v_pred": (0,), "ztsnr": (0,), "x": (0, 3)}
    save_file({k: torch.zeros(shape) for k, shape in shapes.items()} | {"w": torch.ones(2)}, file)
    header = read_header(file)
    assert {k: header[k].read(np.float16).shape for k in shapes} == shapes
    assert header["w"].read(np.float16).tolist() == [1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
def test_a_value_that_is_not_finite_is_named(file: Path, bad: float, dtype: str) -> None:
    value = torch.zeros(5, 7, dtype=DTYPES[dtype])
    value[3, 2] = bad
    save_file({"layer.weight": value}, file)
    with pytest.raises(InputError, match=r"`layer.weight`\[3, 2\] is (nan|-?inf): not a finite"):
        read_header(file)["layer.weight"].read(np.float16)


def test_an_overflow_in_float16_says_so_and_float32_holds_it(file: Path) -> None:
    save_file({"w": torch.tensor([1.0, 70000.0])}, file)
    tensor = read_header(file)["w"]
    with pytest.raises(InputError, match=r"`w`\[1\] is 70000.0, which overflows float16"):
        tensor.read(np.float16)
    assert tensor.read(np.float32)[1] == 70000


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(torch.arange(3), "I64, integers"), (torch.ones(2, 2, dtype=torch.int8), "I8, integers"),
     (torch.zeros(2, dtype=torch.complex64), "C64, a dtype we cannot read")],
)  # fmt: skip
def test_integers_are_refused(value: torch.Tensor, dtype: str, file: Path) -> None:
    save_file({"w": value}, file)
    with pytest.raises(InputError, match=f"dtype {dtype}"):
        read_header(file)["w"].read(np.float16)


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 300])
def test_a_truncated_file_is_refused_from_its_header(file: Path, keep: int) -> None:
    save_file({"a": torch.zeros(64), "b": torch.ones(64)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"x\.safetensors"):
        read_header(file)


def test_a_file_of_another_kind_is_refused(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_header(file)


def test_a_header_that_contradicts_itself_is_refused(file: Path) -> None:
    save_file({"a": torch.zeros(4, 4)}, file)
    file.write_bytes(file.read_bytes().replace(b"[4,4]", b"[4,5]"))
    with pytest.raises(InputError, match=r"tensor `a` of F32\[4, 5\] has 64 bytes"):
        read_header(file)


def write(file: Path, header: bytes, data: int, *, length: int | None = None) -> None:
    size = len(header) if length is None else length
    file.write_bytes(size.to_bytes(8, "little") + header + bytes(data))


def entry(dtype: str, shape: str, begin: int, end: int) -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{begin}, {end}]}}'


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (f'{{"a": {entry("F32", "[2]", 0, 8)}, "b": {entry("F32", "[2]", 4, 12)}}}', "begins at"),
        (f'{{"a": {entry("F32", "[2]", 0, 8)}, "b": {entry("F32", "[1]", 12, 16)}}}', "begins at"),
        (f'{{"a": {entry("F32", "[2]", 0, 8)}, "a": {entry("F32", "[2]", 8, 16)}}}', "twice"),
        (f'{{"a": {entry("F32", "[2]", 0, 8)}}}', "have 8 bytes of data, the file 16"),
        (f'{{"a": {entry("F32", "[8]", 0, 32)}}}', "truncated: tensor `a` ends at"),
        (f'{{"a": {entry("F32", "[4]", 16, 0)}}}', "not between two offsets"),
        (f'{{"a": {entry("F32", "[4]", -16, 0)}}}', "not between two offsets"),
        (f'{{"a": {entry("F32", "[-4]", 0, 16)}}}', "malformed"),
        (f'{{"a": {entry("F32", "[true]", 0, 4)}}}', "malformed"),
        (f'{{"a": {entry("F32", str([1] * 17), 0, 4)}}}', "malformed"),
        (f'{{"a": {entry("F32", str([0, 2**40, 2**40]), 0, 0)}}}', "claims the shape"),
        (f'{{"a": {entry("F8_E4M3", "[3]", 0, 16)}}}', r"F8_E4M3\[3\] has 16 bytes"),
        ('{"a": 3}', "malformed"),
        ("[]", "its header is a list"),
        ("{" * 300, "its header"),
        ('{"__metadata__": 3}', "`__metadata__` is the number 3"),
        ('{"__metadata__": {"a": 3}}', '`__metadata__` gives "a" as the number 3'),
    ],
)
def test_a_bad_header_is_one_error(header: str, problem: str, file: Path) -> None:
    write(file, header.encode(), 0 if "__metadata__" in header else 16)
    with pytest.raises(InputError, match=problem):
        read_header(file)


def test_a_header_larger_than_its_file_is_not_read(file: Path) -> None:
    for length in (1 << 20, 1 << 40, (1 << 64) - 1):
        write(file, b"{}", 16, length=length)
        with pytest.raises(InputError, match=f"claims {length} bytes"):
            read_header(file)


def test_metadata_is_read(file: Path) -> None:
    save_file({"w": torch.ones(2)}, file, {"modelspec.architecture": "x"})
    tensors, metadata = read_safetensors(file)
    assert (list(tensors), metadata) == (["w"], {"modelspec.architecture": "x"})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_infinities_and_nans_of_both_signs_are_seen_among_all_that_is_finite(dtype: type) -> None:
    largest = np.finfo(dtype).max
    values = np.array([0, -0.0, 1, -1, largest, -largest, np.finfo(dtype).tiny], dtype)
    assert are_finite(values)
    assert are_finite(values[::2])
    assert are_finite(values[:0])
    bits = np.dtype(f"u{values.itemsize}")
    nan = np.array([np.nan], dtype).view(bits)
    negative_nan = (nan | bits.type(1 << (8 * values.itemsize - 1))).view(dtype)[0]
    for wrong in (np.inf, -np.inf, np.nan, negative_nan):
        for at in range(len(values)):
            spoilt = values.copy()
            spoilt[at] = wrong
            assert not are_finite(spoilt)
