"""LoRAs on the command line: planned, merged, said, verified; and refused with one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.opening.door import open_checkpoint
from tests.support.loras import tensors_of, write_lora

Run = Callable[..., tuple[int, str, str]]
KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "encoder.layers.0.self_attn.q_proj"


def shape(checkpoint: Checkpoint, part: str, module: str) -> tuple[int, ...]:
    return checkpoint.parts[part].tensors[f"{module}.weight"].shape


@pytest.fixture(scope="module")
def checkpoint(toy: Path) -> Checkpoint:
    return open_checkpoint(toy)


@pytest.fixture(scope="module")
def loras(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("loras")
    found = []
    for n, kind in enumerate(("LoRA", "DoRA of outputs")):
        modules = {
            f"unet.{KEY}": tensors_of(kind, shape(checkpoint, "unet", KEY)),
            f"text_encoder.{TEXT}": tensors_of("LoRA", shape(checkpoint, "text_encoder", TEXT)),
        }
        found.append(write_lora(folder / f"lora{n}.safetensors", modules))
    return found


def write_recipe(folder: Path, toy: Path, loras: str) -> Path:
    text = f"""
    name = "mine"
    source = {{ path = "{toy}", loras = [{loras}] }}
    matrix = {{ attention = ["original"], resolution = ["64x64"] }}
    """
    (folder / "r.toml").write_text(text)
    return folder / "r.toml"


def manifest(out: Path) -> Mapping[str, Any]:
    (file,) = out.glob("*/manifest.json")
    return json.loads(file.read_text())


def test_plan_says_what_is_matched(
    command: Run, toy: Path, loras: list[Path], tmp_path: Path
) -> None:
    given = f'{{ path = "{loras[0]}", scale = 0.8, text_scale = 0.6 }}, {{ path = "{loras[1]}" }}'
    recipe = write_recipe(tmp_path, toy, given)
    code, out, _ = command("plan", recipe)
    assert code == 0
    assert (
        "LoRA lora0.safetensors, strength 0.8, of the text encoders 0.6: LoRA: 1 module of unet, "
        "1 module of text_encoder" in out
    )
    assert "LoRA lora1.safetensors, strength 1.0: " in out
    assert "DoRA: 1 module of unet" in out
    _, out, _ = command("plan", recipe, "--json")
    assert [found["kinds"] for found in json.loads(out)["loras"]] == [
        {"LoRA": {"unet": 1, "text_encoder": 1}},
        {"DoRA": {"unet": 1}, "LoRA": {"text_encoder": 1}},
    ]


def test_what_is_converted_with_loras_is_verified_with_them(
    command: Run, toy: Path, loras: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--lora", f"{loras[0]}=0.5", "--lora", loras[1]]
    made = ["convert", toy, "--out", out, "--resolution", "64x64", "--component", "text_encoder"]
    code, _, err = command(*made, *options)
    assert code == 0, err
    source = manifest(out)["source"]
    assert [(found["file"], found["scale"]) for found in source["loras"]] == [
        ("loras/lora0.safetensors", 0.5),
        ("loras/lora1.safetensors", 1.0),
    ]
    assert all(source["files"][found["file"]] == found["sha256"] for found in source["loras"])
    (artifact,) = (path.parent for path in out.glob("*/manifest.json"))
    check = ["verify", artifact, "--source", toy, "--level", "structure", "--level", "conversion"]
    check += ["--component", "text_encoder"]
    code, shown, err = command(*check, *options)
    assert code == 0, shown + err
    assert "warning" not in err
    assert "merged values of this tool's reader, because diffusers cannot" in " ".join(
        shown.split()
    )
    code, shown, err = command(*check, *options[2:])
    assert code == 1, shown
    lacks = "the artifact was made with the LoRA lora0.safetensors at strength 0.5, and the check"
    assert f"warning: {lacks}" in err
    assert lacks in " ".join(shown.split())


def test_strength_0_is_the_package_without(
    command: Run, toy: Path, loras: list[Path], tmp_path: Path
) -> None:
    only = ["--resolution", "64x64", "--component", "text_encoder"]
    weights = []
    given: list[list[object]] = [[], ["--lora", f"{loras[0]}=0"], ["--lora", loras[0]]]
    for name, options in zip("abc", given, strict=True):
        assert command("convert", toy, "--out", tmp_path / name, *only, *options)[0] == 0
        (file,) = (tmp_path / name).glob("*/TextEncoder.mlpackage/**/weight.bin")
        weights.append(file.read_bytes())
    assert weights[0] == weights[1] != weights[2]


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ("{folder}/missing.safetensors", "missing.safetensors: no such folder or file"),
        ("{toy}/unet/diffusion_pytorch_model.safetensors", "is a checkpoint, not a LoRA"),
        ("{lora}=much", "`much` is no strength"),
        ("{lora}=nan", "--lora: must be a finite number, not nan"),
    ],
)
def test_what_is_no_lora_is_one_error_and_leaves_nothing(
    command: Run, toy: Path, loras: list[Path], tmp_path: Path, lora: str, problem: str
) -> None:
    given = lora.format(folder=tmp_path, toy=toy, lora=loras[0])
    code, _, err = command("convert", toy, "--out", tmp_path / "out", "--lora", given)
    assert code == 2
    assert problem in err
    assert not (tmp_path / "out").exists()


def test_inspect_says_what_a_lora_is_and_what_it_matches(
    command: Run, toy: Path, loras: list[Path]
) -> None:
    code, out, _ = command("inspect", loras[1])
    assert code == 0
    assert sorted(out.strip().removeprefix("LoRA, by module: ").split(", ")) == ["1 DoRA", "1 LoRA"]
    code, out, _ = command("inspect", toy, "--lora", f"{loras[1]}=0.5", "--json")
    assert code == 0
    (found,) = json.loads(out)["loras"]
    assert found["kinds"] == {"DoRA": {"unet": 1}, "LoRA": {"text_encoder": 1}}
    assert found["scale"] == 0.5
    _, out, _ = command("inspect", toy)
    assert "SDXL base" in out
