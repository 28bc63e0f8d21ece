"""LoRAs in the reference: by the libraries where they are right, which is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.lora.apply import Lora, apply
from convert.lora.merge import MergedTensor
from tests.support.loras import SPELLINGS, TEXT_SPELLINGS, Tensors, tensors_of, write_lora
from tests.support.tensors import half_steps
from verify.reference.loras import how_merged
from verify.reference.reference import Reference

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
UNET = (f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn1.to_out.0", "up_blocks.1.resnets.2.conv1", "conv_in")
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.0.self_attn.out_proj")


def lora(checkpoint: Checkpoint, file: Path, kind: str = "LoRA", *, alpha: float = 2.5) -> Path:
    """A LoRA of kohya's over some modules of the UNet and of text encoder 2."""
    modules: dict[str, Tensors] = {}
    for part, names in (("unet", UNET), ("text_encoder_2", TEXT)):
        for seed, name in enumerate(names):
            shape = checkpoint.parts[part].tensors[f"{name}.weight"].shape
            spelled = (
                SPELLINGS["kohya, sgm names"](name)
                if part == "unet"
                else TEXT_SPELLINGS["kohya"](2, name)
            )
            modules[spelled] = tensors_of(kind, shape, seed, alpha=alpha if seed else 2.5)
    return write_lora(file, modules)


def same(checkpoint: Checkpoint, component: str) -> int:
    """The largest difference of the reference's weights from our merged ones."""
    tensors = checkpoint.component_tensors(component)
    with Reference(checkpoint, component) as reference:
        weights = {n: value.detach().numpy() for n, value in reference.parameters().items()}
    assert weights.keys() == tensors.keys()
    halves = {name: value.astype(np.float16) for name, value in weights.items()}
    return max(
        half_steps(tensor.read(np.float16), halves[n].reshape(tensor.shape))
        for n, tensor in tensors.items()
    )


def test_plain_loras_are_merged_by_the_libraries(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [lora(base, tmp_path / f"{n}.safetensors", alpha=a) for n, a in ((1, 2.5), (2, 2.5))]
    merged, _ = apply(base, [Lora(files[0], 0.7, 0.4), Lora(files[1], -0.5)])
    assert how_merged(merged) == "the reference has its LoRAs merged by diffusers and peft"
    assert how_merged(base) == ""
    for component in ("unet", "text_encoder", "text_encoder_2"):
        assert same(merged, component) <= 1
    monkeypatch.setattr(MergedTensor, "read", lambda *_: pytest.fail("our reader was asked"))
    Reference(merged, "unet")


@pytest.mark.parametrize(
    ("kind", "alpha", "told"),
    [
        ("LoRA", 3.0, "diffusers mistakes the alphas of x.safetensors, which differ by module"),
        ("DoRA of outputs", 2.5, "diffusers cannot merge all of x.safetensors"),
        ("LoHa", 2.5, "diffusers cannot merge all of x.safetensors"),
    ],
)
def test_what_the_libraries_get_wrong_is_our_values_and_said(
    base: Checkpoint, tmp_path: Path, kind: str, alpha: float, told: str
) -> None:
    file = lora(base, tmp_path / "x.safetensors", kind, alpha=alpha)
    merged, _ = apply(base, [Lora(file)])
    assert how_merged(merged).endswith(f"of this tool's reader, because {told}")
    assert same(merged, "unet") == same(merged, "text_encoder_2") == 0


def test_modules_that_the_libraries_leave_out_are_our_values(
    base: Checkpoint, tmp_path: Path
) -> None:
    shape = base.part("text_encoder").tensors[f"{TEXT[0]}.weight"].shape
    query_alone = {TEXT_SPELLINGS["kohya"](1, TEXT[0]): tensors_of("LoRA", shape)}
    file = lora(base, tmp_path / "x.safetensors")
    alone = write_lora(tmp_path / "alone.safetensors", query_alone)
    merged, _ = apply(base, [Lora(file), Lora(alone)])
    assert how_merged(merged).endswith("because diffusers does not read all of alone.safetensors")
    assert same(merged, "text_encoder") == 0


def test_a_spelling_that_the_libraries_refuse_is_no_error_of_the_users(
    base: Checkpoint, tmp_path: Path
) -> None:
    """diffusers: "Could not automatically infer state dict type"."""
    shape = base.part("text_encoder").tensors[f"{TEXT[0]}.weight"].shape
    mixed = {TEXT_SPELLINGS["diffusers"](1, name): tensors_of("LoRA", shape) for name in TEXT}
    merged, _ = apply(base, [Lora(write_lora(tmp_path / "mixed.safetensors", mixed))])
    assert how_merged(merged).endswith("because diffusers cannot read mixed.safetensors")
    assert same(merged, "text_encoder") == 0


def test_a_lora_that_is_merged_twice_counts_twice(base: Checkpoint, tmp_path: Path) -> None:
    file = lora(base, tmp_path / "x.safetensors")
    merged, _ = apply(base, [Lora(file, 0.5), Lora(file, 0.5)])
    assert how_merged(merged).endswith("because a LoRA is merged more than once")
    assert same(merged, "unet") == 0
    once, _ = apply(base, [Lora(file)])
    name = f"{UNET[0]}.weight"
    twice = merged.part("unet").tensors[name].read(np.float16)
    assert half_steps(twice, once.part("unet").tensors[name].read(np.float16)) <= 1
