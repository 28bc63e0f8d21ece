"""The peer engine: Apple's networks, our interface, and clear words where it cannot."""

from __future__ import annotations

import enum
import logging
import math
import sys
import types
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.networks.build import build_network
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import Description
from convert.peer.engine import attention_in_effect, convert_component, convert_job
from convert.peer.networks import unet
from convert.plan.engines import INSTALL
from convert.plan.plan import Job
from convert.toy.random_checkpoint import SMALL, write_checkpoint
from convert.values import FORMATS, Resolution
from convert.weights.compress import Compression
from tests.support.checkpoints import edit_checkpoint
from tests.support.packages import write_package
from verify.artifact.inspect import ModelFacts, inspect_functions
from verify.mil import load_program
from verify.question import Question
from verify.run import verify
from verify.runtime.evaluator import Evaluator

ct = pytest.importorskip("coremltools")

APPLE = "python_coreml_stable_diffusion"
TINY = replace(
    SMALL,
    unet={
        **SMALL.unet,
        "block_out_channels": [32, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [2, 2],
        "transformer_layers_per_block": [1, 1],
        "layers_per_block": 1,
    },
    text_encoder={**SMALL.text_encoder, "num_hidden_layers": 2},
    vae={**SMALL.vae, "block_out_channels": [32, 32]}
    | {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("apple") / "tiny"
    write_checkpoint(folder, TINY, words=["cat"])
    return open_checkpoint(folder)


def describe(component: str) -> Description:
    spec = COMPONENTS[component]
    return Description("short", "who", "licence", "1", *spec.texts, {"key": "value"})


def both(
    checkpoint: Checkpoint,
    component: str,
    folder: Path,
    *,
    attention: str = "original",
    dtype: type[np.floating] = np.float16,
) -> tuple[Path, Path]:
    """The component's packages: Apple's and ours."""
    apple, native = folder / "apple.mlpackage", folder / "native.mlpackage"
    size = Resolution(16, 16)
    convert_component(
        checkpoint,
        component,
        resolution=size,
        attention=attention,
        out=apple,
        deployment="macOS14",
        dtype=dtype,
        description=describe(component),
    )
    network = build_network(
        checkpoint,
        component,
        resolution=size,
        attention=attention,
        dtype=dtype,
        deployment="macOS14",
    )
    write_package(native, network, describe(component), format=FORMATS["macOS14"])
    return apple, native


def same_interface(apple: Path, native: Path) -> tuple[ModelFacts, ModelFacts]:
    (a,), (n,) = inspect_functions(apple), inspect_functions(native)
    assert a.inputs == n.inputs
    assert sorted(a.outputs, key=lambda f: f.name) == sorted(n.outputs, key=lambda f: f.name)
    assert (a.specification_version, a.opset) == (n.specification_version, n.opset)
    assert (a.component, a.attention, a.author, a.license) == (
        n.component,
        n.attention,
        n.author,
        n.license,
    )
    assert a.user_defined["key"] == "value"
    assert not any("date" in key for key in a.user_defined)
    return a, n


def snr(candidate: Tensor, reference: Tensor) -> float:
    error = (candidate.double() - reference.double()).square().sum()
    signal = reference.double().square().sum()
    return float("inf") if not error else float(10 * (signal / error).log10())


def outputs(package: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    return Evaluator(package).run(inputs)


def test_text_encoder_is_ours_in_interface_and_value_and_nothing_is_said(
    checkpoint: Checkpoint, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    apple, native = both(checkpoint, "text_encoder_2", tmp_path)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["apple.mlpackage", "native.mlpackage"]
    same_interface(apple, native)
    words = checkpoint.part("text_encoder_2").config["vocab_size"]
    ids = np.random.default_rng(0).integers(0, words, (1, 77)).astype(np.float32)
    a, n = (outputs(package, {"input_ids": ids}) for package in (apple, native))
    for name in n:
        assert snr(a[name], n[name]) > 60, name
    floats = [c.array() for _, c in load_program(apple).constants() if c.type.dtype == "fp16"]
    assert all(np.isfinite(values).all() for values in floats), "the mask is finite"


def test_vae_is_ours_in_interface_and_value(checkpoint: Checkpoint, tmp_path: Path) -> None:
    apple, native = both(checkpoint, "vae_encoder", tmp_path, dtype=np.float32)
    a, n = same_interface(apple, native)
    assert a.ops == n.ops
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
    left, right = (outputs(package, {"x": x}) for package in (apple, native))
    assert snr(left["latent"], right["latent"]) > 90


@pytest.mark.parametrize("attention", ["original", "split_einsum"])
def test_unet_has_our_interface_and_ops_and_nearly_our_values(
    checkpoint: Checkpoint, tmp_path: Path, attention: str
) -> None:
    pytest.importorskip(
        APPLE, reason="Apple's converter is not installed: its UNet was not compared with ours"
    )
    apple, native = both(checkpoint, "unet", tmp_path, attention=attention)
    a, n = same_interface(apple, native)
    assert a.attention == attention
    # Ours computes the sinusoidal embeddings in float32 and orders sine and cosine at once.
    differ = {op for op in a.ops.keys() | n.ops.keys() if a.ops.get(op) != n.ops.get(op)}
    assert differ <= {"cast", "concat", "slice_by_index"}
    rng = np.random.default_rng(0)
    inputs = {f.name: rng.standard_normal(f.shape).astype(np.float16) for f in a.inputs}
    inputs["timestep"][:] = 37
    inputs["time_ids"][:] = [16, 16, 0, 0, 16, 16]
    left, right = (outputs(package, inputs)["noise_pred"] for package in (apple, native))
    assert snr(left, right) > 35


def test_verification_shows_apples_larger_error_at_high_timesteps(tmp_path: Path) -> None:
    """Its embeddings are float16, whose steps near 999 are half a radian; SDXL's have 320 channels.

    In networks of a tenth of that, most frequencies are too low for it to show.
    """
    pytest.importorskip(APPLE)
    wide = {**TINY.unet, "block_out_channels": [320, 320], "attention_head_dim": [5, 5]}
    write_checkpoint(tmp_path / "wide", replace(TINY, unet=wide), words=["cat"])
    source, worst = open_checkpoint(tmp_path / "wide"), {}
    for package in both(source, "unet", tmp_path):
        results = verify(
            package,
            source,
            Question(runtime="torch", levels=["conversion"], timesteps=(999, 500, 37)),
        )
        for check in results.checks:
            key = package.stem, int(check.case.split()[0].removeprefix("t="))
            worst[key] = min(worst.get(key, math.inf), check.metrics.snr_db)
    assert worst["apple", 999] < worst["native", 999] - 10, worst
    assert worst["apple", 500] < worst["native", 500] - 5, worst
    assert worst["apple", 37] > worst["native", 37] - 3, worst


def test_other_numbers_of_groups_are_built(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Apple's own script would leave 32, and say nothing."""
    pytest.importorskip(APPLE)
    changed = edit_checkpoint(checkpoint, tmp_path, "unet", config={"norm_num_groups": 8})
    apple, _ = both(changed, "unet", tmp_path)
    right = verify(
        apple, changed, Question(runtime="torch", levels=["conversion"], timesteps=(37,))
    )
    assert right, [c.message for c in right.failures]
    assert not verify(
        apple, checkpoint, Question(runtime="torch", levels=["conversion"], timesteps=(37,))
    )


def test_without_apples_package_the_error_names_how_to_install_it(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, APPLE, None)
    with pytest.raises(InputError, match="not installed") as caught:
        both(checkpoint, "unet", tmp_path)
    assert INSTALL in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_names_the_same_installation() -> None:
    from sdxl_coreml.doctor import diagnose

    (found,) = (f for f in diagnose() if f.name == "Apple's converter")
    assert found.status == "ok" or INSTALL in found.remedy


def test_a_dependency_of_apples_package_that_is_missing_is_named(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / APPLE).mkdir()
    (tmp_path / APPLE / "__init__.py").touch()
    (tmp_path / APPLE / "unet.py").write_text("import no_such_module")
    for name in (APPLE, f"{APPLE}.unet"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CannotExecute, match="no_such_module"):
        both(checkpoint, "unet", tmp_path)
    for name in (APPLE, f"{APPLE}.unet"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "gelu"),
        ("conv_in_kernel", 5),
        ("time_embedding_dim", 64),
        ("layers_per_block", [1, 2]),
        ("reverse_transformer_layers_per_block", [2, 1]),
        ("mid_block_type", "UNetMidBlock2D"),
    ],
)
def test_what_apples_network_would_ignore_is_refused(
    checkpoint: Checkpoint, key: str, value: Any
) -> None:
    part = checkpoint.part("unet")
    other = replace(part, config={**part.config, key: value})
    changed = replace(checkpoint, parts={**checkpoint.parts, "unet": other})
    with pytest.raises(InputError, match=f"`{key}`.*which Apple's network ignores"):
        unet(None, changed, Resolution(16, 16), "original", np.dtype(np.float16))


def test_sizes_at_which_apples_network_fails_are_refused(checkpoint: Checkpoint) -> None:
    part = checkpoint.part("vae_decoder")
    config = {**part.config, "block_out_channels": [32] * 4}
    config |= {name: config[name] * 2 for name in ("down_block_types", "up_block_types")}
    eighth = replace(
        checkpoint, parts={**checkpoint.parts, "vae": replace(part, config=config)}
    )  # latents of 9x8
    with pytest.raises(InputError, match="multiples of 2"):
        unet(None, eighth, Resolution(64, 72), "original", np.dtype(np.float16))
    with pytest.raises(InputError, match="no multiple of 512"):
        unet(None, checkpoint, Resolution(104, 96), "split_einsum_v2", np.dtype(np.float16))


def test_the_attention_in_effect_is_restored_even_after_an_error() -> None:
    kinds = enum.Enum("Kinds", ["ORIGINAL", "SPLIT_EINSUM"])
    apple = types.SimpleNamespace(
        AttentionImplementations=kinds, ATTENTION_IMPLEMENTATION_IN_EFFECT=kinds.SPLIT_EINSUM
    )
    with attention_in_effect(apple, "original"):
        assert apple.ATTENTION_IMPLEMENTATION_IN_EFFECT is kinds.ORIGINAL
    with pytest.raises(KeyboardInterrupt), attention_in_effect(apple, "original"):
        raise KeyboardInterrupt
    assert apple.ATTENTION_IMPLEMENTATION_IN_EFFECT is kinds.SPLIT_EINSUM


def test_other_libraries_are_left_as_they_were(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tqdm import tqdm

    def state() -> tuple[object, int, list[Any]]:
        return tqdm.__init__, logging.root.manager.disable, list(warnings.filters)

    def fail(*args: Any, **kwargs: Any) -> None:
        warnings.warn("a word", stacklevel=1)
        raise RuntimeError("no such op")

    monkeypatch.setattr(ct, "convert", fail)
    before = state()
    with pytest.raises(CannotExecute, match="RuntimeError: no such op"):
        both(checkpoint, "text_encoder", tmp_path)
    assert state() == before
    assert list(tmp_path.iterdir()) == []


def test_an_existing_package_is_not_overwritten(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "apple.mlpackage").mkdir()
    with pytest.raises(InputError, match="exists already"):
        both(checkpoint, "text_encoder", tmp_path)


def test_a_job_of_fewer_bits_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sixes = Compression.uniform(checkpoint.component_tensors("unet"), "6")
    job = Job("unet", Resolution(16, 16), "original", "6", sixes, "float16", "macOS14", "apple")
    with pytest.raises(InputError, match="16-bit packages, not 6-bit"):
        convert_job(checkpoint, job, describe("unet"), tmp_path / "p.mlpackage")
