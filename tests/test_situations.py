"""The situations that people come with, most common first; one test for each, by its number.

Every file is written here, tiny, as the tools of that situation write it, and goes through the
commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from convert.plan.gather import open_source
from convert.process.progress import Silent
from convert.recipe.source import EmbeddingSource, Ingredients
from convert.source.download import CheckpointSource
from tests.support.loras import tensors_of, write_lora
from tests.support.people import (
    ALL,
    TEXT,
    TEXT_2,
    Made,
    User,
    exact_change,
    exact_lora,
    key_in_file,
    kohya,
    variant,
)
from tests.support.single_files import PREFIXES, Weights, single_file, write_file

UNET = PREFIXES["unet"]
WIDTHS = {"clip_l": 64, "clip_g": 128}
NETWORKS = ("text_encoder", "text_encoder_2", "unet")
ATTENTION = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
MLP = "encoder.layers.0.mlp.fc1"
POSITIONS = f"{TEXT}embeddings.position_ids"


@pytest.fixture(scope="module")
def opened(released: Path) -> Checkpoint:
    return open_checkpoint(released)


def shape(checkpoint: Checkpoint, part: str, module: str) -> tuple[int, ...]:
    return checkpoint.parts[part].tensors[f"{module}.weight"].shape


def test_1_a_file_of_the_illustrious_family(user: User, released: Path, plain: Made) -> None:
    """F16, LDM's names, its VAE in it, CLIP's position_ids: nothing beside the file is needed."""

    def positions(weights: Weights) -> None:
        weights[POSITIONS] = torch.arange(77)[None]

    file = variant(released, user.folder / "waiIllustrious_v160.safetensors", positions)
    held = user.told("inspect", file)
    assert (held["kind"], held["missing"]) == ("base", [])
    assert {name: part["layout"] for name, part in held["parts"].items()} == {
        "unet": "LDM names",
        "vae": "LDM names",
        "text_encoder": "transformers names",
        "text_encoder_2": "OpenCLIP names",
    }
    assert held["ignored"] == [
        {"reason": "the positions 0 to 76", "count": 1, "tensors": [POSITIONS]}
    ]
    made = user.converts(file, components=ALL)
    assert made.manifest["artifact"] == "waiIllustrious_v160_original_16-bit_64x64"
    assert made.weights == plain.weights
    assert made.source["origin"]["parts"]["vae"] == file.name
    assert made.source["origin"]["prediction"]["type"] == "epsilon"


def test_2_pony_whose_cards_say_clip_skip_2(user: User, opened: Checkpoint, plain: Made) -> None:
    """ "Clip skip 2" is what SDXL always does: the last layer but one, of both text encoders."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from verify.mil import load_program
    from verify.runtime.evaluator import Evaluator

    ids = torch.tensor([[49406, 320, 1125, 539, *[49407] * 73]])
    for part, kind in (
        ("text_encoder", CLIPTextModel),
        ("text_encoder_2", CLIPTextModelWithProjection),
    ):
        found = opened.parts[part]
        model = kind(CLIPTextConfig(**found.config)).eval()
        weights = {n: torch.from_numpy(t.read("float32")) for n, t in found.tensors.items()}
        named = {n if n in model.state_dict() else f"text_model.{n}": v for n, v in weights.items()}
        model.load_state_dict(named, strict=False)
        with torch.no_grad():
            wanted = model(ids, output_hidden_states=True).hidden_states[-2]
        program = load_program(plain.path / plain.manifest["components"][part])
        given = Evaluator(program, mode="fp32").run({"input_ids": ids.float()})["hidden_embeds"]
        # float32 against float32; the program's weights are the file's
        torch.testing.assert_close(given.reshape(wanted.shape), wanted, atol=1e-4, rtol=1e-4)


def test_2_pony_with_its_vae_beside_it(user: User, released: Path, opened: Checkpoint) -> None:
    """Bare, in LDM's names, as fp16-fix is: it replaces the file's own, and no LoRA touches it."""
    prefix = PREFIXES["vae"]

    def other(weights: Weights) -> None:
        for name in [name for name in weights if name.startswith(prefix)]:
            weights[name] = weights[name] * 0.5

    baked = variant(released, user.folder / "baked.safetensors", other)
    alone = {n.removeprefix(prefix): v for n, v in load_file(baked).items() if n.startswith(prefix)}
    vae = write_file(user.folder / "sdxl_vae.safetensors", alone)
    lora = {kohya("text_encoder_2", MLP): exact_lora(shape(opened, "text_encoder_2", MLP))}
    lora_file = write_lora(user.folder / "style.safetensors", lora)
    components = ("vae_decoder", "vae_encoder")
    options = ["--vae", vae, "--lora", lora_file]
    made = user.converts(released, *options, components=components)
    assert made.weights == user.converts(baked, components=components).weights
    assert made.source["origin"]["parts"]["vae"] == "VAE sdxl_vae.safetensors"
    plan = user.plans(released, vae=vae)
    assert "sdxl_vae.safetensors" in json.dumps(plan["source"])


def test_3_noobai_with_v_prediction_and_its_merges(user: User, released: Path) -> None:
    """Told by the marks, or by the header of merges that lost them; never taken for epsilon."""

    def marked(weights: Weights) -> None:
        weights |= {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}

    vpred = variant(released, user.folder / "noobaiXL_vPred10.safetensors", marked)
    merge = variant(
        released, user.folder / "merge.safetensors", metadata={"modelspec.predict_key": "v"}
    )
    for file, because in ((vpred, "the mark `v_pred`"), (merge, "`modelspec.predict_key`")):
        assert "predicts v_prediction" in user.sees("inspect", file)
        plan = user.plans(file)
        assert plan["source"]["prediction"]["type"] == "v_prediction"
        assert because in plan["source"]["prediction"]["because"]
        topics = {notice["topic"] for notice in plan["notices"]}
        assert "prediction" in topics
        assert ("schedule" in topics) == (file == vpred)  # zero terminal SNR
    made = user.converts(vpred, components=("unet",))
    assert made.source["origin"]["prediction"]["type"] == "v_prediction"
    assert {notice["topic"] for notice in made.manifest["notices"]} == {"prediction", "schedule"}
    assert user.plans(released)["source"]["prediction"]["type"] == "epsilon"


def test_4_a_photographic_model_with_what_trainers_leave_in_it(
    user: User, released: Path, plain: Made
) -> None:
    """float32, the noise schedule, CLIP's logit_scale and EMA weights: the same model comes out."""

    def trained(weights: Weights) -> None:
        for name, value in list(weights.items()):
            weights[name] = value.float()
            if name.startswith("model."):
                flat = name.removeprefix("model.").replace(".", "")
                weights[f"model_ema.{flat}"] = value.float() * 2
        weights[f"{TEXT_2}logit_scale"] = torch.tensor(4.6)
        weights["denoiser.sigmas"] = torch.zeros(1000)
        weights["alphas_cumprod"] = torch.zeros(1000)

    file = variant(released, user.folder / "juggernautXL.safetensors", trained)
    made = user.converts(file, components=("unet",))
    assert made.weights == {"unet": plain.weights["unet"]}
    said = user.sees("plan", user.recipe(file))
    assert "EMA weights; the plain ones are used" in said
    assert "`alphas_cumprod` and 1 more: the noise schedule" in said


def test_5_a_merge_for_few_steps(few_steps: Path) -> None:
    """Lightning, DMD2, Hyper: the weights are SDXL's, and what is asked of apps is the recipe's."""
    card = (few_steps / "release" / "README.md").read_text()
    assert "| Steps | 4 |" in card
    assert "| Guidance scale (CFG) | 1 |" in card
    assert "Four steps, no negative prompt." in card


def test_6_a_kohya_lora_of_unet_and_both_text_encoders(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """The package is that of a file into which the formula has merged it."""
    targets = [("unet", ATTENTION), ("text_encoder", MLP), ("text_encoder_2", MLP)]
    held = {t: exact_lora(shape(opened, *t), seed) for seed, t in enumerate(targets)}
    modules = {kohya(*target): tensors for target, tensors in held.items()}
    assert "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k" in modules  # sgm's names
    metadata = {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora"}
    lora = write_lora(user.folder / "style.safetensors", modules, metadata)

    def merge(weights: Weights) -> None:
        for target, tensors in held.items():
            key = key_in_file(*target)
            weights[key] = (weights[key].float() + exact_change(tensors, 0.5)).half()

    merged = variant(released, user.folder / "merged.safetensors", merge)
    given = f'[{{ path = "{lora}", scale = 0.5 }}]'
    assert user.plans(released, loras=given)["loras"][0]["kinds"] == {
        "LoRA": {"unet": 1, "text_encoder": 1, "text_encoder_2": 1}
    }
    made = user.converts(released, "--lora", f"{lora}=0.5", components=NETWORKS)
    assert made.weights == user.converts(merged, components=NETWORKS).weights
    assert made.source["loras"][0]["metadata"]["ss_network_module"] == "networks.lora"


def test_7_a_lora_of_the_unet_alone(
    user: User, released: Path, opened: Checkpoint, plain: Made
) -> None:
    """`network_train_unet_only`: every Linear of every transformer, and no text encoder."""
    modules = [
        name.removesuffix(".weight")
        for name, tensor in opened.parts["unet"].tensors.items()
        if ".attentions." in name and name.endswith(".weight") and len(tensor.shape) == 2
    ]
    tensors = {
        kohya("unet", m): exact_lora(shape(opened, "unet", m), i) for i, m in enumerate(modules)
    }
    lora = write_lora(user.folder / "unet-only.safetensors", tensors)
    made = user.converts(released, "--lora", lora, components=("text_encoder", "text_encoder_2"))
    assert made.source["loras"][0]["kinds"] == {"LoRA": {"unet": len(modules)}}
    assert made.weights == {name: plain.weights[name] for name in made.weights}


def test_8_locon_dora_and_lokr_of_lycoris_and_onetrainer(
    user: User, released: Path, opened: Checkpoint, plain: Made
) -> None:
    """Convolutions, `dora_scale`, Kronecker products, and OneTrainer's text_projection."""
    conv, value = "down_blocks.1.resnets.0.conv1", ATTENTION.replace("to_k", "to_v")
    output = ATTENTION.replace("to_k", "to_out.0")
    projection = shape(opened, "text_encoder_2", "text_projection")
    modules = {
        kohya("unet", conv): tensors_of("LoRA", shape(opened, "unet", conv)),
        kohya("unet", ATTENTION): tensors_of("DoRA of outputs", shape(opened, "unet", ATTENTION)),
        kohya("unet", value): tensors_of("LoKr, whole ⊗ parts", shape(opened, "unet", value)),
        kohya("unet", output): tensors_of("LoHa", shape(opened, "unet", output)),
        "lora_te2_text_projection": tensors_of("LoRA", projection),
    }
    lora = write_lora(user.folder / "lycoris.safetensors", modules)
    made = user.converts(released, "--lora", lora, components=("unet", "text_encoder_2"))
    assert made.source["loras"][0]["kinds"] == {
        "LoRA": {"unet": 1, "text_encoder_2": 1},
        "DoRA": {"unet": 1},
        "LoKr": {"unet": 1},
        "LoHa": {"unet": 1},
    }
    assert all(made.weights[name] != plain.weights[name] for name in made.weights)


def test_9_a_speed_lora_and_then_a_style_lora(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """Both are in the weights, each with its own strength: not the last alone."""
    first, second = (exact_lora(shape(opened, "text_encoder_2", MLP), seed) for seed in (1, 2))
    speed = {f"text_encoder_2.{MLP}": first}
    speed_lora = write_lora(user.folder / "lcm.safetensors", speed)
    style = {kohya("text_encoder_2", MLP): second}
    style_lora = write_lora(user.folder / "style.safetensors", style)

    def merge(weights: Weights) -> None:
        key = key_in_file("text_encoder_2", MLP)
        change = exact_change(first, 1.0) + exact_change(second, 0.75)
        weights[key] = (weights[key].float() + change).half()

    merged = variant(released, user.folder / "merged.safetensors", merge)
    made = user.converts(released, "--lora", speed_lora, "--lora", f"{style_lora}=0.75")
    assert made.weights == user.converts(merged).weights
    told = [(lora["file"], lora["scale"]) for lora in made.source["loras"]]
    assert told == [("loras/lcm.safetensors", 1.0), ("loras/style.safetensors", 0.75)]


def test_10_a_merge_that_comfyui_saved(user: User, released: Path) -> None:
    """BF16 beside F16, rounded position_ids, the projection in ComfyUI's spelling, a workflow."""

    def mixed(weights: Weights, *, back: bool = False) -> None:
        for name, value in list(weights.items()):
            if name.startswith((UNET, TEXT, TEXT_2)) and value.ndim > 1:
                weights[name] = value.bfloat16().half() if back else value.bfloat16()

    def comfys(weights: Weights) -> None:
        mixed(weights)
        weights[POSITIONS] = torch.arange(77)[None].bfloat16() / 3
        old = weights.pop(f"{TEXT_2}text_projection")
        weights[f"{TEXT_2}text_projection.weight"] = old.T
        weights[f"{TEXT_2}transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]

    metadata = {
        "modelspec.predict_key": "epsilon",
        "modelspec.title": "Merge",
        "prompt": '{"3": "sampler of mine"}',
        "workflow": '{"nodes": "sampler of mine"}',
    }
    file = variant(released, user.folder / "ComfyUI_00001_.safetensors", comfys, metadata)
    plain = variant(released, user.folder / "plain.safetensors", lambda w: mixed(w, back=True))
    parts = user.told("inspect", file)["parts"]
    assert set(parts["unet"]["dtypes"]) == {"BF16", "F16"}
    made = user.converts(file, components=NETWORKS[:2])
    wanted = user.converts(plain, components=NETWORKS[:2])
    assert made.weights == wanted.weights
    assert made.source["origin"]["prediction"]["type"] == "epsilon"
    assert not any(
        b"sampler of mine" in f.read_bytes() for f in made.path.rglob("*") if f.is_file()
    )


def test_11_an_8_bit_unet_of_comfyuis_diffusion_models(user: User, released: Path) -> None:
    """LDM's names without their prefix, E4M3 with or without scales; the rest is the base's."""
    key = key_in_file("unet", ATTENTION)
    values = load_file(released)[key].to(torch.float8_e4m3fn)

    def eight_bits(name: str, codes: torch.Tensor, more: Weights) -> Path:
        weights = load_file(released)
        unet = {n.removeprefix(UNET): v for n, v in weights.items() if n.startswith(UNET)}
        return write_file(user.folder / name, {**unet, key.removeprefix(UNET): codes, **more})

    scale = key.removeprefix(UNET).replace(".weight", ".scale_weight")
    marks = {
        scale: torch.tensor(0.5),
        "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn),
    }
    doubled = (values.float() * 2).to(torch.float8_e4m3fn)  # twice the value, half the scale
    plain = eight_bits("unet_fp8.safetensors", values, {})
    scaled = eight_bits("unet_fp8_scaled.safetensors", doubled, marks)

    def decode(weights: Weights) -> None:
        weights[key] = values.half()

    decoded = variant(released, user.folder / "decoded.safetensors", decode)
    wanted = user.converts(decoded, components=("unet",))
    for file, dtype in ((plain, "F8_E4M3"), (scaled, "F8_E4M3, scaled")):
        assert "lacks vae, text_encoder, text_encoder_2" in user.refused(
            "convert", file, "--out", user.folder / "out"
        )
        assert user.told("inspect", file)["parts"]["unet"]["dtypes"][dtype] == 1
        made = user.converts(file, "--base", released, components=("unet",))
        assert made.weights == wanted.weights
        assert made.source["origin"]["parts"]["text_encoder"] == "base released"


@pytest.mark.parametrize(
    ("kind", "channels", "encoders"),
    [("inpainting", 9, ["text_encoder", "text_encoder_2"]), ("refiner", 4, ["text_encoder_2"])],
)
def test_12_inpainting_and_a_refiner(
    user: User, shapes: Mapping[str, Path], kind: str, channels: int, encoders: list[str]
) -> None:
    """Nine channels; one text encoder, five time ids and an aesthetic score."""
    file = single_file(user.folder / f"{kind}.safetensors", shapes[kind])
    held = user.told("inspect", file)
    assert (held["kind"], held["missing"]) == (kind, [])
    plan = user.plans(file, base=shapes[kind])
    assert [part for part in plan["source"]["parts"] if part.startswith("text")] == encoders
    topics = {notice["topic"] for notice in plan["notices"]}
    assert ("channels" in topics) == (channels == 9)  # apps give a UNet four
    made = user.converts(file, "--base", shapes[kind], components=("unet",))
    assert made.weights == user.converts(shapes[kind], components=("unet",)).weights
    assert made.source["origin"]["kind"] == kind


def test_12_a_peft_lora_of_the_hub_with_its_settings_in_the_header(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """`lora_adapter_metadata` says rank and alpha: with rs-LoRA, alpha ÷ √rank."""
    tensors = exact_lora(shape(opened, "text_encoder_2", MLP), rank=4)
    named = {
        f"text_encoder_2.text_model.{MLP}.lora_A.weight": tensors[".lora_down.weight"],
        f"text_encoder_2.text_model.{MLP}.lora_B.weight": tensors[".lora_up.weight"],
    }
    rank = {"r": 4, "lora_alpha": 2, "use_rslora": True}
    settings = {f"text_encoder_2.{name}": value for name, value in rank.items()}
    lora = user.folder / "pytorch_lora_weights.safetensors"
    write_file(lora, named, {"format": "pt", "lora_adapter_metadata": json.dumps(settings)})

    def merge(weights: Weights) -> None:
        key = key_in_file("text_encoder_2", MLP)
        change = exact_change({**tensors, ".alpha": torch.tensor(4.0)}, 1.0)  # 2 ÷ √4 = 4 ÷ 4
        weights[key] = (weights[key].float() + change).half()

    merged = variant(released, user.folder / "merged.safetensors", merge)
    made = user.converts(released, "--lora", lora)
    assert made.weights == user.converts(merged).weights


def test_12_a_negative_embedding(user: User, released: Path) -> None:
    """`clip_l` and `clip_g`: a word for each vector, and its rows in both text encoders."""
    generator = torch.Generator().manual_seed(1)
    tensors = {n: torch.randn(2, w, generator=generator).half() / 8 for n, w in WIDTHS.items()}
    file = write_file(user.folder / "negativeXL_D.safetensors", tensors)
    plan = user.plans(released, embeddings=f'[{{ path = "{file}", token = "negxl" }}]')
    (told,) = plan["embeddings"]
    assert told["text_encoders"] == ["text_encoder", "text_encoder_2"]
    assert len(told["words"]) == 2
    source = CheckpointSource("path", str(released))
    given = Ingredients(embeddings=(EmbeddingSource(path=str(file), token="negxl"),))
    opened = open_source(source, Silent(), given)
    for part, name in {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}.items():
        rows = opened.parts[part].tensors["embeddings.token_embedding.weight"].read(np.float16)
        ids = opened.tokenizers["tokenizer"].ids
        found = [rows[ids[f"{word}</w>"]] for word in told["words"]]
        np.testing.assert_array_equal(np.stack(found), tensors[name].numpy())
