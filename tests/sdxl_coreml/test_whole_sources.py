"""What people have, all of it at once: a single file, two LoRAs, another VAE.

Whole pictures of the artifact beside those of diffusers' pipeline with the same in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.files.disk import digest_file
from convert.opening.door import open_checkpoint
from convert.toy import write_toy_file
from tests.support.loras import PAIRS, SPELLINGS, TEXT_SPELLINGS, tensors_of, write_lora
from tests.support.vaes import brighter_vae

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

Run = Callable[..., tuple[int, str, str]]
PROMPT = "a large red circle on a blue background"
UNET = [
    f"mid_block.attentions.0.transformer_blocks.0.attn{n}.to_{projection}"
    for n in (1, 2)
    for projection in ("q", "k", "v", "out.0")
]
TEXT = [f"encoder.layers.0.self_attn.{projection}_proj" for projection in ("q", "k", "v", "out")]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "mine.safetensors"
    write_toy_file(path)
    return path


@pytest.fixture(scope="module")
def brighter(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brighter_vae(tmp_path_factory.mktemp("vae"), toy)


def lora(path: Path, source: Checkpoint, unet: str, text: str, seed: int) -> Path:
    """A LoRA over attentions of the UNet and of both text encoders, in two spellings."""

    def shape(part: str, module: str) -> tuple[int, ...]:
        return source.parts[part].tensors[f"{module}.weight"].shape

    modules = {SPELLINGS[unet](m): ("unet", m) for m in UNET}
    for n, part in enumerate(("text_encoder", "text_encoder_2"), 1):
        modules |= {TEXT_SPELLINGS[text](n, m): (part, m) for m in TEXT}
    theirs = PAIRS["PEFT" if unet == "diffusers" else "kohya"]
    suffixes = dict(zip(PAIRS["kohya"], theirs, strict=True))
    made = {}
    for number, (name, (part, module)) in enumerate(modules.items()):
        found = tensors_of("LoRA", shape(part, module), seed + number, alpha=4)
        made[name] = {suffixes.get(s, s): v for s, v in found.items() if s != ".alpha"}
    return write_lora(path, made)


def run(command: Run, folder: Path, source: str, prompt: str = PROMPT) -> tuple[Any, Any]:
    """The report and the manifest of the one artifact of a recipe; it passes."""
    folder.mkdir(exist_ok=True)
    (folder / "r.toml").write_text(f"""
    name = "mine"
    source = {{ {source} }}
    matrix = {{ attention = ["original"], resolution = ["128x128"] }}
    [verify]
    prompts = ["{prompt}"]
    steps = 4
    levels = ["structure", "conversion", "generation", "sanity"]
    """)
    out = folder / "out"
    given = ["--out", out, "--json", "--jobs", 1, "--no-release"]
    code, stdout, err = command("run", folder / "r.toml", *given)
    assert code == 0, stdout + err
    assert json.loads(stdout)["verdict"] == "pass"
    (report,) = (out / "reports").glob("mine*.json")
    manifest = out / "mine_original_16-bit_128x128" / "manifest.json"
    return json.loads(report.read_text()), json.loads(manifest.read_text())


def test_a_file_with_two_loras_and_another_vae_draws_what_the_merged_pipeline_draws(
    command: Run, file: Path, toy: Path, brighter: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(toy)
    one = lora(tmp_path / "one.safetensors", source, "kohya, diffusers names", "kohya", 1)
    two = lora(tmp_path / "two.safetensors", source, "diffusers", "diffusers", 100)
    report, manifest = run(
        command,
        tmp_path,
        f'path = "{file}", base = "{toy}", vae = "{brighter}", loras = ['
        f'{{ path = "{one.name}", scale = 0.8, text_scale = 0.5 }}, {{ path = "{two.name}" }}]',
    )
    assert "the reference has its LoRAs merged by diffusers and peft" in report["scope"]
    assert "the reference reads unet, vae, text_encoder" in report["scope"]
    levels = {check["level"] for check in report["checks"]}
    assert levels == {"structure", "conversion", "generation", "sanity"}
    kinds = {g["case"].rpartition(" ")[0] for g in report["generations"]}
    assert kinds == {"euler text-to-image", "euler image-to-image"}
    facts = manifest["source"]
    told = [[lora[k] for k in ("file", "sha256", "scale", "text_scale")] for lora in facts["loras"]]
    assert told == [
        ["loras/one.safetensors", digest_file(one), 0.8, 0.5],
        ["loras/two.safetensors", digest_file(two), 1.0, 1.0],
    ]
    assert facts["vae"]["files"] == {f"other-vae/{brighter.name}": digest_file(brighter)}

    # Each of them matters: without it, the artifact is another checkpoint's.
    artifact = tmp_path / "out" / "mine_original_16-bit_128x128"
    given = ["--base", toy, "--vae", brighter, "--lora", f"{one}=0.8", "--lora", two, "-q"]
    verify = ["verify", artifact, "--source", file, "--level", "conversion", "--timestep", 500]
    code, shown, _ = command(*verify, "--component", "vae_decoder", *given)
    assert code == 0, shown
    assert command(*verify, "--component", "vae_decoder", "--base", toy, "-q")[0] == 1
    assert command(*verify, "--component", "text_encoder", "--base", toy, "-q")[0] == 1
