"""A source and its ingredients, fetched and made one checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from convert.checkpoint.small_files import library_folder
from convert.errors import InputError
from convert.opening.door import open_checkpoint
from convert.plan.gather import gather, looked_at, open_source
from convert.process.progress import Silent
from convert.recipe.options import Added
from convert.recipe.source import Ingredients
from convert.source.download import parse_source
from convert.toy import write_toy_file
from tests.support.file_server import Answer, FileServer
from tests.support.loras import tensors_of, write_lora
from tests.support.vaes import bare_ldm

KEY = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    with FileServer() as files:
        yield files


@pytest.fixture
def lora(toy: Path, tmp_path: Path) -> Path:
    shape = open_checkpoint(toy).parts["unet"].tensors[f"{KEY}.weight"].shape
    return write_lora(tmp_path / "lora.safetensors", {f"unet.{KEY}": tensors_of("LoRA", shape)})


def test_a_lora_comes_from_a_url_whose_secret_is_nowhere(
    server: FileServer, toy: Path, lora: Path
) -> None:
    server.answers["/detail.safetensors"] = Answer(lora.read_bytes())
    address = f"{server.url}/detail.safetensors?token=secret"
    added = Added(loras=[f"{server.url}/detail.safetensors=0.5", address])
    assert "secret" not in json.dumps(added.values())
    ingredients = added.ingredients()
    assert [one.scale for one in ingredients.loras] == [0.5, 1.0]
    found = gather(parse_source(str(toy)), Silent(), ingredients)
    assert [(one.file.rpartition("/")[2], one.scale) for one in found.checkpoint.loras] == [
        ("detail.safetensors", 0.5),
        ("detail.safetensors", 1.0),
    ]
    assert server.requests[-1][0].endswith("?token=secret")
    assert "secret" not in repr([one.to_json() for one in found.checkpoint.loras])
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    vouched = found.snapshot.digests
    assert [vouched[path] for name, path in found.checkpoint.files.items() if "loras" in name] == [
        digest
    ] * 2


def test_a_lora_with_another_digest_than_the_recipes_is_refused(
    server: FileServer, toy: Path, lora: Path
) -> None:
    server.answers["/detail.safetensors"] = Answer(lora.read_bytes())
    where = {"url": f"{server.url}/detail.safetensors", "sha256": "0" * 64}
    ingredients = Ingredients.model_validate({"loras": [where]})
    with pytest.raises(InputError, match="SHA-256"):
        open_source(parse_source(str(toy)), Silent(), ingredients)


def test_what_is_said_on_the_command_line_takes_the_place_of_the_recipes() -> None:
    recipe = Ingredients.model_validate({"base": "a/b", "loras": [{"path": "x.safetensors"}]})
    assert recipe.updated(Added().ingredients()) == recipe
    changed = recipe.updated(Added(prediction="v", loras=["y.safetensors=2"]).ingredients())
    assert (changed.base, changed.prediction) == ("a/b", "v")
    assert [(one.path, one.scale) for one in changed.loras] == [("y.safetensors", 2.0)]


@pytest.mark.parametrize(
    ("added", "problem"),
    [
        (Added(loras=["x.safetensors=900"]), "--lora: must be at most 100"),
        (Added(prediction="vv"), "--prediction: "),
        (Added(loras=["no such thing"]), "no such folder or file"),
    ],
)
def test_a_wrong_option_is_named(added: Added, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        added.ingredients()


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_user_knows_best_what_a_unet_predicts(
    toy: Path, tmp_path: Path, *, is_folder: bool
) -> None:
    """InvokeAI #7495, diffusers #9171: v-prediction that nothing in the files tells."""
    source, ingredients = toy, Ingredients(prediction="v")
    if not is_folder:
        source = tmp_path / "toy.safetensors"
        write_toy_file(source)
        ingredients = Ingredients(prediction="v", base=str(toy))
    before = open_checkpoint(toy)
    assert before.scheduler.get("prediction_type", "epsilon") == "epsilon"
    found = open_source(parse_source(str(source)), Silent(), ingredients)
    assert found.scheduler == {**before.scheduler, "prediction_type": "v_prediction"}
    with library_folder(found, "scheduler") as folder:
        assert json.loads((folder / "scheduler_config.json").read_text()) == found.scheduler
    told = found.origin.prediction if found.origin else ("v_prediction", "the recipe")
    assert told[0] == "v_prediction"
    assert "the recipe" in told[1]


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def done(self, text: str) -> None:
        self.lines.append(text)


def test_looking_at_urls_fetches_headers_of_file_base_and_lora(
    server: FileServer, toy: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("holes", "parts"):
        monkeypatch.setattr(f"convert.source.{module}.FIRST", 1 << 16)
    write_toy_file(tmp_path / "toy.safetensors")
    content = (tmp_path / "toy.safetensors").read_bytes()
    server.answers["/toy.safetensors"] = Answer(content, headers={"ETag": '"1"'})
    server.answers["/detail.safetensors"] = Answer(lora.read_bytes())
    added = Added(base=str(toy), loras=[f"{server.url}/detail.safetensors=0.5"]).ingredients()
    source, told = parse_source(f"{server.url}/toy.safetensors"), Told()
    with looked_at(source, told, added, token="hush") as gathered:
        found = gathered.checkpoint
        assert all(file.exists() for file in found.files.values())
    assert server.sent < len(content) // 20
    assert told.lines == []
    path = str(tmp_path / "toy.safetensors")
    wanted = gather(parse_source(path), Silent(), added).checkpoint
    for name, part in wanted.parts.items():
        assert {k: (t.shape, t.dtype) for k, t in part.tensors.items()} == {
            k: (t.shape, t.dtype) for k, t in found.parts[name].tensors.items()
        }
    assert [one.kinds for one in found.loras] == [one.kinds for one in wanted.loras]
    assert not list((tmp_path / "home").rglob("toy.safetensors"))
    before = server.sent
    gather(source, Silent(), added)  # what is kept whole is not asked for again
    assert server.sent - before == len(content)
    with looked_at(source, Silent(), added):
        assert server.sent - before == len(content)


def test_where_a_server_sends_no_parts_that_is_said_and_all_is_fetched(
    server: FileServer, toy: Path, tmp_path: Path
) -> None:
    write_toy_file(tmp_path / "toy.safetensors")
    content = (tmp_path / "toy.safetensors").read_bytes()
    server.answers["/toy.safetensors"] = Answer(content, ranges=False)
    source, told = parse_source(f"{server.url}/toy.safetensors?token=hush"), Told()
    with looked_at(source, told, Added(base=str(toy)).ingredients()):
        (line,) = told.lines
    assert "its headers cannot be had without the rest" in line
    assert "hush" not in line
    assert list((tmp_path / "home").rglob("toy.safetensors"))


def test_a_vae_comes_from_a_url_whose_secret_is_nowhere(
    server: FileServer, toy: Path, tmp_path: Path
) -> None:
    write_toy_file(tmp_path / "one.safetensors")
    vae = bare_ldm(tmp_path, toy)
    server.answers["/brighter.safetensors"] = Answer(vae.read_bytes())
    added = Added(base=str(toy), vae=f"{server.url}/brighter.safetensors?token=secret")
    assert "secret" not in json.dumps(added.values())
    source = parse_source(str(tmp_path / "one.safetensors"))
    found = gather(source, Silent(), added.ingredients())
    other = found.checkpoint.other_vae
    assert other is not None
    assert other.name == "brighter.safetensors"
    assert "secret" not in repr(other)
    (name,) = other.files
    digest = hashlib.sha256(vae.read_bytes()).hexdigest()
    assert found.snapshot.digests[found.checkpoint.files[name]] == digest
    assert found.checkpoint.vae.groups == 4  # as the base's, which no file says
