"""Running a plan: complete artifacts or none, shared weights, nothing done twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.manifest import read as read_manifest
from convert.run.run import Result, run
from convert.source.download import Snapshot

RECIPE = """
name = "toy"
[source]
path = "toy"
[matrix]
attention = ["original", "split_einsum"]
resolution = ["64x64", "64x96"]
"""


def convert(
    checkpoint: Path, out: Path, recipe: str = RECIPE, components: tuple[str, ...] = ()
) -> list[Result]:
    plan = make_plan(
        parse_recipe(recipe, where="test"), open_checkpoint(checkpoint), components=components
    )
    return run(plan, Snapshot(checkpoint, None, None, ()), out)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ".cache" not in p.parts
    }


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    convert(toy, out)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A finished run that the test may spoil."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def test_artifacts_hold_what_the_manifest_says(finished: Path) -> None:
    folders = sorted(p for p in finished.iterdir() if p.name != ".cache")
    assert [p.name for p in folders] == [
        "toy_original_16-bit_64x64",
        "toy_original_16-bit_64x96",
        "toy_split-einsum_16-bit_64x64",
        "toy_split-einsum_16-bit_64x96",
    ]
    for folder in folders:
        manifest = read_manifest(folder)
        assert manifest is not None
        found = {name: digest for name, digest in contents(folder).items()}
        del found["manifest.json"]
        assert found == {name: f["sha256"] for name, f in manifest["files"].items()}
        assert set(manifest["components"].values()) == {
            "TextEncoder.mlpackage", "TextEncoder2.mlpackage", "Unet.mlpackage",
            "VAEDecoder.mlpackage", "VAEEncoder.mlpackage",
        }  # fmt: skip
        assert manifest["recipe"]["text"] == RECIPE
        assert str(finished.parent) not in json.dumps(manifest)
        assert 16 <= manifest["bits_per_weight"]["unet"] < 17


def test_weights_are_on_disk_once(finished: Path) -> None:
    files = [p for p in finished.rglob("weight.bin") if ".cache" not in p.parts]
    assert len(files) == 20
    assert len({p.stat().st_ino for p in files}) == 5


def test_a_second_run_makes_nothing(out: Path, toy: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    results = convert(toy, out)
    # The copied cache has files of another time, so packages are made again, equal to the byte.
    assert not any(r.fresh for r in results)
    assert not any(r.fresh for r in convert(toy, out))
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if ".cache" not in p.parts)


def test_two_runs_are_equal_byte_for_byte(finished: Path, toy: Path, tmp_path: Path) -> None:
    convert(toy, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(finished)


def test_a_damaged_artifact_is_made_again(out: Path, finished: Path, toy: Path) -> None:
    damaged = out / "toy_original_16-bit_64x64"
    (damaged / "VAEDecoder.mlpackage" / "Manifest.json").unlink()
    results = convert(toy, out)
    assert [r.path.name for r in results if r.fresh] == [damaged.name]
    assert contents(out) == contents(finished)


def test_a_damaged_cache_is_noticed(out: Path, finished: Path, toy: Path) -> None:
    convert(toy, out)
    for file in (out / ".cache").rglob("weight.bin"):
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data[:-1])
    shutil.rmtree(out / "toy_original_16-bit_64x64")
    convert(toy, out)
    assert contents(out) == contents(finished)


def test_a_changed_recipe_makes_only_what_is_new(out: Path, toy: Path) -> None:
    convert(toy, out)
    packages = set((out / ".cache" / "packages").iterdir())
    recipe = RECIPE.replace('["64x64", "64x96"]', '["64x64", "96x64"]')
    results = convert(toy, out, recipe)
    assert {r.path.name for r in results if r.path.name.endswith("96x64")} == {
        "toy_original_16-bit_96x64",
        "toy_split-einsum_16-bit_96x64",
    }
    assert len(set((out / ".cache" / "packages").iterdir()) - packages) == 4  # 2 UNets, 2 VAE


def test_the_cache_may_be_deleted(out: Path, toy: Path) -> None:
    before = contents(out)
    shutil.rmtree(out / ".cache")
    assert not any(r.fresh for r in convert(toy, out))
    assert contents(out) == before


def test_a_folder_that_holds_something_else_is_left_alone(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"holds `thesis.tex`, which no run has made"):
        convert(toy, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        convert(toy, tmp_path / "thesis.tex")


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_out.bias"][1] = float("nan")


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_out.bias"] = torch.zeros(5)


def lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["mid_block.resnets.1.conv2.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["down_blocks.9.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (poison, r"`conv_out.bias`\[1\] is nan"),
        (widen, r"`conv_out.bias` has shape \[5\]; the config makes it \[4\]"),
        (lose, r"`mid_block.resnets.1.conv2.weight` is missing"),
        (add, r"`down_blocks.9.weight` has no place"),
    ],
)
def test_a_checkpoint_that_cannot_be_converted_leaves_nothing(
    toy: Path, tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    broken = Path(shutil.copytree(toy, tmp_path / "broken"))
    file = next((broken / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    spoil(tensors)
    save_file(tensors, file)
    with pytest.raises(InputError, match=says):
        convert(broken, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["broken"]


def test_chosen_components_alone_are_made(toy: Path, tmp_path: Path) -> None:
    (result, *_) = convert(toy, tmp_path / "out", components=("vae_decoder",))
    assert list(result.manifest["components"]) == ["vae_decoder"]
    with pytest.raises(InputError, match="unknown component `vae_decode`; did you mean `vae_d"):
        convert(toy, tmp_path / "out", components=("vae_decode",))


def test_a_part_does_not_replace_the_whole(out: Path, toy: Path) -> None:
    before = contents(out)
    with pytest.raises(InputError, match=r"has text_encoder, .* too, which this run would remove"):
        convert(toy, out, components=("unet",))
    assert contents(out) == before


def test_what_the_network_cannot_do_is_refused_before_any_work(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot average 1.0 bits"):
        convert(toy, tmp_path / "out", RECIPE + 'bits = ["mixed-1.0"]\n')
    assert not (tmp_path / "out").exists()


def test_two_workers_make_the_same_bytes(finished: Path, toy: Path, tmp_path: Path) -> None:
    plan = make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))
    run(plan, Snapshot(toy, None, None, ()), tmp_path / "out", jobs=2)
    assert contents(tmp_path / "out") == contents(finished)


def test_a_killed_run_goes_on_to_the_same_bytes(finished: Path, toy: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "sdxl_coreml", "convert", str(toy), "--out", str(out)]
    command += ["--attention", "original", "--attention", "split_einsum"]
    command += ["--resolution", "64x64", "--resolution", "64x96"]
    for packages in (1, 4, 8):  # finished when it is killed
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while len(list(out.glob(".cache/packages/*"))) < packages and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
    assert [p.name for p in out.iterdir() if not p.name.startswith((".cache", "toy_"))] == []
    convert(toy, out)
    assert contents(out) == contents(finished)
    assert not list(out.glob(".cache/tmp/*-*"))


def test_two_runs_on_one_folder_do_not_disturb_each_other(
    finished: Path, toy: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "sdxl_coreml", "convert", str(toy), "--quiet"]
    command += ["--out", str(tmp_path / "out"), "--resolution", "64x64"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    name = "toy_original_16-bit_64x64"
    found, expected = contents(tmp_path / "out" / name), contents(finished / name)
    del found["manifest.json"], expected["manifest.json"]  # of another recipe
    assert found == expected


def test_shards_and_one_file_give_the_same_packages(toy: Path, tmp_path: Path) -> None:
    sharded = Path(shutil.copytree(toy, tmp_path / "toy"))
    file = next((sharded / "unet").glob("*.safetensors"))
    tensors = load_file(file)
    names = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {key: names[i % 2] for i, key in enumerate(sorted(tensors))}
    for name in names:
        chosen = {k: t for k, t in tensors.items() if weight_map[k] == name}
        save_file(chosen, sharded / "unet" / name)
    index = sharded / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    file.unlink()
    for name, checkpoint in (("a", toy), ("b", sharded)):
        convert(checkpoint, tmp_path / name, components=("unet",))
    packages = "*/Unet.mlpackage/**/*"
    one, other = (
        {
            p.relative_to(tmp_path / n): p.read_bytes()
            for p in (tmp_path / n).glob(packages)
            if p.is_file()
        }
        for n in "ab"
    )
    assert one == other
    assert one


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small disk")
def test_a_full_disk_is_one_error_and_spoils_nothing(
    finished: Path, toy: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here, so a full disk was not tried")
    try:
        small = RECIPE.replace('"original", "split_einsum"', '"original"').replace(', "64x96"', "")
        convert(toy, disk / "out", small)
        before = contents(disk / "out")
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - 300_000))
        with pytest.raises(InputError, match=r"no space: .* to write"):
            convert(toy, disk / "out")
        with pytest.MonkeyPatch.context() as patch:  # where the prediction was too low
            patch.setattr("convert.run.run.require_room", lambda *_: None)
            with pytest.raises(InputError, match="the disk is full"):
                convert(toy, disk / "out")
        assert contents(disk / "out") == before
        (disk / "filler").unlink()
        convert(toy, disk / "out")
        assert contents(disk / "out") == contents(finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
