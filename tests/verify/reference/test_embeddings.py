"""Embeddings in the reference: diffusers adds them, and finds what our words would get wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.checkpoint.checkpoint import Checkpoint
from convert.embedding.apply import TABLE, Embedding, apply
from convert.embedding.rows import Stacked
from convert.lora.apply import Lora
from convert.lora.apply import apply as with_loras
from convert.opening.door import open_checkpoint
from tests.support.checkpoints import EOS, write_component
from tests.support.embeddings import FORMATS, vectors, write_embedding
from tests.support.loras import tensors_of, write_lora
from tests.support.single_files import single_file
from verify.question import Question
from verify.reference.embeddings import how_added
from verify.reference.recording import SMALLEST, record, token_ids
from verify.reference.reference import Reference, quiet
from verify.run import verify
from verify.sampling.schedulers import make_scheduler

pytestmark = pytest.mark.usefixtures("one_thread")
ENCODERS = ("text_encoder", "text_encoder_2")
PROMPT = "{} on a horse, the low horse"


@pytest.fixture
def style(base: Checkpoint, tmp_path: Path) -> Path:
    return write_embedding(tmp_path / "mystyle.safetensors", vectors(base, 3))


def library_states(checkpoint: Checkpoint, style: Path, prompt: str) -> dict[str, Tensor]:
    """A prompt's hidden and pooled states by diffusers' own pipeline and loader."""
    from diffusers import StableDiffusionXLPipeline
    from safetensors.torch import load_file
    from transformers import CLIPTokenizer

    with quiet(), torch.no_grad():
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            checkpoint.path,
            tokenizer=CLIPTokenizer.from_pretrained(checkpoint.path / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(checkpoint.path / "tokenizer_2"),
            scheduler=make_scheduler("euler", checkpoint.scheduler),
            add_watermarker=False,
        ).to(dtype=torch.float32)
        held = load_file(style)
        for key, encoder, tokenizer in (
            ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
            ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
        ):
            pipeline.load_textual_inversion(
                held[key], token="<s>", text_encoder=encoder, tokenizer=tokenizer
            )
            # Or it would pool at the embedding: transformers #24773.
            for module in encoder.modules():
                if hasattr(module, "eos_token_id"):
                    module.eos_token_id = EOS
        hidden, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    return {"hidden": hidden, "pooled": pooled}


def test_diffusers_own_way_gives_the_same_states(base: Checkpoint, style: Path) -> None:
    """diffusers #8854 and #5327: SDXL's embeddings, which it refuses as files."""
    made = apply(base, [Embedding(style)])
    wanted = library_states(base, style, PROMPT.format("<s>"))
    found = {}
    for encoder in ENCODERS:
        ids = token_ids(made, encoder, [PROMPT.format("mystyle mystyleb mystylec")])
        with Reference(made, encoder) as reference:
            found[encoder] = reference({"input_ids": ids.float()})
    hidden = torch.cat([found[encoder]["hidden_embeds"] for encoder in ENCODERS], dim=-1)
    assert torch.allclose(hidden, wanted["hidden"], atol=1e-5)
    assert torch.allclose(found["text_encoder_2"]["pooled_outputs"], wanted["pooled"], atol=1e-5)


@pytest.mark.parametrize("name", [n for n in FORMATS if "facts" not in n])
def test_the_libraries_read_the_values(name: str, base: Checkpoint, tmp_path: Path) -> None:
    ending, write = FORMATS[name]
    made = apply(base, [Embedding(write(tmp_path / f"mystyle{ending}", vectors(base)), "mystyle")])
    assert how_added(made) == "the reference has its embeddings added by diffusers"
    for encoder in ENCODERS:
        rows = made.parts[encoder].tensors[TABLE].read(np.float32)
        with Reference(made, encoder) as reference:
            assert reference.tokens is not None
            table = reference.parameters()[TABLE].detach().numpy()
            ids = reference.tokens.ids(PROMPT.format("<mystyle>"))
        assert (table == rows).all()
        assert (ids == token_ids(made, encoder, [PROMPT.format("mystyle mystyleb")])).all()


def test_a_vector_in_another_s_place_is_seen(base: Checkpoint, style: Path) -> None:
    made = apply(base, [Embedding(style)])
    part = made.parts["text_encoder"]
    table = part.tensors[TABLE]
    assert isinstance(table, Stacked)
    wrong = table.read(np.float32)
    wrong[[EOS + 1, EOS + 2]] = wrong[[EOS + 2, EOS + 1]]
    with Reference(made, "text_encoder") as reference:
        right = reference.parameters()[TABLE].detach().numpy()
    assert not (wrong == right).all()


def test_a_word_that_is_spelled_wrongly_is_seen(base: Checkpoint, style: Path) -> None:
    made = apply(base, [Embedding(style)])
    lost = {  # the merges are not there, as if a file had been cut off
        name: replace(own, merges=base.tokenizers[name].merges)
        for name, own in made.tokenizers.items()
    }
    documents = {**made.documents}
    for name, own in lost.items():
        documents[f"{name}/merges.txt"] = own.merges
    broken = replace(made, tokenizers=lost, documents=documents)
    case = record(broken, ["text_encoder"], resolution=SMALLEST).cases["text_encoder"][-1]
    with Reference(made, "text_encoder") as reference:
        outputs = reference(case.inputs)
    assert case.name == "embedding mystyle"
    difference = outputs["hidden_embeds"] - case.outputs["hidden_embeds"]
    assert difference.abs().max() > 0.1


def test_each_embedding_has_a_case_of_its_own(
    base: Checkpoint, style: Path, tmp_path: Path
) -> None:
    only = tmp_path / "onlyg.safetensors"
    write_embedding(only, {"text_encoder_2": vectors(base, 2, seed=1)["text_encoder_2"]})
    made = apply(base, [Embedding(only), Embedding(style)])
    recording = record(made, ENCODERS, resolution=SMALLEST)
    names = {name: [case.name for case in cases] for name, cases in recording.cases.items()}
    assert names["text_encoder"][4:] == ["embedding mystyle"]
    assert names["text_encoder_2"][4:] == ["embedding onlyg", "embedding mystyle"]
    for encoder in ENCODERS:  # diffusers' ids are others here: it knows one embedding alone
        with Reference(made, encoder) as reference:
            table = reference.parameters()[TABLE].detach().numpy()
        assert (table == made.parts[encoder].tensors[TABLE].read(np.float32)).all()


def test_what_the_libraries_do_not_read_is_said(
    base: Checkpoint, style: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = apply(base, [Embedding(style)])

    def fails(_: object) -> None:
        raise ValueError("no such format")

    monkeypatch.setattr("diffusers.models.model_loading_utils.load_state_dict", fails)
    assert how_added(made) == (
        "the reference has the values of mystyle.safetensors from this tool's reader, because the "
        "libraries cannot read them"
    )
    with Reference(made, "text_encoder") as reference:
        table = reference.parameters()[TABLE].detach().numpy()
    assert (table == made.parts["text_encoder"].tensors[TABLE].read(np.float32)).all()
    assert how_added(base) == ""


def test_a_single_file_with_a_lora_has_its_embeddings_added_last(
    base: Checkpoint, style: Path, tmp_path: Path
) -> None:
    file = open_checkpoint(single_file(tmp_path / "one.safetensors", base.path), base=base)
    name = "encoder.layers.0.self_attn.q_proj"
    shape = base.parts["text_encoder_2"].tensors[f"{name}.weight"].shape
    modules = {f"text_encoder_2.{name}": tensors_of("DoRA of outputs", shape)}
    merged, _ = with_loras(file, [Lora(write_lora(tmp_path / "lora.safetensors", modules))])
    made = apply(merged, [Embedding(style)])
    for encoder in ENCODERS:
        with Reference(made, encoder) as reference, Reference(merged, encoder) as before:
            found, plain = reference.parameters(), before.parameters()
            assert found.keys() == plain.keys()
            for key in found.keys() - {TABLE}:
                assert torch.equal(found[key], plain[key]), key
            rows = made.parts[encoder].tensors[TABLE].read(np.float32)
            assert (found[TABLE].detach().numpy() == rows).all()
    artifact = tmp_path / "TextEncoder2.mlpackage"
    write_component(artifact, made, "text_encoder_2")
    results = verify(artifact, made, Question(components=["text_encoder_2"]))
    assert results.verdict == "pass"
    assert "text_encoder, text_encoder_2 by diffusers' own converters" in results.scope
    assert "has the merged values of this tool's reader, because" in results.scope
    assert results.scope.endswith("the reference has its embeddings added by diffusers")
