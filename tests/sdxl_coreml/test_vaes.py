"""Another VAE on the command line: what it is, what is made of it, and whether that is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.files.disk import digest_file
from convert.known import vaes
from convert.known.vaes import KnownVae
from convert.toy import write_toy_file
from tests.support.file_server import Answer, FileServer
from tests.support.single_files import make_knowable
from tests.support.vaes import (
    bare_diffusers,
    brighter_vae,
    edit_vae_config,
    folder_alone,
    scaled_vae,
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "mine.safetensors"
    write_toy_file(path)
    return path


@pytest.fixture(scope="module")
def brighter(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brighter_vae(tmp_path_factory.mktemp("vae"), toy)


def test_a_plan_says_what_vae_there_will_be_and_what_will_be_measured(
    command: Run, file: Path, toy: Path, brighter: Path, tmp_path: Path
) -> None:
    (tmp_path / "r.toml").write_text(f"""
    name = "mine"
    source = {{ path = "{file}", base = "{toy}", vae = "{brighter}" }}
    matrix.resolution = ["128x128"]
    target.vae_precision = "auto"
    """)
    code, out, err = command("plan", tmp_path / "r.toml")
    assert code == 0, err
    assert "vae: VAE vae.safetensors" in out
    assert "VAE vae.safetensors: a VAE alone, in LDM names (safetensors)" in out
    assert "its largest activations are measured before it is converted" in out
    assert "warning: nothing says that vae.safetensors is a VAE of SDXL" in out
    document = json.loads(command("plan", tmp_path / "r.toml", "--json")[1])
    assert document["vae"]["name"] == "vae.safetensors"
    assert document["vae_precision"]["value"] is None


def test_invokeai_4454_the_precision_follows_the_vae_without_being_said(
    command: Run, tmp_path: Path
) -> None:
    """invoke-ai/InvokeAI #4454: black pictures until precision and VAE were made to fit by hand."""
    mine = make_knowable(tmp_path / "mine")
    scaled_vae(edit_vae_config(mine / "vae", force_upcast=None), {"decoder": 30000})
    small = folder_alone(tmp_path, make_knowable(tmp_path / "small", seed=1))
    edit_vae_config(small, force_upcast=False)
    convert = ["convert", mine, "--resolution", "64x64", "--vae-precision", "auto"]
    convert += ["--component", "vae_decoder"]
    for options, value, why in (
        ([], "float32", "reaches "),
        (["--vae", small], "float16", "its config.json says `force_upcast`: false"),
    ):
        out = tmp_path / value
        code, _, err = command(*convert, "--out", out, *options)
        assert code == 0, err
        assert f"VAE in {value}: " in err
        manifest = json.loads((out / "mine_original_16-bit_64x64" / "manifest.json").read_text())
        assert manifest["vae_precision"] == value
        assert why in manifest["vae_precision_because"]
        verify = ["verify", out / "mine_original_16-bit_64x64", "--source", mine, *options]
        code, _, err = command(*verify, "--level", "structure", "--component", "vae_decoder")
        assert code == 0, err


def test_inspect_says_what_a_vae_is(command: Run, tmp_path: Path) -> None:
    mine = make_knowable(tmp_path / "mine")
    bare = bare_diffusers(tmp_path, mine)
    code, out, err = command("inspect", bare)
    assert code == 0, err
    assert "VAE vae.safetensors: a VAE alone, in diffusers names (safetensors), tensors" in out
    assert "VAE in float32 or float16: neither a known SHA-256" in out
    code, out, _ = command("inspect", folder_alone(tmp_path, mine), "--json")
    found = json.loads(out)
    assert (code, found["what"], found["layout"]) == (
        0,
        "vae",
        "a VAE's folder in diffusers' layout",
    )
    assert found["auto"]["value"] == "float32"
    assert "scales latents by 0.13025" in found["is_sdxl"]
    code, out, _ = command("inspect", mine, "--vae", bare, "--json")
    assert json.loads(out)["vae"]["name"] == "vae.safetensors"
    edit_vae_config(tmp_path / "vae-repo", scaling_factor=0.18215)
    code, _, err = command("inspect", tmp_path / "vae-repo")
    assert (code, "is Stable Diffusion 1's VAE" in err) == (2, True)


def test_a_wrong_vae_is_one_error_and_nothing_is_left(command: Run, tmp_path: Path) -> None:
    mine = make_knowable(tmp_path / "mine")
    wrong = edit_vae_config(folder_alone(tmp_path, mine), scaling_factor=0.18215)
    out = tmp_path / "out"
    code, _, err = command("convert", mine, "--vae", wrong, "--out", out, "--resolution", "64x64")
    assert (code, err.count("error: ")) == (2, 1)
    assert "is Stable Diffusion 1's VAE" in err
    assert not out.exists()


def test_inspect_of_a_vae_at_a_url_fetches_all_of_it_for_its_digest(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    for module in ("holes", "parts"):
        monkeypatch.setattr(f"convert.source.{module}.FIRST", 1 << 14)
    path = bare_diffusers(tmp_path, make_knowable(tmp_path / "mine"))
    content, digest = path.read_bytes(), digest_file(path)
    monkeypatch.setattr(vaes, "KNOWN", {digest: KnownVae("some/vae", "SDXL", "float16")})
    monkeypatch.setattr(vaes, "SIZES", {len(content)})
    with FileServer() as server:
        server.answers["/vae.safetensors"] = Answer(content)
        address = f"{server.url}/vae.safetensors"
        code, out, err = command("inspect", address, "--json")
    assert code == 0, err
    assert (json.loads(out)["what"], json.loads(out)["path"]) == ("vae", address)
    assert json.loads(out)["auto"]["value"] == "float16"
    assert [path.read_bytes() for path in (tmp_path / "home").rglob("vae.safetensors")] == [content]
