"""SDXL's own single files, by headers of full size in front of a hole: base and refiner."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from convert.checkpoint.configs import CLIPConfig
from convert.checkpoint.keys import UNetBlocks, fused_keys, openclip_keys, unet_keys, vae_keys
from convert.known.documents import SDXLKind, known_config, known_index
from convert.opening.door import open_checkpoint

Shapes = dict[str, tuple[int, ...]]
BYTES = {"base": 6_938_078_334, "refiner": 6_075_981_930}  # of the released files, about


def ldm_shapes(kind: SDXLKind) -> Shapes:
    """The tensors of a released file, as it spells them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, vae, text = (known_config(n, kind) for n in ("unet", "vae", "text_encoder"))
    with torch.device("meta"):
        models = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
        clip = CLIPTextModel(CLIPTextConfig(**text))
    ups = tuple(name.startswith("CrossAttn") for name in unet["up_block_types"])
    tables = unet_keys(UNetBlocks((2,) * len(ups), ups)), vae_keys(4, 2)
    found: Shapes = {}
    for model, keys, prefix in zip(
        models, tables, ("model.diffusion_model.", "first_stage_model."), strict=True
    ):
        for name, tensor in model.state_dict().items():
            shape = tuple(tensor.shape)
            ldm = str(keys.ldm(name))
            is_convolution = ".attn_1." in ldm and len(shape) == 2
            found[prefix + ldm] = (*shape, 1, 1) if is_convolution else shape
    place = 0 if kind == "refiner" else 1
    for name, shape in openclip_shapes().items():
        found[f"conditioner.embedders.{place}.model.{name}"] = shape
    if kind == "base":
        prefix = "conditioner.embedders.0.transformer.text_model."
        for name, tensor in clip.state_dict().items():
            found[prefix + name.removeprefix("text_model.")] = tuple(tensor.shape)
        found[f"{prefix}embeddings.position_ids"] = (1, 77)
    return found


def openclip_shapes() -> Shapes:
    config = CLIPConfig.parse(known_config("text_encoder_2", "base"), Path("x"), projected=True)
    wide, width = config.intermediate, config.width
    found: Shapes = {
        "token_embedding.weight": (config.vocabulary, width),
        "positional_embedding": (77, width),
        "text_projection": (width, width),
        "logit_scale": (),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for name, ldm in openclip_keys(config.layers).pairs[3:]:
        rows, columns = {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}.get(
            name.split(".", 3)[3], (width, width)
        )
        is_norm = "layer_norm" in name
        found[f"{ldm}.weight"] = (width,) if is_norm else (rows, columns)
        found[f"{ldm}.bias"] = (width,) if is_norm else (rows,)
    for layer in range(config.layers):
        found[fused_keys(layer, "weight")[0]] = (3 * width, width)
        found[fused_keys(layer, "bias")[0]] = (3 * width,)
    return found


def write_hole(path: Path, shapes: Shapes) -> None:
    """A safetensors file of these float16 tensors whose data are a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.parametrize(
    ("kind", "tensors"), [("base", 1680 + 248 + 197 + 390), ("refiner", 1220 + 248 + 390)]
)
def test_a_released_file_has_its_own_configs_and_needs_no_base(
    tmp_path: Path, kind: SDXLKind, tensors: int
) -> None:
    shapes = ldm_shapes(kind)
    assert len(shapes) == tensors
    file = tmp_path / f"sd_xl_{kind}_1.0.safetensors"
    write_hole(file, shapes)
    assert file.stat().st_size == pytest.approx(BYTES[kind], rel=1e-3)
    found = open_checkpoint(file)
    assert found.name == f"sd_xl_{kind}_1.0"
    assert found.origin is not None
    assert found.origin.kind == kind
    assert found.model_index == known_index(kind)
    for name, part in found.parts.items():
        assert part.config == known_config(name, kind)
    assert [len(part.tensors) for part in found.parts.values()] == (
        [1680, 248, 196, 517] if kind == "base" else [1220, 248, 517]
    )
    for component in found.components:
        found.config(component)
        found.component_tensors(component)
    assert {t.size for t in found.tokenizers.values()} == {49408}
