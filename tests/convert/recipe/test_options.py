"""What `convert`'s options stand for, and names that files can have."""

from __future__ import annotations

import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from convert.errors import InputError
from convert.recipe.fields import check_file_name
from convert.recipe.options import artifact_name, own_name, recipe_from_options
from convert.recipe.recipe import parse_recipe
from convert.run.manifest import read
from sdxl_coreml import app


@given(st.text())
@example("a'b\"c")
@example("\udcff")
@example("x" * 300)
@example("模" * 100)
@example("...")
def test_any_name_becomes_one_that_files_can_have(text: str) -> None:
    name = artifact_name(text)
    assert check_file_name(name) == name
    assert len(name) <= 100
    assert name[0] != "~"
    assert artifact_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("animagine-xl-3.1", "animagine-xl-3.1"),
        ("model 😀", "model 😀"),
        ("my__model", "my__model"),
        ("con:1", "con_1"),
        ('Wow: the "best"', "Wow_the_best"),
        ("-dashing", "dashing"),
        (".hidden", "hidden"),
        ("~", "model"),
        ("a\udcff\nb", "a__b"),
    ],
)
def test_a_name_that_is_one_stays_and_others_stay_recognisable(text: str, name: str) -> None:
    assert artifact_name(text) == name


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    return str(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bits": ["5"]}, "--bits: `5` is not a bit width"),
        ({"bits": ["8", "8"]}, "--bits: `8` is listed twice"),
        ({"attention": ["splt_einsum"]}, '--attention: "splt_einsum" is not one of'),
        ({"resolution": ["1024"]}, "--resolution: `1024` is not a resolution"),
        ({"group_size": 16}, "--group-size, --allocation: no artifact is compressed; add --bits 8"),
        ({"group_size": 2, "bits": ["8"]}, "--group-size: must be at least 4, not 2"),
        ({"group_size": 16, "bits": ["8"]}, "add --deployment-target macOS15"),
        ({"bits": ["3"]}, "--bits: `3` needs a deployment target of macOS15"),
        ({"deployment_target": "macOS13"}, '--deployment-target: "macOS13" is not one of'),
        ({"vae_precision": "half"}, '--vae-precision: "half" is not one of'),
        ({"name": "a/b"}, '--name: "a/b" contains "/"'),
        ({"name": "x" * 101}, "--name: must have at most 100 characters"),
    ],
)
def test_errors_speak_of_the_option_that_was_typed(
    source: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError) as caught:
        recipe_from_options(source, **options)
    text = str(caught.value)
    assert says in text
    assert not any(word in text for word in ("[matrix]", "[target]", "matrix.", "TOML", "options:"))


@given(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1))
@example("model 😀")
@example('"quoted" \\ and\nmore\t')
def test_the_text_says_the_values_whatever_the_path(name: str) -> None:
    folder = Path("/nowhere") / name
    recipe = _recipe_of(folder)
    values = tomllib.loads(recipe.text)
    assert values["source"]["path"] == str(folder)
    again = parse_recipe(recipe.text, where="text")
    assert (again.digest, again.matrix, again.target) == (
        recipe.digest,
        recipe.matrix,
        recipe.target,
    )


def _recipe_of(folder: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: True)
        return recipe_from_options(str(folder), bits=["16"])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sdxl-coreml", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", ["Wow: 😀", os.fsdecode(b"caf\xe9 1"), "-v1\n2"])
def test_a_folder_of_any_name_is_converted_and_its_artifacts_name_is_said_once(
    name: str,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / name))
    options = ["--resolution", "64x64", "--component", "text_encoder", "--jobs", "1"]
    for out in ("one", "two"):
        assert run(monkeypatch, "convert", str(folder), "--out", str(tmp_path / out), *options) == 0
    said = capsys.readouterr().err
    expected = artifact_name(name)
    assert said.count(f"Artifacts are called {expected}_…") == 2  # once in each run
    (artifact,) = (p for p in (tmp_path / "one").iterdir() if p.name.startswith(expected))
    manifest = read(artifact)
    assert manifest is not None
    assert tomllib.loads(manifest["recipe"]["text"])["name"] == expected
    other = tmp_path / "two" / artifact.name / "manifest.json"
    assert other.read_bytes() == (artifact / "manifest.json").read_bytes()


def test_another_name_is_given_by_an_option(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--resolution", "64x64", "--component", "text_encoder", "--jobs", "1"]
    out = tmp_path / "out"
    assert run(monkeypatch, "convert", str(toy), "--out", str(out), "--name", "x", *options) == 0
    assert (out / "x_original_16-bit_64x64").is_dir()
    assert "Artifacts are called" not in capsys.readouterr().err


def test_a_link_is_called_by_its_own_name(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repaired").symlink_to(source)
    (tmp_path / "inside").mkdir()
    assert own_name(str(tmp_path / "repaired")) == "repaired"
    monkeypatch.chdir(source)
    assert own_name(".") == "model"
    assert own_name("../inside") == "inside"
