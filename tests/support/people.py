"""What people have, and what they do with it: a tiny SDXL as model sites offer it, and commands.

`released(folder)` is a whole single file with CLIP's own vocabulary, so it needs nothing beside
itself; `User` gives files to commands and keeps what comes of them; `exact_lora` is a LoRA whose
sums are exact in float32, and `merged` adds it to the file's weights as the formula says.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.loras import Tensors, flat, sgm
from tests.support.single_files import PREFIXES, Weights, make_knowable, single_file, write_file

Run = Callable[..., tuple[int, str, str]]
ROWS = 49408  # of CLIP's vocabulary
TEXT = PREFIXES["text_encoder"]
TEXT_2 = PREFIXES["text_encoder_2"]
SHALLOW: dict[str, Any] = {"unet": {"transformer_layers_per_block": (1, 1, 1)}}  # quickly made
ALL = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
FEW_STEPS = """
name = "turbo"
source.path = "{file}"
matrix = {{ attention = ["original"], resolution = ["64x64"] }}

[verify]
steps = 4
guidance = 1.0
scheduler = "euler_a"
levels = ["structure"]

[release]
license = "openrail++"
advice = ["Four steps, no negative prompt."]
"""


def run_command(*words: object) -> int:
    """The exit code of a command; what it prints is pytest's to keep."""
    from sdxl_coreml import app

    before, sys.argv = sys.argv, ["sdxl-coreml", *map(str, words)]
    try:
        app.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("a command ends with an exit code")


def released(folder: Path) -> Path:
    """A whole single file in LDM's names, float16."""

    def whole(weights: Weights) -> None:
        for name, value in weights.items():
            if name.endswith("token_embedding.weight"):
                generator = torch.Generator().manual_seed(0)
                rows = torch.randn(ROWS, value.shape[1], generator=generator) / 50
                weights[name] = rows.to(value.dtype)

    made = make_knowable(folder / "diffusers", **SHALLOW)
    return single_file(folder / "released.safetensors", made, change=whole)


def variant(
    file: Path,
    path: Path,
    change: Callable[[Weights], Any] = lambda _: None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A file with other tensors and another header."""
    weights = load_file(file)
    change(weights)
    return write_file(path, weights, dict(metadata or {}))


@dataclass(frozen=True)
class Made:
    """What `convert` has left: the digests of weight files by component, and the manifest."""

    path: Path
    weights: Mapping[str, str]
    manifest: Mapping[str, Any]

    @property
    def source(self) -> Mapping[str, Any]:
        """What it was made from."""
        return dict(self.manifest["source"])


@dataclass(frozen=True)
class User:
    """Somebody at a command line, with a folder of his own."""

    command: Run
    folder: Path

    def sees(self, *words: object) -> str:
        """What a command that works prints."""
        code, out, err = self.command(*words)
        assert code == 0, err
        return out

    def told(self, *words: object) -> Any:
        """The same as a document."""
        return json.loads(self.sees(*words, "--json"))

    def refused(self, *words: object) -> str:
        """The one sentence of a command that does not work, and that leaves nothing."""
        before = sorted(self.folder.rglob("*"))
        code, out, err = self.command(*words)
        assert (code, out, err.count("error:")) == (2, "", 1), err
        assert sorted(self.folder.rglob("*")) == before
        return err

    def plans(self, source: Path, **more: Any) -> Any:
        """The plan of a recipe whose [source] is this file and more."""
        return self.told("plan", self.recipe(source, **more))

    def recipe(self, source: Path, **more: Any) -> Path:
        """A recipe of this file, at 64x64."""
        values = ", ".join(
            f"{key} = {value if key in ('loras', 'embeddings') else json.dumps(str(value))}"
            for key, value in {"path": source, **more}.items()
        )
        path = self.folder / "recipe.toml"
        path.write_text(
            f'name = "mine"\nsource = {{ {values} }}\n'
            'matrix = { attention = ["original"], resolution = ["64x64"] }\n'
        )
        return path

    def converts(
        self, source: Path, *options: object, components: tuple[str, ...] = ("text_encoder_2",)
    ) -> Made:
        """What `convert` makes of these components at 64x64."""
        out = self.folder / f"out{len(list(self.folder.glob('out*')))}"
        chosen = [word for name in components for word in ("--component", name)]
        given = ["--out", out, "--resolution", "64x64", *chosen]
        (made,) = self.told("convert", source, *given, *options)["artifacts"]
        return made_in(Path(made["path"]))


def made_in(folder: Path) -> Made:
    """What is in an artifact."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = {
        component: hashlib.sha256(
            (folder / package / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
        ).hexdigest()
        for component, package in manifest["components"].items()
    }
    return Made(folder, weights, manifest)


# ---- LoRAs whose sums are exact ----


def exact_lora(
    shape: tuple[int, ...],
    seed: int = 0,
    *,
    rank: int = 2,
    alpha: float = 1.0,
    tucker: bool = False,
) -> Tensors:
    """A LoRA or LoCon of small multiples of powers of 2: no product or sum of them is rounded."""
    generator = torch.Generator().manual_seed(seed)

    def some(*size: int) -> torch.Tensor:
        return torch.randint(-4, 5, size, generator=generator).half() / 32

    outputs, inputs, *kernel = shape
    ones = [1] * len(kernel)
    found = {
        ".lora_up.weight": some(outputs, rank, *ones),
        ".lora_down.weight": some(rank, inputs, *(ones if tucker else kernel)),
        ".alpha": torch.tensor(alpha),
    }
    return {**found, ".lora_mid.weight": some(rank, rank, *kernel)} if tucker else found


def exact_change(tensors: Tensors, strength: float) -> torch.Tensor:
    """What such a LoRA adds to its weight: up ∘ down, or with a convolution between the two."""
    up, down = tensors[".lora_up.weight"].float(), tensors[".lora_down.weight"].float()
    scale = strength * float(tensors[".alpha"]) / len(down)
    if (mid := tensors.get(".lora_mid.weight")) is not None:
        left, right = up.flatten(1), down.flatten(1)
        return scale * torch.einsum("op,pqhw,qi->oihw", left, mid.float(), right)
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


# What trainers call a module, by its name in the libraries: kohya's way, with sgm's numbers.
def kohya(part: str, name: str) -> str:
    """What kohya's trainer calls a module of a part."""
    if part == "unet":
        return f"lora_unet_{flat(sgm(name))}"
    number = 1 if part == "text_encoder" else 2
    return f"lora_te{number}_text_model_{flat(name)}"


def key_in_file(part: str, name: str) -> str:
    """The tensor of a module of the UNet or of text encoder 1, or of an MLP of text encoder 2."""
    if part == "unet":
        return f"{PREFIXES['unet']}{sgm(name)}.weight"
    if part == "text_encoder":
        return f"{TEXT}{name}.weight"
    name = name.replace("encoder.layers", "transformer.resblocks")
    return f"{TEXT_2}{name.replace('mlp.fc1', 'mlp.c_fc').replace('mlp.fc2', 'mlp.c_proj')}.weight"
