"""Single files on the command line: what they are, what they lack, and what is made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.file_server import Answer, FileServer
from tests.support.single_files import single_file

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from convert.toy import write_toy_file

    path = tmp_path_factory.mktemp("single") / "my.model.safetensors"
    write_toy_file(path)
    return path


def recipe(folder: Path, file: Path, base: str) -> Path:
    text = f"""
    name = "mine"
    source = {{ path = "{file}", base = "{base}" }}
    matrix = {{ attention = ["original"], resolution = ["64x64"] }}
    """
    (folder / "r.toml").write_text(text)
    return folder / "r.toml"


def test_toy_writes_itself_as_a_single_file(command: Run, tmp_path: Path) -> None:
    single = tmp_path / "toy.safetensors"
    code, _, err = command("toy", tmp_path / "toy", "--single", single)
    assert code == 0
    assert "--base" in err
    assert "model.diffusion_model.out.2.bias" in load_file(single)


def test_toy_leaves_nothing_where_its_file_cannot_be(command: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"my model")
    (tmp_path / "file").write_bytes(b"")
    for name in ("toy.ckpt", "mine.safetensors", "file/toy.safetensors"):
        code, _, err = command("toy", tmp_path / "toy", "--single", tmp_path / name)
        assert (code, err.count("error")) == (2, 1), err
        assert not (tmp_path / "toy").exists()
    assert (tmp_path / "mine.safetensors").read_bytes() == b"my model"


def test_inspect_says_what_a_file_is(command: Run, file: Path, toy: Path) -> None:
    code, out, _ = command("inspect", file, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["what"], found["kind"], found["missing"]) == ("source", "base", [])
    assert found["parts"]["unet"]["dtypes"] == {"F16": found["parts"]["unet"]["tensors"]}
    assert found["parts"]["text_encoder_2"]["layout"] == "OpenCLIP names"
    _, out, _ = command("inspect", toy)
    assert "SDXL base, a folder in diffusers' layout" in out


def test_inspect_with_a_base_says_what_comes_from_where(
    command: Run, toy: Path, tmp_path: Path
) -> None:
    unet = single_file(tmp_path / "unet.safetensors", toy, "bare")
    code, out, err = command("inspect", unet, "--base", toy)
    assert code == 0, err
    assert "  unet: unet.safetensors\n" in out
    assert f"tokenizer, tokenizer_2, scheduler: base {toy.name}" in out
    _, out, _ = command("inspect", unet, "--base", toy, "--json")
    assert json.loads(out)["source"]["base"] == toy.name


def test_inspect_of_a_bare_unet_says_what_it_lacks(
    command: Run, file: Path, tmp_path: Path
) -> None:
    weights = {k: v for k, v in load_file(file).items() if k.startswith("model.")}
    weights["model_ema.decay"] = torch.tensor(1.0)
    save_file(weights, tmp_path / "unet.safetensors", {"modelspec.title": "Mine", "prompt": "x"})
    code, out, _ = command("inspect", tmp_path / "unet.safetensors")
    assert code == 0
    assert "lacks vae, text_encoder, text_encoder_2: --base says" in out
    assert "not used: `model_ema.decay`: EMA weights" in out
    assert "modelspec.title: Mine" in out
    assert "prompt" not in out


def test_what_a_file_lacks_is_one_error_and_leaves_nothing(
    command: Run, file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = command("convert", file, "--out", out, "--resolution", "64x64")
    assert code == 2
    assert "base" in err
    assert not out.exists()


def test_convert_takes_the_rest_from_the_base(
    command: Run, file: Path, toy: Path, tmp_path: Path
) -> None:
    options = ["--base", toy, "--resolution", "64x64", "--component", "text_encoder_2"]
    code, out, err = command("convert", file, "--out", tmp_path / "out", *options, "--json")
    assert code == 0, err
    (made,) = json.loads(out)["artifacts"]
    assert made["artifact"] == "my.model_original_16-bit_64x64"
    manifest = json.loads((Path(made["path"]) / "manifest.json").read_text())
    assert manifest["source"]["base"]["name"] == toy.name
    assert manifest["source"]["origin"]["parts"]["tokenizer_2"] == f"base {toy.name}"
    verify = ["verify", made["path"], "--source", file, "--base", toy, "--level", "conversion"]
    code, out, err = command(*verify, "--component", "text_encoder_2", "--json", "-")
    assert code == 0, err
    assert "by diffusers' own converters" in json.loads(out)["scope"]


def test_a_plan_says_what_was_put_together(
    command: Run, file: Path, toy: Path, tmp_path: Path
) -> None:
    code, out, err = command("plan", recipe(tmp_path, file, str(toy)), "--json")
    assert code == 0, err
    source = json.loads(out)["source"]
    assert source["kind"] == "base"
    assert source["parts"]["unet"] == file.name
    assert source["base"] == toy.name
    code, out, _ = command("run", recipe(tmp_path, file, str(toy)), "--dry-run")
    assert f"tokenizer, tokenizer_2, scheduler: base {toy.name}" in out
    code, out, err = command("plan", recipe(tmp_path, file, "toy"), "--source", toy)
    assert code == 0, err  # a whole folder instead needs no base


def test_a_relative_base_starts_at_the_recipes_folder(
    command: Run, file: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(toy)
    monkeypatch.chdir(toy.parent)
    code, _, err = command("plan", recipe(tmp_path, file, "models/mine"))
    assert code == 0, err
    code, _, err = command("plan", recipe(tmp_path, file, "models/../none"))
    assert code == 2
    assert "none" in err


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda data: data[:-100], "truncated"),
        (lambda data: b"", "is empty"),
        (lambda data: b"<!doctype html><html>", "is a web page"),
        (lambda data: b"GGUF" + data, "GGUF"),
    ],
)
def test_damaged_files_exit_with_2_and_one_sentence(
    command: Run,
    file: Path,
    toy: Path,
    tmp_path: Path,
    make: Callable[[bytes], bytes],
    problem: str,
) -> None:
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(make(file.read_bytes()))
    for words in (
        ["convert", bad, "--base", toy, "--out", tmp_path / "out"],
        ["inspect", bad],
        ["plan", recipe(tmp_path, bad, str(toy))],
    ):
        code, _, err = command(*words)
        assert (code, problem in err) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_a_file_of_another_digest_is_refused_and_nothing_is_made(
    command: Run, file: Path, toy: Path, tmp_path: Path
) -> None:
    path = recipe(tmp_path, file, str(toy))
    for wanted, expected in (("0" * 64, 2), (hashlib.sha256(file.read_bytes()).hexdigest(), 0)):
        text = path.read_text().replace("source = {", f'source = {{ sha256 = "{wanted}",')
        (tmp_path / "checked.toml").write_text(text + 'verify.levels = ["structure"]\n')
        out = tmp_path / "out"
        code, _, err = command("run", tmp_path / "checked.toml", "--out", out, "--no-release")
        assert code == expected, err
        assert ("not 0000" in err) == (expected == 2)
        assert out.exists() == (expected == 0)


def test_a_file_behind_a_url_becomes_the_packages_that_it_becomes_as_a_path(
    command: Run, file: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDXL_COREML_TOKEN", "secret")
    options = ["--base", toy, "--resolution", "64x64", "--component", "vae_decoder"]
    assert command("convert", file, "--out", tmp_path / "path", *options)[0] == 0
    with FileServer() as server:
        server.answers["/mine.safetensors"] = Answer(file.read_bytes())
        url = f"{server.url}/mine.safetensors?token=secret"
        code, _, err = command("convert", url, "--out", tmp_path / "url", *options)
    assert code == 0, err
    assert server.requests[0][1]["authorization"] == "Bearer secret"
    weights = "VAEDecoder.mlpackage/Data/com.apple.CoreML/weights/weight.bin"
    (one,) = (tmp_path / "path").glob("my.model_*")
    (other,) = (tmp_path / "url").glob("mine_*")
    assert (one / weights).read_bytes() == (other / weights).read_bytes()
    texts = [p.read_bytes() for p in (tmp_path / "url").rglob("*.json")]
    assert texts
    assert not any(b"secret" in text for text in texts)
    assert "secret" not in err


def test_inspect_and_plan_of_a_url_fetch_headers_and_name_the_url(
    command: Run, file: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SDXL_COREML_TOKEN", "hush")
    for module in ("holes", "parts"):
        monkeypatch.setattr(f"convert.source.{module}.FIRST", 1 << 16)
    with FileServer() as server:
        server.answers["/mine.safetensors"] = Answer(file.read_bytes())
        address = f"{server.url}/mine.safetensors"
        code, out, err = command("inspect", f"{address}?token=hush", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert (found["path"], found["kind"], found["missing"]) == (address, "base", [])
        text = recipe(tmp_path, file, str(toy)).read_text()
        text = text.replace(f'path = "{file}"', f'url = "{address}"')
        assert "url =" in text
        # of the VAE too all that is asked beforehand
        (tmp_path / "url.toml").write_text(f'{text}target.vae_precision = "auto"\n')
        code, out, err = command("plan", tmp_path / "url.toml", "--json")
        assert code == 0, err
        assert server.sent < file.stat().st_size / 10
        assert {headers["authorization"] for _, headers in server.requests} == {"Bearer hush"}
        _, wanted, _ = command("plan", recipe(tmp_path, file, str(toy)), "--json")
        assert json.loads(out)["bytes"] == json.loads(wanted)["bytes"]

        server.answers["/bad.safetensors"] = Answer(b"GGUF" + bytes(1 << 17))
        code, _, err = command("inspect", f"{server.url}/bad.safetensors?token=hush")
        assert code == 2
        assert f"{server.url}/bad.safetensors: is a GGUF file" in err
        assert "hush" not in err
