"""What an artifact was made with, beside what is given to compare it with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.origin import AppliedEmbedding, AppliedLora, AppliedVae
from convert.files.disk import digest_file
from convert.run import manifest
from verify.artifact.made_with import other_ingredients

FILES = ("a.safetensors", "b.safetensors", "renamed.safetensors")


@pytest.fixture
def plain(tmp_path: Path) -> Checkpoint:
    for name in FILES:
        (tmp_path / name).write_text(FILES[0] if name == FILES[2] else name)
    files = {name: tmp_path / name for name in FILES}
    return Checkpoint(tmp_path, "mine", files, {}, {}, {}, {})


def with_loras(plain: Checkpoint, *loras: tuple[str, float]) -> Checkpoint:
    return replace(plain, loras=tuple(AppliedLora(file, s, s, {}) for file, s in loras))


def lora_facts(plain: Checkpoint, *loras: tuple[str, float]) -> dict[str, Any]:
    return {
        "loras": [
            {"file": f"loras/{n}", "sha256": digest_file(plain.files[n]), **scales(s)}
            for n, s in loras
        ]
    }


def scales(value: float) -> dict[str, float]:
    return {"scale": value, "text_scale": value}


A, B = ("a.safetensors", 1.0), ("b.safetensors", 0.5)
CASES = [
    ((A, B), (A, B), ""),
    ((A,), (A, ("b.safetensors", 0.0)), ""),
    ((("renamed.safetensors", 1.0),), (A,), ""),
    ((A, B), (B, A), "the same LoRAs in another order"),
    ((A, A), (A,), "the checkpoint given has the LoRA a.safetensors at strength 1.0, with which"),
    ((A,), (("a.safetensors", 0.7),), "was made with the LoRA a.safetensors at strength 0.7, and"),
    ((), (A,), "was made with the LoRA a.safetensors at strength 1.0, and the checkpoint given ha"),
]


@pytest.mark.parametrize(("given", "made", "told"), CASES)
def test_loras_are_compared_by_digest_strength_and_order(
    plain: Checkpoint, monkeypatch: pytest.MonkeyPatch, given: Any, made: Any, told: str
) -> None:
    document = {"source": lora_facts(plain, *made)}
    monkeypatch.setattr("verify.artifact.made_with.read", lambda _: document)
    found = other_ingredients(plain.path, with_loras(plain, *given))
    assert told in found
    assert bool(told) == bool(found)


def test_every_kind_of_ingredient_is_compared(
    plain: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = {"x": digest_file(plain.files["a.safetensors"])}
    source = {
        "vae": {"name": "a", "files": digest},
        "embeddings": [{"words": ["styl", "stylb"], "files": digest}],
        "origin": {"ignored": [{"reason": "plain weights; the EMA ones are used"}]},
    }
    monkeypatch.setattr("verify.artifact.made_with.read", lambda _: {"source": source})
    told = other_ingredients(plain.path, plain)
    assert "made with EMA weights, the VAE a, the embedding `styl stylb`, and" in told
    same = replace(
        plain,
        other_vae=AppliedVae("another name", ("a.safetensors",), "", {}),
        embeddings=(AppliedEmbedding(("a.safetensors",), "e", ("styl", "stylb"), ()),),
    )
    assert "made with EMA weights, and" in other_ingredients(plain.path, same)


def test_of_what_is_no_artifact_of_ours_nothing_is_said(plain: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / manifest.FILE).write_text(json.dumps({"artifact": "x"}))
    given = with_loras(plain, A)
    assert other_ingredients(tmp_path, given) == other_ingredients(tmp_path / "x", given) == ""
