"""What people give by mistake: exit 2, one sentence that says what it is, and nothing is left."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.file_server import Answer, FileServer
from tests.support.loras import tensors_of, write_lora
from tests.support.torch_files import (
    NUMBERS,
    call,
    mapping,
    name,
    tensor,
    text,
    whole,
    write_archive,
    write_legacy,
)

Run = Callable[..., tuple[int, str, str]]
Shapes = Mapping[str, tuple[int, ...]]
UNET = "model.diffusion_model."
ATTENTION = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
MODULE = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def tensors(path: Path, shapes: Shapes) -> None:
    save_file({n: torch.zeros(shape, dtype=torch.float16) for n, shape in shapes.items()}, path)


def header(entries: Mapping[str, Any] | bytes, data: int = 8, length: int | None = None) -> bytes:
    """A safetensors file by hand."""
    content = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    told = len(content) if length is None else length
    return struct.pack("<Q", told) + content + bytes(data)


def entry(begin: int, end: int) -> dict[str, Any]:
    return {"dtype": "F16", "shape": [(end - begin) // 2], "data_offsets": [begin, end]}


OTHERS: dict[str, tuple[Shapes, str]] = {
    "SD 1.5": (
        {
            f"{UNET}input_blocks.0.0.weight": (32, 4, 3, 3),
            ATTENTION: (32, 768),
            "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
            "first_stage_model.decoder.conv_in.weight": (51, 4, 3, 3),
        },
        "is Stable Diffusion 1, not SDXL",
    ),
    "SD 1.5, its UNet alone": (
        {"conv_in.weight": (32, 4, 3, 3), "mid_block.attentions.0.attn2.to_k.weight": (32, 768)},
        "is a UNet of Stable Diffusion 1, not SDXL",
    ),
    "SD 2": (
        {
            f"{UNET}input_blocks.0.0.weight": (32, 4, 3, 3),
            "cond_stage_model.model.ln_final.weight": (1024,),
        },
        "is Stable Diffusion 2, not SDXL",
    ),
    "SD 3": (
        {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (12, 4)},
        "is Stable Diffusion 3, not SDXL",
    ),
    "Flux": (
        {f"{UNET}double_blocks.0.img_attn.qkv.weight": (12, 4)},
        "is Flux, not SDXL",
    ),
    "Wan": ({"blocks.0.cross_attn.k.weight": (4, 4)}, "is Wan, which makes videos, not SDXL"),
    "an LLM": ({"model.layers.0.mlp.gate_proj.weight": (4, 4)}, "is a language model, not SDXL"),
    "Playground": (
        {"edm_mean": (4,), "edm_std": (4,), f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3)},
        "is Playground v2.5",
    ),
    "CosXL": (
        {"edm_vpred.sigma_max": (), f"{UNET}input_blocks.0.0.weight": (8, 4, 3, 3)},
        "is CosXL",
    ),
}
DAMAGED: dict[str, tuple[bytes, str]] = {
    "overlapping": (
        header({"a": entry(0, 6), "b": entry(4, 8)}),
        "tensor `b` begins at byte 4 of the data, not at 6",
    ),
    "a hole": (
        header({"a": entry(0, 2), "b": entry(4, 8)}),
        "begins at byte 4 of the data, not at 2",
    ),
    "out of range": (header({"a": entry(0, 800)}), "truncated"),
    "a key twice": (
        header(
            b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]},"a":{"dtype":"F16",'
            b'"shape":[4],"data_offsets":[0,8]}}'
        ),
        "twice",
    ),
    "a huge header": (
        header({"a": entry(0, 8)}, length=1 << 40),
        "its header claims 1099511627776 bytes of a file of",
    ),
    "a header larger than ours": (
        header(b" " * (33 << 20)),
        "its header claims 34603008 bytes; at most 33554432 are",
    ),
    "a header that is no JSON": (header(b"{]" + b" " * 30), "JSON"),
    "empty": (b"", "is empty"),
    "a web page": (b"<!DOCTYPE html><html><body>Sign in", "is a web page"),
    "GGUF": (b"GGUF" + bytes(64), "GGUF"),
}


def pickles() -> dict[str, tuple[Callable[[Path], Any], str]]:
    system = call(name("os", "system"), text("touch ran"))
    held = {"0": NUMBERS}
    bomb = whole(mapping({"w": tensor()}))

    def compressed(archive: zipfile.ZipFile) -> None:
        archive.writestr("archive/data/1", bytes(10**7), zipfile.ZIP_DEFLATED)

    return {
        "a pickle that calls": (
            lambda path: write_archive(path, whole(mapping({"w": system})), held),
            "os.system",
        ),
        "an old pickle that calls": (
            lambda path: write_legacy(path, whole(mapping({"w": system})), held),
            "os.system",
        ),
        "a bare pickle that calls": (lambda path: path.write_bytes(whole(system)), ""),
        "a zip bomb": (lambda path: write_archive(path, bomb, held, compressed), "compressed"),
    }


def bad_files() -> dict[str, tuple[str, Callable[[Path], Any], str]]:
    """Name → how the file is called, what writes it, and the problem."""
    found: dict[str, tuple[str, Callable[[Path], Any], str]] = {}
    for what, (shapes, problem) in OTHERS.items():
        found[what] = ("x.safetensors", lambda p, shapes=shapes: tensors(p, shapes), problem)
    for what, (data, problem) in DAMAGED.items():
        found[what] = ("x.safetensors", lambda p, data=data: p.write_bytes(data), problem)
    for what, (write, problem) in pickles().items():
        found[what] = ("x.ckpt", write, problem)
    return found


BAD = bad_files()


def require_one_sentence(answer: tuple[int, str, str], problem: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, ""), err
    assert problem in err, err
    assert err.count("error:") == 1, err
    assert len(err.strip().splitlines()) <= 2, err  # what is wrong, and what to do


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(
    command: Run, toy: Path, tmp_path: Path, what: str
) -> None:
    file_name, write, problem = BAD[what]
    file, recipe = tmp_path / file_name, tmp_path / "r.toml"
    write(file)
    recipe.write_text(f'name = "r"\nsource = {{ path = "{file}", base = "{toy}" }}\n')
    before = sorted(tmp_path.rglob("*"))
    out = ["--out", tmp_path / "out"]
    for words in (
        ["convert", file, *out],
        ["convert", file, "--base", toy, *out],
        ["convert", file, "--base", file, *out],
        ["plan", recipe],
        ["inspect", file],
    ):
        require_one_sentence(command(*words), problem)
    is_other = what in OTHERS
    as_lora = "is a checkpoint, not a LoRA" if is_other else problem
    require_one_sentence(command("convert", toy, "--lora", file, *out), as_lora)
    for option in ("--vae", "--embedding"):
        require_one_sentence(command("convert", toy, option, file, *out), file_name)
    assert sorted(tmp_path.rglob("*")) == before


def test_scaled_weights_without_their_scales_are_refused(
    command: Run, toy: Path, single: Path, tmp_path: Path
) -> None:
    weights = load_file(single)
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    weights[key] = weights[key].to(torch.float8_e4m3fn)
    weights[f"{UNET}scaled_fp8"] = torch.zeros(0, dtype=torch.float8_e4m3fn)
    file = tmp_path / "fp8.safetensors"
    save_file(weights, file)
    for words in (["convert", file, "--base", toy, "--out", tmp_path / "out"], ["inspect", file]):
        problem = f"marked as scaled fp8, but 1 weight lacks its scale: `{key}`"
        require_one_sentence(command(*words), problem)
    assert list(tmp_path.iterdir()) == [file]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from convert.toy import write_toy_file

    path = tmp_path_factory.mktemp("single") / "toy.safetensors"
    write_toy_file(path)
    return path


@pytest.fixture(scope="module")
def lora(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from convert.opening.door import open_checkpoint

    shape = open_checkpoint(toy).parts["unet"].tensors[f"{MODULE}.weight"].shape
    file = tmp_path_factory.mktemp("loras") / "good.safetensors"
    return write_lora(file, {f"unet.{MODULE}": tensors_of("LoRA", shape)})


def test_a_lora_is_no_checkpoint_and_a_checkpoint_no_lora(
    command: Run, toy: Path, single: Path, lora: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "out"]
    for words in (["convert", lora, *out], ["convert", single, "--base", lora, *out]):
        require_one_sentence(command(*words), "is a LoRA or one of its kin, no checkpoint")
    for file in (single, toy / "unet" / "diffusion_pytorch_model.safetensors"):
        require_one_sentence(
            command("convert", toy, "--lora", file, *out), "is a checkpoint, not a LoRA"
        )
    assert not list(tmp_path.iterdir())


def test_a_lora_that_does_not_fit_is_named_among_those_that_do(
    command: Run, toy: Path, lora: Path, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    strange = write_lora(
        tmp_path / "strange.safetensors", {"lora_unet_x": tensors_of("LoRA", (4, 4))}
    )
    for first, second in ((lora, strange), (strange, lora)):
        words = ["convert", toy, "--lora", first, "--lora", second, "--out", tmp_path / "out"]
        require_one_sentence(
            command(*words), "strange.safetensors: module `lora_unet_x` matches nothing"
        )
    words = ["convert", shapes["refiner"], "--lora", lora, "--out", tmp_path / "out"]
    require_one_sentence(command(*words), "and this checkpoint is SDXL's refiner")
    assert list(tmp_path.iterdir()) == [strange]


def test_a_base_of_another_family_is_called_what_it_is(
    command: Run, toy: Path, single: Path, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    weights = {k: v for k, v in load_file(single).items() if k.startswith(UNET)}
    unet, older = tmp_path / "unet.safetensors", tmp_path / "sd-1.5"
    save_file(weights, unet)
    older.mkdir()
    (older / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    before = sorted(tmp_path.rglob("*"))
    for base, problem in (
        (older, "a Stable Diffusion 1 or 2 checkpoint (StableDiffusionPipeline), not SDXL"),
        (shapes["refiner"], "the UNet takes text of 160 channels; the text encoders give 40"),
        (tmp_path / "none", "none"),
    ):
        words = ["convert", unet, "--base", base, "--out", tmp_path / "out"]
        require_one_sentence(command(*words), problem)
    assert sorted(tmp_path.rglob("*")) == before


ANSWERS = {
    "an HTML page": (Answer(b"<!DOCTYPE html><html>"), "a web page, not a file"),
    "an HTML page that says so": (
        Answer(b"sign in", headers={"Content-Type": "text/html"}),
        "a web page, not a file",
    ),
    **{f"{n}": (Answer(b"no", n), f"refused with status {n}") for n in (401, 403, 404, 429, 503)},
    "it dies": (Answer(bytes(4096), drops=[0, 0, 0]), "sends nothing any more"),
    "another digest": (Answer(bytes(4096)), f"not {'1' * 64}"),
    "another family": (Answer(b"GGUF" + bytes(64)), "is a GGUF file"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_server_that_sends_no_checkpoint_is_one_sentence(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    home = tmp_path / "home"
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setenv("SDXL_COREML_TOKEN", "secret")
    answer, problem = ANSWERS[what]
    with FileServer() as server:
        recipe = tmp_path / "r.toml"
        url = f"{server.url}/model"
        digest = f', sha256 = "{"1" * 64}"' if what == "another digest" else ""
        recipe.write_text(f'name = "r"\nsource = {{ url = "{url}"{digest} }}\n')
        commands = [["plan", recipe], ["run", recipe, "--out", tmp_path / "out"]]
        if not digest:
            commands.append(["convert", f"{url}?token=secret", "--out", tmp_path / "out"])
        if not digest and what != "another family":
            commands.append(["download", url, "--out", tmp_path / "out"])
        for words in commands:
            server.answers["/model"] = Answer(**{**vars(answer), "drops": list(answer.drops)})
            answered = command(*words)
            require_one_sentence(answered, problem)
            assert "secret" not in answered[2]
            assert sorted(p.name for p in tmp_path.iterdir()) in (["home", "r.toml"], ["r.toml"])
    if what != "another family":
        assert not [p for p in home.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_server_that_dies_midway_leaves_what_the_next_run_goes_on_from(
    command: Run, toy: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    content, out = single.read_bytes(), tmp_path / "out"
    with FileServer() as server:
        headers = {"ETag": '"1"'}
        server.answers["/toy.safetensors"] = Answer(content, headers=headers, drops=[99_999, 0, 0])
        words = ["convert", f"{server.url}/toy.safetensors", "--base", toy, "--out", out]
        words += ["--component", "text_encoder", "--resolution", "64x64"]
        require_one_sentence(command(*words), "it goes on where it stopped")
        assert not out.exists()
        server.answers["/toy.safetensors"] = Answer(content, headers=headers)
        code, _, err = command(*words)
        assert code == 0, err
        assert server.requests[-1][1]["range"] == "bytes=99999-"
