"""LoRAs on a whole checkpoint: every spelling, beside diffusers where it is right and where not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.lora.apply import Lora, apply
from convert.lora.merge import MergedTensor
from convert.lora.suffixes import REFUSED, ROLES
from convert.opening.door import open_checkpoint
from tests.support.loras import (
    MAKERS,
    NEEDS_KERNEL,
    PAIRS,
    RANK,
    SPELLINGS,
    TEXT_SPELLINGS,
    Tensors,
    processor,
    tensors_of,
    write_lora,
)
from tests.support.tensors import half_steps
from verify.reference.reference import quiet

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
QUERY, KEY = f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_k"
CONV, ONE_BY_ONE = "up_blocks.1.resnets.2.conv1", "down_blocks.1.resnets.0.conv_shortcut"
# Of every sort that sgm's code has under another name.
UNET = [
    *(QUERY, KEY, f"{BLOCK}.attn1.to_out.0", f"{BLOCK}.ff.net.0.proj", f"{BLOCK}.ff.net.2"),
    *(CONV, ONE_BY_ONE, "conv_in", "conv_out", "down_blocks.0.resnets.1.time_emb_proj"),
    *("down_blocks.1.downsamplers.0.conv", "up_blocks.0.upsamplers.0.conv"),
    *("mid_block.attentions.0.proj_in", "mid_block.resnets.1.conv2", "time_embedding.linear_1"),
    *("add_embedding.linear_1", "up_blocks.2.resnets.0.conv2", "up_blocks.0.attentions.2.proj_out"),
]
# With `out_proj`, as all trainers have it: diffusers forgets `q_proj` of a file without one.
TEXT = [f"encoder.layers.{n}" for n in ("0.self_attn.q_proj", "0.self_attn.out_proj", "2.mlp.fc1")]
Part = Mapping[str, np.ndarray]
Fused = Callable[..., dict[str, Part]]


def weights(checkpoint: Checkpoint, part: str) -> dict[str, tuple[int, ...]]:
    tensors = checkpoint.parts[part].tensors
    return {n.removesuffix(".weight"): tensors[n].shape for n in tensors if n.endswith(".weight")}


def spelled(
    checkpoint: Checkpoint, name: Callable[[str], str], kind: str = "LoRA", **options: Any
) -> dict[str, Tensors]:
    """A LoRA of the UNet's modules of `UNET`."""
    shapes = weights(checkpoint, "unet")
    return {name(m): tensors_of(kind, shapes[m], seed, **options) for seed, m in enumerate(UNET)}


def renamed(modules: Mapping[str, Tensors], pair: str) -> dict[str, Tensors]:
    """The same LoRA with another spelling of its two tensors, and without alphas."""
    suffixes = dict(zip(PAIRS["kohya"], PAIRS[pair], strict=True))
    return {
        name: {suffixes[s]: value for s, value in tensors.items() if s != ".alpha"}
        for name, tensors in modules.items()
    }


def halves(checkpoint: Checkpoint, part: str = "unet") -> dict[str, np.ndarray]:
    return {n: t.read(np.float16) for n, t in checkpoint.parts[part].tensors.items()}


def changed(one: Checkpoint, other: Checkpoint, part: str = "unet") -> list[str]:
    """The modules whose weights differ."""
    before, after = halves(one, part), halves(other, part)
    return [n.removesuffix(".weight") for n in before if not np.array_equal(before[n], after[n])]


def steps(checkpoint: Checkpoint, wanted: Part, part: str = "unet") -> int:
    """The largest difference of a part's weights from others, in steps of float16."""
    found = halves(checkpoint, part)
    assert found.keys() == wanted.keys()
    return max(half_steps(found[n], wanted[n].astype(np.float16)) for n in found)


@pytest.fixture(scope="module")
def fused(shapes: Mapping[str, Path]) -> Iterator[Fused]:
    """diffusers' own merge, in float32: each file is loaded and fused, one after another."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from diffusers.utils import logging
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds = {
        "unet": UNet2DConditionModel,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }

    def merge(*files: tuple[Path, float], at_once: bool = False) -> dict[str, Part]:
        with quiet():
            parts = {
                name: kind.from_pretrained(shapes["base"] / name, dtype=torch.float32)
                if name != "unet"
                else kind.from_pretrained(shapes["base"] / name, torch_dtype=torch.float32)
                for name, kind in kinds.items()
            }
            others = dict.fromkeys(("vae", "scheduler", "tokenizer", "tokenizer_2"))
            pipe = StableDiffusionXLPipeline(**parts, **others)
            for number, (file, strength) in enumerate(files):
                pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name=str(number))
                if not at_once:
                    pipe.set_adapters([str(number)], [strength])
                    pipe.fuse_lora()
            if at_once:
                pipe.set_adapters([str(n) for n in range(len(files))], [s for _, s in files])
                pipe.fuse_lora()
        found = {}
        for part in kinds:
            state = getattr(pipe, part).state_dict().items()
            found[part] = {
                name.removeprefix("text_model.").replace(".base_layer", ""): value.numpy()
                for name, value in state
                if ".lora_" not in name and "position_ids" not in name
            }
        return found

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield merge
    logging.set_verbosity(level)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_every_spelling_of_a_module_is_the_same_lora(
    base: Checkpoint, tmp_path: Path, kind: str
) -> None:
    shapes = weights(base, "unet")
    mine = [m for m in UNET if kind == "LoRA" or shapes[m][0] % 16 == shapes[m][1] % 2 == 0]
    mine = [m for m in mine if shapes[m][2:] == (3, 3) or kind not in NEEDS_KERNEL]
    found: dict[str, list[np.ndarray]] = {}
    for spelling, name in SPELLINGS.items():
        modules = {name(m): tensors_of(kind, shapes[m], n) for n, m in enumerate(mine)}
        file = write_lora(tmp_path / f"{len(found)}.safetensors", modules)
        merged, (report,) = apply(base, [Lora(file, 0.7)])
        assert [parts["unet"] for parts in report.kinds.values()] == [len(mine)]
        tensors = merged.part("unet").tensors
        found[spelling] = [tensors[f"{m}.weight"].read(np.float16) for m in mine]
        if spelling == "bare":
            assert sorted(changed(base, merged)) == sorted(mine)
    for spelling, values in found.items():
        assert all(map(np.array_equal, values, found["bare"])), spelling


@pytest.mark.parametrize("spelling", list(TEXT_SPELLINGS))
def test_every_spelling_of_a_text_encoders_module_is_understood(
    base: Checkpoint, tmp_path: Path, spelling: str
) -> None:
    for n, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        shapes = weights(base, part)
        names = [*TEXT, *(["text_projection"] if n == 2 else [])]
        modules = {
            TEXT_SPELLINGS[spelling](n, name): tensors_of("LoRA", shapes[name]) for name in names
        }
        merged, (report,) = apply(base, [Lora(write_lora(tmp_path / f"{n}.safetensors", modules))])
        assert report.kinds == {"LoRA": {part: len(names)}}
        assert changed(base, merged, part) == [n for n in shapes if n in names]
        for name in names:
            lora = {s: v.half().float() for s, v in tensors_of("LoRA", shapes[name]).items()}
            delta = lora[".lora_up.weight"] @ lora[".lora_down.weight"] * 2.5 / RANK
            weight = base.parts[part].tensors[f"{name}.weight"].read(np.float32)
            wanted = (weight + delta.numpy()).astype(np.float16)
            found = merged.parts[part].tensors[f"{name}.weight"].read(np.float16)
            assert half_steps(found, wanted) <= 1


@pytest.mark.parametrize(
    ("unet", "text"),
    [
        ("kohya, diffusers names", "kohya"),
        ("kohya, sgm names", "kohya"),
        ("diffusers", "diffusers"),
    ],
)
def test_a_plain_lora_is_what_diffusers_fuses(
    base: Checkpoint, fused: Fused, tmp_path: Path, unet: str, text: str
) -> None:
    modules = spelled(base, SPELLINGS[unet])
    modules.pop(SPELLINGS[unet]("add_embedding.linear_1"))  # which diffusers forgets: below
    for n, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        shapes = weights(base, part)
        modules |= {TEXT_SPELLINGS[text](n, m): tensors_of("LoRA", shapes[m], n) for m in TEXT}
    if unet == "diffusers":
        modules = renamed(modules, "PEFT")
    file = write_lora(tmp_path / "lora.safetensors", modules)
    merged, _ = apply(base, [Lora(file, 0.7)])
    wanted = fused((file, 0.7))
    for part, values in wanted.items():
        assert steps(merged, values, part) <= 1, part
        assert changed(base, merged, part)


def test_the_first_spellings_of_diffusers_are_the_same_lora(
    base: Checkpoint, tmp_path: Path
) -> None:
    attention = [f"{BLOCK}.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]
    shapes = weights(base, "unet")
    modules = {m: tensors_of("LoRA", shapes[m], seed) for seed, m in enumerate(attention)}
    plain, _ = apply(base, [Lora(write_lora(tmp_path / "0.safetensors", renamed(modules, "PEFT")))])
    old = {
        f"unet.{processor(m)}": {
            f"_lora.{part}.weight": tensors[f".lora_{part}.weight"] for part in ("up", "down")
        }
        for m, tensors in modules.items()
    }
    first, _ = apply(base, [Lora(write_lora(tmp_path / "1.safetensors", old))])
    assert changed(plain, first) == []
    assert sorted(changed(base, first)) == sorted(attention)
    for number, pair in enumerate(PAIRS, 2):
        file = write_lora(tmp_path / f"{number}.safetensors", renamed(modules, pair))
        assert changed(plain, apply(base, [Lora(file)])[0]) == [], pair


def test_a_lora_fits_a_weight_of_another_number_of_axes(base: Checkpoint, tmp_path: Path) -> None:
    shapes = weights(base, "unet")
    linear, conv = tensors_of("LoRA", shapes[QUERY]), tensors_of("LoRA", shapes[ONE_BY_ONE])
    as_others = {
        QUERY: {s: v[:, :, None, None] if v.ndim == 2 else v for s, v in linear.items()},
        ONE_BY_ONE: {s: v.flatten(1) if v.ndim == 4 else v for s, v in conv.items()},
    }
    plain = write_lora(tmp_path / "a.safetensors", {QUERY: linear, ONE_BY_ONE: conv})
    other = write_lora(tmp_path / "b.safetensors", as_others)
    one, _ = apply(base, [Lora(plain)])
    assert changed(one, apply(base, [Lora(other)])[0]) == []
    assert sorted(changed(base, one)) == sorted([ONE_BY_ONE, QUERY])


# Where diffusers is silently wrong


def test_alphas_that_differ_by_module_each_count(
    base: Checkpoint, fused: Fused, tmp_path: Path
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    names = [QUERY, KEY, f"{BLOCK}.ff.net.2", CONV]
    shapes = weights(base, "unet")
    alphas = dict(zip(names, (1.0, 3.0, 6.0, 6.0), strict=True))
    ranks = dict(zip(names, (2, 4, 8, 4), strict=True))
    modules = {m: tensors_of("LoRA", shapes[m], 0, ranks[m], alphas[m]) for m in names}
    name = SPELLINGS["kohya, diffusers names"]
    file = write_lora(tmp_path / "lora.safetensors", {name(m): t for m, t in modules.items()})
    merged, _ = apply(base, [Lora(file)])

    from diffusers import UNet2DConditionModel

    with quiet():
        unet = UNet2DConditionModel.from_pretrained(base.path / "unet", torch_dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=names, rank_pattern=ranks, alpha_pattern=alphas)
    unet = inject_adapter_in_model(config, unet)
    for m, tensors in modules.items():
        layer = unet.get_submodule(m)
        layer.lora_A.default.weight.data = tensors[".lora_down.weight"].half().float()
        layer.lora_B.default.weight.data = tensors[".lora_up.weight"].half().float()
        layer.merge()
        wanted = layer.base_layer.weight.detach().numpy().astype(np.float16)
        found = merged.part("unet").tensors[f"{m}.weight"].read(np.float16)
        assert half_steps(found, wanted) <= 1, m
    assert steps(merged, fused((file, 1.0))["unet"]) > 100


def test_doras_magnitudes_are_not_dropped(base: Checkpoint, fused: Fused, tmp_path: Path) -> None:
    name = SPELLINGS["kohya, diffusers names"]
    dora = spelled(base, name, "DoRA of outputs")
    dora.pop(name("add_embedding.linear_1"))
    merged, _ = apply(base, [Lora(write_lora(tmp_path / "dora.safetensors", dora))])
    plain = {m: {s: v for s, v in t.items() if s != ".dora_scale"} for m, t in dora.items()}
    without, _ = apply(base, [Lora(write_lora(tmp_path / "plain.safetensors", plain))])
    theirs = fused((tmp_path / "dora.safetensors", 1.0))["unet"]
    assert steps(without, theirs) <= 1
    assert steps(merged, theirs) > 100
    norms = np.linalg.norm(merged.part("unet").tensors[f"{QUERY}.weight"].read(np.float32), axis=1)
    magnitudes = dora[name(QUERY)][".dora_scale"].half().float().numpy().reshape(-1)
    np.testing.assert_allclose(norms, magnitudes, rtol=1e-3)  # of float16 weights


@pytest.mark.parametrize(
    ("forgotten", "mine", "read"),
    [
        ("ComfyUI", [QUERY, CONV], "diffusers"),
        ("kohya, diffusers names", ["add_embedding.linear_1"], "kohya, diffusers names"),
    ],
)
def test_modules_that_diffusers_forgets_are_merged(
    base: Checkpoint, fused: Fused, tmp_path: Path, forgotten: str, mine: list[str], read: str
) -> None:
    shapes = weights(base, "unet")
    modules = {SPELLINGS[forgotten](m): tensors_of("LoRA", shapes[m]) for m in mine}
    modules[SPELLINGS[read](KEY)] = tensors_of("LoRA", shapes[KEY])
    if forgotten == "ComfyUI":
        modules = renamed(modules, "PEFT")
    file = write_lora(tmp_path / "lora.safetensors", modules)
    merged, _ = apply(base, [Lora(file)])
    assert sorted(changed(base, merged)) == sorted([*mine, KEY])
    theirs, untouched = fused((file, 1.0))["unet"], halves(base)
    different = [n for n in untouched if half_steps(untouched[n], theirs[n].astype(np.float16))]
    assert different == [f"{KEY}.weight"]


def test_two_loras_are_both_merged(base: Checkpoint, fused: Fused, tmp_path: Path) -> None:
    name, shapes = SPELLINGS["kohya, diffusers names"], weights(base, "unet")
    files = []
    for n, modules in enumerate(([QUERY, CONV], [QUERY, KEY])):
        made = {name(m): tensors_of("LoRA", shapes[m], n) for m in modules}
        files.append(write_lora(tmp_path / f"{n}.safetensors", made))
    pairs = list(zip(files, (0.7, 0.5), strict=True))
    merged, _ = apply(base, [Lora(file, strength) for file, strength in pairs])
    assert steps(merged, fused(*pairs, at_once=True)["unet"]) <= 1
    one_after_another = fused(*pairs)["unet"]
    assert steps(merged, one_after_another) > 100
    last, _ = apply(base, [Lora(files[1], 0.5)])
    assert steps(last, one_after_another) <= 1  # the first LoRA is lost


# Strengths, and what the report and the keys say


def test_strengths_are_of_the_unet_and_of_the_text_encoders(
    base: Checkpoint, tmp_path: Path
) -> None:
    shapes, text = weights(base, "unet"), weights(base, "text_encoder")
    modules = {
        f"unet.{QUERY}": tensors_of("LoRA", shapes[QUERY]),
        f"text_encoder.{TEXT[0]}": tensors_of("LoRA", text[TEXT[0]]),
    }
    file = write_lora(tmp_path / "lora.safetensors", modules)
    places = (("unet", QUERY), ("text_encoder", TEXT[0]))

    def values(*strengths: float | None) -> list[np.ndarray]:
        merged, _ = apply(base, [Lora(file, *strengths)])  # type: ignore[arg-type]
        return [merged.parts[part].tensors[f"{m}.weight"].read(np.float32) for part, m in places]

    whole, split = values(0.5, None), values(0.5, 0.25)
    assert all(map(np.array_equal, whole, values(0.5, 0.5)))
    np.testing.assert_array_equal(whole[0], split[0])
    untouched = [base.parts[part].tensors[f"{m}.weight"].read(np.float32) for part, m in places]
    np.testing.assert_allclose(whole[1] - untouched[1], 2 * (split[1] - untouched[1]), atol=1e-6)


def test_strength_0_leaves_the_tensors_themselves(base: Checkpoint, tmp_path: Path) -> None:
    file = write_lora(tmp_path / "lora.safetensors", spelled(base, SPELLINGS["bare"]))
    merged, (report,) = apply(base, [Lora(file, 0.0)])
    assert merged.part("unet").tensors == base.part("unet").tensors
    assert report.kinds == {"LoRA": {"unet": len(UNET)}}
    unet_only, _ = apply(base, [Lora(file, 0.5, 0.0)])
    assert unet_only.parts["text_encoder"].tensors == base.parts["text_encoder"].tensors


def test_keys_have_the_files_digest_the_kind_and_the_strength(
    base: Checkpoint, tmp_path: Path
) -> None:
    def key(*loras: Lora, digest: str = "L") -> str:
        merged, _ = apply(base, loras)
        digests = {n: digest if n.startswith("loras/") else "B" for n in merged.files}
        return json.dumps(merged.tensor_keys("unet", digests)[f"{QUERY}.weight"])

    shape = weights(base, "unet")[QUERY]
    one, other = tmp_path / "a" / "lora.safetensors", tmp_path / "b" / "lora.safetensors"
    write_lora(one, {QUERY: tensors_of("LoRA", shape)})
    write_lora(other, {QUERY: tensors_of("LoRA", shape, alpha=1.0)})
    keys = [
        key(),
        key(Lora(one)),
        key(Lora(one), digest="M"),
        key(Lora(one, 0.5)),
        key(Lora(other)),  # alpha alone
        key(Lora(one), Lora(other)),
        key(Lora(other), Lora(one)),
    ]
    assert len(set(keys)) == len(keys)
    assert key(Lora(one)) == keys[1]
    assert key(Lora(one, 0.0)) == keys[0]
    merged, reports = apply(base, [Lora(one), Lora(other), Lora(one, 0.5)])
    assert [r.file for r in reports] == [
        "loras/lora.safetensors",
        "loras/2/lora.safetensors",
        "loras/lora.safetensors",
    ]
    assert merged.files["loras/2/lora.safetensors"] == other


def test_a_report_has_kinds_parts_and_what_is_not_applied(base: Checkpoint, tmp_path: Path) -> None:
    shapes, text = weights(base, "unet"), weights(base, "text_encoder_2")
    modules = {
        f"unet.{QUERY}": {**tensors_of("LoRA", shapes[QUERY]), ".scale": torch.tensor(1.0)},
        f"unet.{KEY}": tensors_of("DoRA of outputs", shapes[KEY]),
        f"unet.{CONV}": tensors_of("LoCon, Tucker", shapes[CONV]),
        "unet.conv_in": {".diff_b": torch.ones(16)},
        f"lora_te2_text_model_{TEXT[0].replace('.', '_')}": tensors_of("LoRA", text[TEXT[0]]),
        "bundle_emb.style": {".string_to_param.*": torch.zeros(2, 24)},
    }
    metadata = {"ss_output_name": "detail", "prompt": "{}"}
    file = write_lora(tmp_path / "lora.safetensors", modules, metadata)
    merged, (report,) = apply(base, [Lora(file)])
    assert report.kinds == {
        "LoRA": {"unet": 1, "text_encoder_2": 1},
        "DoRA": {"unet": 1},
        "LoRA (Tucker)": {"unet": 1},
        "bias": {"unet": 1},
    }
    assert report.facts == {"ss_output_name": "detail"}
    assert "not applied: embedding `style` inside the file" in report.line()
    assert "1 tensor `.scale`" in report.line()
    bias = merged.part("unet").tensors["conv_in.bias"].read(np.float32)
    before = base.part("unet").tensors["conv_in.bias"].read(np.float32)
    np.testing.assert_array_equal(bias, before + 1)


# What does not fit


def refusal(checkpoint: Checkpoint, file: Path, modules: Mapping[str, Tensors], **more: Any) -> str:
    write_lora(file, modules, **more)
    with pytest.raises(InputError) as error:
        apply(checkpoint, [Lora(file)])
    assert error.value.where == str(file)
    return error.value.problem


def test_a_module_that_matches_nothing_is_named(base: Checkpoint, tmp_path: Path) -> None:
    modules = {
        QUERY: tensors_of("LoRA", (32, 32)),
        "lora_unet_input_blocks_1_1_proj_in": tensors_of("LoRA", (32, 32)),
        "lora_unet_input_blocks_2_1_proj_in": tensors_of("LoRA", (32, 32)),
    }
    problem = refusal(base, tmp_path / "lora.safetensors", modules)
    assert problem == (
        "module `lora_unet_input_blocks_1_1_proj_in` matches nothing in this checkpoint, "
        "nor do 1 more of 3"
    )


def test_of_two_loras_the_one_that_matches_nothing_is_named(
    base: Checkpoint, tmp_path: Path
) -> None:
    good = write_lora(tmp_path / "good.safetensors", {QUERY: tensors_of("LoRA", (32, 32))})
    bad = write_lora(tmp_path / "bad.safetensors", {"elsewhere": tensors_of("LoRA", (32, 32))})
    with pytest.raises(InputError, match=r"bad.safetensors: module `elsewhere` matches nothing"):
        apply(base, [Lora(good), Lora(bad)])


def test_a_lora_of_stable_diffusion_1_is_said_to_be(base: Checkpoint, tmp_path: Path) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    problem = refusal(base, tmp_path / "a.safetensors", {name: tensors_of("LoRA", (640, 768))})
    assert problem.startswith("a LoRA for Stable Diffusion 1, and this checkpoint is SDXL")
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    more: dict[str, Any] = {"metadata": {"ss_base_model_version": "sd_v1"}}
    lora = {name: tensors_of("LoRA", (320, 320, 1, 1))}
    problem = refusal(base, tmp_path / "b.safetensors", lora, **more)
    assert problem.startswith("a LoRA for Stable Diffusion 1")
    for name, family in {
        "transformer.single_transformer_blocks.0.attn.to_q": "Flux",
        "lora_unet_double_blocks_0_img_attn_qkv": "Flux",
        "diffusion_model.joint_blocks.0.x_block.attn.qkv": "Stable Diffusion 3",
        "diffusion_model.blocks.0.self_attn.q": "Wan",
        "base_model.model.model.layers.0.self_attn.q_proj": "a language model",
    }.items():
        problem = refusal(base, tmp_path / "c.safetensors", {name: tensors_of("LoRA", (8, 8))})
        assert problem.startswith(f"a LoRA for {family}")


def test_a_lora_of_the_base_is_refused_for_a_refiner(
    base: Checkpoint, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    refiner = open_checkpoint(shapes["refiner"])
    shape = weights(base, "unet")[KEY]
    problem = refusal(refiner, tmp_path / "a.safetensors", {KEY: tensors_of("LoRA", shape)})
    assert problem.startswith("a LoRA for a UNet whose text is 64 wide, and this checkpoint is")
    assert "SDXL's refiner" in problem
    full = {KEY: tensors_of("LoRA", (1280, 2048))}
    problem = refusal(refiner, tmp_path / "b.safetensors", full)
    assert problem.startswith("a LoRA for SDXL's base, and this checkpoint is SDXL's refiner")
    own = weights(refiner, "unet")[KEY]
    merged, _ = apply(
        refiner, [Lora(write_lora(tmp_path / "own.safetensors", {KEY: tensors_of("LoRA", own)}))]
    )
    assert changed(refiner, merged) == [KEY]
    name = f"lora_te_text_model_{TEXT[0].replace('.', '_')}"  # of a refiner, the one it has
    text = {name: tensors_of("LoRA", weights(refiner, "text_encoder_2")[TEXT[0]])}
    merged, _ = apply(refiner, [Lora(write_lora(tmp_path / "text.safetensors", text))])
    assert changed(refiner, merged, "text_encoder_2") == [TEXT[0]]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_shapes_that_do_not_fit_are_named(base: Checkpoint, tmp_path: Path, kind: str) -> None:
    outputs, inputs, *kernel = weights(base, "unet")[CONV]
    for wrong in ((outputs + 16, inputs, *kernel), (outputs, inputs + 16, *kernel)):
        if wrong[0] == outputs and kind.startswith(("OFT", "BOFT", "(IA)³ of outputs")):
            continue
        if wrong[1] == inputs and kind == "(IA)³ of inputs":
            continue
        modules = {CONV: tensors_of(kind, wrong)}
        problem = refusal(base, tmp_path / "lora.safetensors", modules)
        assert problem.startswith(f"module `{CONV}` does not fit this checkpoint: ")
        assert f"for a weight {[outputs, inputs, *kernel]}" in problem


def test_a_module_in_two_spellings_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    lora = tensors_of("LoRA", (32, 32))
    modules = {SPELLINGS[s](QUERY): lora for s in ("kohya, diffusers names", "kohya, sgm names")}
    problem = refusal(base, tmp_path / "lora.safetensors", modules)
    assert "are the same, in two spellings" in problem


def test_a_bias_that_a_module_lacks_is_named(base: Checkpoint, tmp_path: Path) -> None:
    problem = refusal(base, tmp_path / "a.safetensors", {QUERY: {".diff_b": torch.zeros(32)}})
    assert problem == f"module `{QUERY}` changes `{QUERY}.bias`, which the unet lacks"


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_refused(
    base: Checkpoint, tmp_path: Path, strength: float
) -> None:
    file = write_lora(tmp_path / "a.safetensors", {QUERY: tensors_of("LoRA", (32, 32))})
    for lora in (Lora(file, strength), Lora(file, 1.0, strength)):
        with pytest.raises(InputError, match="not a finite number"):
            apply(base, [lora])


NAMES = (QUERY, CONV, "conv_in", "conv_norm_out", f"text_encoder.{TEXT[0]}", "unet.conv_out")
DTYPES = st.sampled_from([torch.float16, torch.int64, torch.float64, torch.bool, torch.uint8])
SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 24, 32, 0]), max_size=5).map(tuple)
FITTING = st.sampled_from(sorted(MAKERS))


@settings(max_examples=100, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES), kind=FITTING)
def test_any_tensors_are_merged_or_refused(
    base: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    name: str,
    kind: str,
) -> None:
    part = "text_encoder" if name.startswith("text_encoder") else "unet"
    shape = weights(base, part)[name.removeprefix("unet.").removeprefix("text_encoder.")]
    if len(shape) > 1 and (len(shape) == 4 or kind not in NEEDS_KERNEL) and min(shape[:2]) > 3:
        tensors = tensors_of(kind, shape, rank=data.draw(st.integers(1, 5)))
    else:
        tensors = tensors_of("norm", shape)
    for suffix in data.draw(st.lists(st.sampled_from([*ROLES, *REFUSED]), max_size=2)):
        tensors[suffix] = torch.ones(data.draw(SIZES), dtype=data.draw(DTYPES))
    for suffix in data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2)):
        value = tensors[suffix]
        changes = [value.flatten(), value[None], value.T if value.ndim == 2 else value, value * 1e9]
        tensors[suffix] = data.draw(st.sampled_from(changes))
    file = tmp_path_factory.mktemp("any") / "lora.safetensors"
    write_lora(file, {name: tensors})
    strength = data.draw(st.sampled_from([1.0, -0.5, 1e30]))
    told = file.name
    try:
        merged, _ = apply(base, [Lora(file, strength)])
        for tensor in merged.parts[part].tensors.values():
            if isinstance(tensor, MergedTensor):
                assert tensor.read(np.float16).shape == tensor.shape
    except InputError as error:
        told = str(error)
    assert file.name in told
