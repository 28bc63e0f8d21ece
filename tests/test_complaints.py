"""What people complained of where they tried to convert what they have; one test for each kind.

The issues of each are named in its docstring. `COMPLAINTS` has all of them, and a test at the end
sees that none is left out. Files are tiny, written here, and go through the commands.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from convert.checkpoint.checkpoint import Checkpoint
from convert.lora.apply import Lora, apply
from convert.opening.door import open_checkpoint
from tests.support.loras import tensors_of, write_lora
from tests.support.people import (
    SHALLOW,
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
from tests.support.single_files import (
    PREFIXES,
    REFINER,
    Weights,
    make_knowable,
    single_file,
    write_file,
)

COMPLAINTS = """
apple/ml-stable-diffusion #35 #206 #304 #377
MochiDiffusion/MochiDiffusion #217 #225 #227
GuernikaCore/GuernikaModelConverter #1
aszc-dev/ComfyUI-CoreMLSuite #27 #36 #47
bmaltais/kohya_ss #3000
Comfy-Org/ComfyUI #8683
vladmandic/sdnext #3378 #3905
huggingface/diffusers #3087 #5327 #6112 #6934 #7366 #7506 #8228 #8854 #8900 #9171 #11943
huggingface/peft #1561
KohakuBlueleaf/LyCORIS #270
Nerogar/OneTrainer #314
Stability-AI/generative-models #111
mindspore-lab/mindone #399
invoke-ai/InvokeAI #4454 #7495 #7965
LostRuins/koboldcpp #845
arenasys/stable-diffusion-webui-model-toolkit #39
szhublox/ambw_comfyui #4
wkpark/sd-webui-model-mixer #136
"""

UNET = PREFIXES["unet"]
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
MLP = "encoder.layers.0.mlp.fc1"
POSITIONS = f"{TEXT}embeddings.position_ids"


@pytest.fixture(scope="module")
def opened(released: Path) -> Checkpoint:
    return open_checkpoint(released)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in diffusers' layout whose UNet is split into shards."""
    folder = tmp_path_factory.mktemp("made") / "sharded"
    return make_knowable(folder, max_shard_size="1MB", **SHALLOW)


def shape(checkpoint: Checkpoint, part: str, module: str) -> tuple[int, ...]:
    return checkpoint.parts[part].tensors[f"{module}.weight"].shape


def value(checkpoint: Checkpoint, part: str, module: str) -> np.ndarray:
    """A weight as packages have it."""
    return checkpoint.parts[part].tensors[f"{module}.weight"].read(np.float16)


def added(key: str, change: torch.Tensor, weights: Weights) -> None:
    weights[key] = (weights[key].float() + change).half()


# ---- one file, and Core ML ----


def test_a_ckpt_is_converted(user: User, released: Path, plain: Made) -> None:
    """apple/ml-stable-diffusion #35: only a folder of diffusers' could be converted."""
    file = user.folder / "model.ckpt"
    torch.save({"state_dict": load_file(released), "global_step": 1}, file)
    assert user.converts(file).weights == {"text_encoder_2": plain.weights["text_encoder_2"]}


def test_neither_a_large_file_nor_its_shards_stop_it(user: User, folder: Path) -> None:
    """apple/ml-stable-diffusion #377: files became folders, whose UNets came in two pieces."""
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    file = single_file(user.folder / "pony.safetensors", folder)
    one = user.converts(file, "--base", folder, components=("unet",))
    assert one.weights == user.converts(folder, components=("unet",)).weights
    assert not list(user.folder.rglob("model_index.json"))  # and nothing on the way


def test_a_file_becomes_what_mochidiffusion_loads(user: User, few_steps: Path) -> None:
    """MochiDiffusion/MochiDiffusion #217: a file of a model site, drawn with in the app."""
    said = user.sees("lint", few_steps / "release")
    assert "✓ MochiDiffusion           SDXL, original, 64x64, image-to-image" in said
    assert said.endswith("0 errors\n")


# ---- LoRAs ----


def test_a_lora_is_merged_before_converting(user: User, released: Path, opened: Checkpoint) -> None:
    """apple/ml-stable-diffusion #206, MochiDiffusion/MochiDiffusion #225,
    GuernikaCore/GuernikaModelConverter #1: apps have no LoRAs, so models must have them inside.
    """
    tensors = exact_lora(shape(opened, "text_encoder", MLP))
    lora = write_lora(user.folder / "detail.safetensors", {kohya("text_encoder", MLP): tensors})
    merged = variant(
        released,
        user.folder / "merged.safetensors",
        lambda w: added(key_in_file("text_encoder", MLP), exact_change(tensors, -1.5), w),
    )
    made = user.converts(released, "--lora", f"{lora}=-1.5", components=("text_encoder",))
    assert made.weights == user.converts(merged, components=("text_encoder",)).weights


@pytest.mark.usefixtures("one_thread")
def test_a_model_with_a_lora_computes_what_diffusers_does(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """aszc-dev/ComfyUI-CoreMLSuite #36 #47: with a LoRA inside, pictures were garbage."""
    targets = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.ff.net.2", "down_blocks.1.resnets.0.conv1"]
    modules = {kohya("unet", m): tensors_of("LoRA", shape(opened, "unet", m)) for m in targets}
    lora = write_lora(user.folder / "style.safetensors", modules)
    made = user.converts(released, "--lora", f"{lora}=0.8", components=("unet",))
    check = ["verify", made.path, "--source", released, "--lora", f"{lora}=0.8"]
    said = user.sees(*check, "--component", "unet", "--level", "conversion")
    assert "the reference has its LoRAs merged by diffusers and peft" in " ".join(said.split())


def test_of_several_loras_each_is_merged(user: User, released: Path, opened: Checkpoint) -> None:
    """aszc-dev/ComfyUI-CoreMLSuite, which keeps the last of them alone."""
    held = {n: exact_lora(shape(opened, "text_encoder", MLP), ord(n)) for n in "abc"}
    strengths = dict(zip(held, (1.0, 0.5, -0.25), strict=True))
    options: list[object] = []
    for name, tensors in held.items():
        file = user.folder / f"{name}.safetensors"
        write_lora(file, {kohya("text_encoder", MLP): tensors})
        options += ["--lora", f"{file}={strengths[name]}"]
    change = sum(exact_change(tensors, strengths[n]) for n, tensors in held.items())
    merged = variant(
        released,
        user.folder / "merged.safetensors",
        lambda w: added(key_in_file("text_encoder", MLP), torch.as_tensor(change), w),
    )
    made = user.converts(released, *options, components=("text_encoder",))
    assert made.weights == user.converts(merged, components=("text_encoder",)).weights
    assert [lora["scale"] for lora in made.source["loras"]] == [1.0, 0.5, -0.25]


def test_samplers_of_a_locon_match(user: User, released: Path, opened: Checkpoint) -> None:
    """GuernikaCore/GuernikaModelConverter, whose table has resnets in their places."""
    down, up = "down_blocks.1.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"
    held = {name: exact_lora(shape(opened, "unet", name)) for name in (down, up)}
    modules = {kohya("unet", name): tensors for name, tensors in held.items()}
    assert modules.keys() == {"lora_unet_input_blocks_6_0_op", "lora_unet_output_blocks_2_2_conv"}
    lora = write_lora(user.folder / "locon.safetensors", modules)
    assert user.told("inspect", released, "--lora", lora)["loras"][0]["kinds"] == {
        "LoRA": {"unet": 2}
    }
    changed, _ = apply(opened, [Lora(lora)])
    for name, tensors in held.items():
        require_merged(changed, opened, name, exact_change(tensors, 1.0))


def require_merged(
    changed: Checkpoint, before: Checkpoint, name: str, change: torch.Tensor
) -> None:
    """That a weight of the UNet is the one before and a change that is exact in float32."""
    wanted = (torch.from_numpy(value(before, "unet", name)).float() + change).half()
    np.testing.assert_array_equal(value(changed, "unet", name), wanted.numpy())


def test_all_of_text_encoder_2_of_a_kohya_lora_is_applied(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """bmaltais/kohya_ss #3000: "no module found" for each of lora_te2's modules."""
    names = [
        name.removesuffix(".weight")
        for name in opened.parts["text_encoder_2"].tensors
        if re.search(r"layers\.\d+\.(self_attn|mlp)\..*weight$", name)
    ]
    modules = {
        kohya("text_encoder_2", name): tensors_of("LoRA", shape(opened, "text_encoder_2", name))
        for name in names
    }
    lora = write_lora(user.folder / "lora.safetensors", modules)
    given = f'[{{ path = "{lora}" }}]'
    assert user.plans(released, loras=given)["loras"][0]["kinds"] == {
        "LoRA": {"text_encoder_2": 6 * 3}
    }
    changed, _ = apply(opened, [Lora(lora)])
    for name in names:
        before = value(opened, "text_encoder_2", name)
        assert not np.array_equal(value(changed, "text_encoder_2", name), before)


def test_a_lycoris_file_is_loaded(user: User, released: Path, opened: Checkpoint) -> None:
    """Comfy-Org/ComfyUI #8683: `lycoris_` in front of diffusers' names was passed over."""
    names = [f"{BLOCK}.attn2.to_q", f"{BLOCK}.ff.net.0.proj"]
    modules = {
        f"lycoris_{name.replace('.', '_')}": tensors_of(
            "LoKr, whole ⊗ whole", shape(opened, "unet", name)
        )
        for name in names
    }
    lora = write_lora(user.folder / "simpletuner.safetensors", modules)
    assert user.told("inspect", released, "--lora", lora)["loras"][0]["kinds"] == {
        "LoKr": {"unet": 2}
    }
    changed, _ = apply(opened, [Lora(lora)])
    for name in names:
        one, other = (modules[f"lycoris_{name.replace('.', '_')}"][f".lokr_w{n}"] for n in (1, 2))
        product = torch.kron(one.half().double(), other.half().double()).numpy()
        close(value(changed, "unet", name), value(opened, "unet", name) + product)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal but for the rounding to float16 of values up to 4, and of float32's sums before it."""
    np.testing.assert_allclose(found.astype(np.float64), wanted, rtol=2**-10, atol=2**-12)


def test_a_lora_of_stable_diffusion_1_is_said_to_be_one(user: User, released: Path) -> None:
    """vladmandic/sdnext #3378: it was loaded without a word, and nothing of it was applied."""
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = write_lora(user.folder / "old.safetensors", {name: tensors_of("LoRA", (640, 768))})
    said = user.refused("convert", released, "--lora", lora, "--out", user.folder / "out")
    assert "a LoRA for Stable Diffusion 1, and this checkpoint is SDXL" in said


def test_a_locon_with_a_middle_is_merged(user: User, released: Path, opened: Checkpoint) -> None:
    """huggingface/diffusers #3087 #11943: a LoCon's convolutions, and lora_mid, were refused."""
    name = "mid_block.resnets.0.conv1"
    tensors = exact_lora(shape(opened, "unet", name), tucker=True)
    lora = write_lora(user.folder / "locon.safetensors", {kohya("unet", name): tensors})
    assert user.told("inspect", released, "--lora", lora)["loras"][0]["kinds"] == {
        "LoRA (Tucker)": {"unet": 1}
    }
    changed, _ = apply(opened, [Lora(lora, 0.5)])
    require_merged(changed, opened, name, exact_change(tensors, 0.5))


def test_a_doras_magnitudes_count(user: User, released: Path, opened: Checkpoint) -> None:
    """huggingface/diffusers #7366, huggingface/peft #1561: it was fused as a plain LoRA."""
    name = f"{BLOCK}.attn2.to_v"
    tensors = tensors_of("DoRA of outputs", shape(opened, "unet", name), rank=4, alpha=4.0)
    lora = write_lora(user.folder / "dora.safetensors", {kohya("unet", name): tensors})
    assert user.told("inspect", released, "--lora", lora)["loras"][0]["kinds"] == {
        "DoRA": {"unet": 1}
    }
    changed, _ = apply(opened, [Lora(lora)])
    up, down, magnitude = (
        tensors[f".{n}"].half().double().numpy()
        for n in ("lora_up.weight", "lora_down.weight", "dora_scale")
    )
    merged = value(opened, "unet", name).astype(np.float64) + up @ down
    wanted = merged * magnitude / np.linalg.norm(merged, axis=1, keepdims=True)
    close(value(changed, "unet", name), wanted)


def test_a_loha_is_merged(user: User, released: Path, opened: Checkpoint) -> None:
    """KohakuBlueleaf/LyCORIS #270: no tool but the trainer took SDXL's."""
    name = f"{BLOCK}.ff.net.2"
    tensors = tensors_of("LoHa", shape(opened, "unet", name), rank=4, alpha=2.0)
    lora = write_lora(user.folder / "loha.safetensors", {kohya("unet", name): tensors})
    assert user.told("inspect", released, "--lora", lora)["loras"][0]["kinds"] == {
        "LoHa": {"unet": 1}
    }
    changed, _ = apply(opened, [Lora(lora)])
    one, two = (
        tensors[f".hada_w{n}_a"].half().double() @ tensors[f".hada_w{n}_b"].half().double()
        for n in (1, 2)
    )
    wanted = value(opened, "unet", name) + 2.0 / 4 * (one * two).numpy()
    close(value(changed, "unet", name), wanted)


def test_a_lora_of_the_text_projection_is_merged(
    user: User, released: Path, opened: Checkpoint
) -> None:
    """Nerogar/OneTrainer #314: `lora_te2_text_projection`, which is transformers' way round."""
    tensors = exact_lora(shape(opened, "text_encoder_2", "text_projection"))
    modules = {"lora_te2_text_projection": tensors}
    lora = write_lora(user.folder / "onetrainer.safetensors", modules)
    merged = variant(  # in the file it is OpenCLIP's way round
        released,
        user.folder / "merged.safetensors",
        lambda w: added(f"{TEXT_2}text_projection", exact_change(tensors, 1.0).T, w),
    )
    made = user.converts(released, "--lora", lora)
    assert made.weights == user.converts(merged).weights


# ---- what files hold and lack ----


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("spelling", ["text_projection", "text_projection.weight"])
def test_the_pooled_output_is_transformers(user: User, folder: Path, spelling: str) -> None:
    """huggingface/diffusers #6934, Stability-AI/generative-models #111, mindspore-lab/mindone #399:
    the projection is square, and turned about in one of its two spellings; nothing else tells.
    """
    from transformers import CLIPTextModelWithProjection

    from verify.mil import load_program
    from verify.runtime.evaluator import Evaluator

    def spelled(weights: Weights) -> None:
        if spelling != "text_projection":
            weights[TEXT_2 + spelling] = weights.pop(f"{TEXT_2}text_projection").T

    file = single_file(user.folder / "one.safetensors", folder, change=spelled)
    made = user.converts(file, "--base", folder)
    ids = torch.tensor([[531, 40, 41, 42, *[532] * 73]])
    model = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").float()
    with torch.no_grad():
        wanted = model(ids).text_embeds
    program = load_program(made.path / "TextEncoder2.mlpackage")
    given = Evaluator(program, mode="fp32").run({"input_ids": ids.float()})["pooled_outputs"]
    torch.testing.assert_close(given, wanted, atol=1e-4, rtol=1e-4)


def test_a_refiner_is_opened_by_itself(user: User, tmp_path: Path) -> None:
    """huggingface/diffusers #8900, vladmandic/sdnext #3905: it was taken for SDXL's base."""
    made = make_knowable(tmp_path / "refiner", **REFINER)
    file = single_file(user.folder / "sd_xl_refiner_1.0.safetensors", made)
    held = user.told("inspect", file)
    assert (held["kind"], held["missing"]) == ("refiner", [])
    one = user.converts(file, "--base", made)
    assert one.weights == user.converts(made).weights
    assert one.source["origin"]["kind"] == "refiner"


def test_playground_is_refused_by_name(user: User, released: Path) -> None:
    """huggingface/diffusers #7506: it loads as if it were SDXL, and draws noise."""

    def playground(weights: Weights) -> None:
        weights |= {"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}

    file = variant(released, user.folder / "playground-v2.5.safetensors", playground)
    for words in (["convert", file, "--out", user.folder / "out"], ["inspect", file]):
        assert "is Playground v2.5" in user.refused(*words)


def test_text_encoders_that_are_missing_are_named_and_can_be_given(
    user: User, released: Path, plain: Made
) -> None:
    """huggingface/diffusers #8228: "Failed to load CLIPTextModel" for files without it."""

    def without(weights: Weights) -> None:
        for name in [n for n in weights if n.startswith("conditioner.")]:
            del weights[name]

    file = variant(released, user.folder / "trained.safetensors", without)
    said = user.refused("convert", file, "--out", user.folder / "out")
    assert "holds vae, unet alone, and lacks text_encoder, text_encoder_2" in said
    assert "--base" in said
    made = user.converts(file, "--base", released)
    assert made.weights == {"text_encoder_2": plain.weights["text_encoder_2"]}


def test_position_ids_that_a_merge_has_spoilt_do_no_harm(
    user: User, released: Path, plain: Made
) -> None:
    """arenasys/stable-diffusion-webui-model-toolkit #39, szhublox/ambw_comfyui #4,
    wkpark/sd-webui-model-mixer #136: averaged and rounded, they point to wrong positions.
    """

    def spoilt(weights: Weights) -> None:
        weights[POSITIONS] = (torch.arange(77)[None].half() * 0.97).half()

    file = variant(released, user.folder / "merge.safetensors", spoilt)
    made = user.converts(file, components=("text_encoder",))
    assert made.weights == {"text_encoder": plain.weights["text_encoder"]}
    assert "the positions 0 to 76" in user.sees("inspect", file)


@pytest.mark.usefixtures("one_thread")
def test_an_embedding_of_both_text_encoders_is_added(user: User, released: Path) -> None:
    """huggingface/diffusers #5327 #8854: SDXL's embeddings, of two text encoders, were refused."""
    tensors = {"clip_l": torch.ones(2, 64) / 8, "clip_g": torch.ones(2, 128) / 8}
    file = write_file(user.folder / "negativeXL.safetensors", tensors)
    out = ["--out", user.folder / "out"]
    assert "is a textual inversion, no checkpoint" in user.refused("convert", file, *out)
    said = user.refused("convert", released, "--lora", file, *out)
    assert "is an embedding (textual inversion), not a LoRA" in said
    given = ["--embedding", f"{file}=negxl"]
    made = user.converts(released, *given)
    (told,) = made.source["embeddings"]
    assert told["text_encoders"] == ["text_encoder", "text_encoder_2"]
    check = ["--component", "text_encoder_2", "--level", "conversion"]
    assert "✓" in user.sees("verify", made.path, "--source", released, *given, *check)


# ---- what the UNet predicts, and in how many steps ----


def test_v_prediction_is_never_lost(user: User, released: Path, folder: Path) -> None:
    """invoke-ai/InvokeAI #7495 #7965, huggingface/diffusers #9171,
    MochiDiffusion/MochiDiffusion #227: taken for epsilon, it draws noise or black.
    """

    def marked(weights: Weights) -> None:
        weights["v_pred"] = torch.zeros(0)

    by_mark = variant(released, user.folder / "a.safetensors", marked)
    metadata = {"modelspec.prediction_type": "v"}
    by_header = variant(released, user.folder / "b.safetensors", metadata=metadata)
    by_yaml = variant(released, user.folder / "c.safetensors")
    by_yaml.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    said: list[tuple[Path, dict[str, str]]] = [(f, {}) for f in (by_mark, by_header, by_yaml)]
    for source, more in (*said, (released, {"prediction": "v"})):
        plan = user.plans(source, **more)
        assert plan["source"]["prediction"]["type"] == "v_prediction"
        (notice,) = (n for n in plan["notices"] if n["topic"] == "prediction")
        assert notice["severity"] == "warning"
    plan = user.plans(by_mark, prediction="epsilon")  # who knows better has the last word
    assert plan["source"]["prediction"]["type"] == "epsilon"


def test_what_a_turbo_wants_is_on_its_card(user: User, few_steps: Path, folder: Path) -> None:
    """huggingface/diffusers #6112, aszc-dev/ComfyUI-CoreMLSuite #27: drawn with the wrong
    scheduler, or at 1024x1024, it draws badly.
    """
    card = (few_steps / "release" / "README.md").read_text()
    assert "| Scheduler | Euler a |" in card
    assert "| Steps | 4 |" in card
    assert "| 64 × 64 | 1:1 | square |" in card  # the sizes that there are, and no other
    turbo = Path(shutil.copytree(folder, user.folder / "turbo"))
    config = turbo / "scheduler" / "scheduler_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "timestep_spacing": "trailing"})
    )
    file = single_file(user.folder / "turbo.safetensors", folder)
    notices = user.plans(file, base=turbo)["notices"]
    assert any("`timestep_spacing` is trailing" in notice["problem"] for notice in notices)


# ---- the VAE ----


@pytest.mark.usefixtures("one_thread")
def test_a_vae_that_overflows_in_float16_makes_no_black_pictures(
    user: User, released: Path
) -> None:
    """apple/ml-stable-diffusion #304, LostRuins/koboldcpp #845, invoke-ai/InvokeAI #4454: SDXL's
    own VAE does, its encoder too, so that image-to-image was black where text-to-image was not.
    """
    from verify.mil import load_program
    from verify.runtime.evaluator import Evaluator

    def loud(weights: Weights) -> None:
        for half in ("encoder", "decoder"):
            key = f"first_stage_model.{half}.conv_in.weight"
            weights[key] = (weights[key].float() * 60_000).clamp(-60_000, 60_000).half()

    file = variant(released, user.folder / "loud.safetensors", loud)
    parts = {"vae_encoder": (1, 3, 64, 64), "vae_decoder": (1, 4, 8, 8)}
    for precision, survives in (("float32", True), ("float16", False)):
        options = [] if survives else ["--vae-precision", precision]
        made = user.converts(file, *options, components=tuple(parts))
        for component, size in parts.items():
            program = load_program(made.path / made.manifest["components"][component])
            given = {program.inputs[0].name: torch.ones(size)}
            (found,) = Evaluator(program).run(given).values()
            assert bool(found.isfinite().all()) is survives


# ---- all of them ----


def issues(text: str) -> list[str]:
    """The issues that a text names, such as `huggingface/diffusers #6934`."""
    found = re.findall(r"([\w.-]+/[\w.-]+)((?:\s#\d+)+)", text)
    return [f"{repo} {number}" for repo, numbers in found for number in numbers.split()]


def test_no_complaint_is_left_out() -> None:
    tree = ast.parse(Path(__file__).read_text("utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    told = [name for test in tests for name in issues(ast.get_docstring(test) or "")]
    assert sorted(told) == sorted(issues(COMPLAINTS))
