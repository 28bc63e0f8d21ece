"""What a package is said to be is what its files say, and never a guess."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert import units
from convert.components import COMPONENTS
from convert.errors import CannotExecute, InputError
from convert.networks.build import build_network
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import MODEL, WEIGHTS, Description
from convert.toy.random_checkpoint import SMALL, write_checkpoint
from convert.values import FORMATS, Resolution
from tests.support.packages import write_package
from verify.artifact.graph import image_size, infer_attention, infer_component
from verify.artifact.inspect import ModelFacts, inspect
from verify.mil import Constant, Feature, Op, TensorType, load_program

ct = pytest.importorskip("coremltools")

Make = Callable[..., Path]  # component, attention, size → a package

# One level with attention, so that 192×192 pixels make 576 queries: two chunks of 512.
TINY = replace(
    SMALL,
    unet={
        **SMALL.unet,
        "block_out_channels": [32],
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "attention_head_dim": [2],
        "transformer_layers_per_block": [1],
        "layers_per_block": 1,
    },
    text_encoder={**SMALL.text_encoder, "num_hidden_layers": 2},
    text_encoder_2={**SMALL.text_encoder_2, "num_hidden_layers": 2},
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """component, attention → its package, made once."""
    root = tmp_path_factory.mktemp("inspect")
    write_checkpoint(root / "tiny", TINY, words=["cat"])
    checkpoint = open_checkpoint(root / "tiny")
    made = {}

    def package(
        component: str, attention: str = "original", size: tuple[int, int] = (128, 192)
    ) -> Path:
        key = component, attention, size
        if key not in made:
            spec = COMPONENTS[component]
            network = build_network(
                checkpoint,
                component,
                resolution=Resolution(*size),
                attention=attention,
                dtype=np.float32 if component.startswith("vae") else np.float16,
                deployment="macOS14",
            )
            path = root / f"{len(made)}" / f"{spec.file}.mlpackage"
            path.parent.mkdir()
            about = Description("short", "who", "mine", "7", *spec.texts, {"k": "v"})
            write_package(path, network, about, format=FORMATS["macOS14"])
            made[key] = path
        return made[key]

    return package


def one(path: Path) -> ModelFacts:
    (model,) = inspect(path).models
    return model


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_and_image_size_come_from_the_interface(
    make: Make, component: str, tmp_path: Path
) -> None:
    renamed = tmp_path / "anything.mlpackage"
    shutil.copytree(make(component), renamed)
    model = one(renamed)
    assert model.component == component
    assert model.image_size == (None if component.startswith("text") else Resolution(128, 192))
    assert (model.specification_version, model.opset) == (8, "CoreML7")
    assert [f.name for f in model.inputs] == list(COMPONENTS[component].inputs)
    assert model.inputs[0].description == next(iter(COMPONENTS[component].texts[0].values()))


def test_a_size_that_no_sdxl_has_is_told_by_the_shapes_alone(make: Make) -> None:
    program = load_program(make("vae_decoder"))
    assert image_size(program, "vae_decoder") == Resolution(128, 192)
    program.outputs[:] = [Feature("image", "fp32", (1, 3, 100, 90))]
    assert image_size(program, "vae_decoder") is None


@pytest.mark.parametrize("attention", ["original", "split_einsum", "split_einsum_v2"])
def test_attention_is_read_from_the_graph(make: Make, attention: str) -> None:
    model = one(make("unet", attention, (192, 192)))
    assert model.attention == attention
    assert bool(model.ops.get("einsum")) == (attention != "original")


def test_v2_without_a_second_chunk_is_the_same_graph_as_split_einsum(make: Make) -> None:
    assert one(make("unet", "split_einsum_v2", (64, 64))).attention == "split_einsum"


def test_only_a_unet_has_an_attention_implementation(make: Make) -> None:
    assert one(make("vae_decoder")).attention is None
    assert one(make("text_encoder")).attention is None


def changed(make: Make, attention: str, change: Callable[[list[Op]], None]) -> str | None:
    program = load_program(make("unet", attention, (192, 192)))
    change([op for op in program.ops if op.type in ("softmax", "matmul", "einsum")])
    return infer_attention(program)


def test_a_graph_that_is_none_of_ours_is_unknown_not_guessed(make: Make) -> None:
    def first_of(kind: str, **to: Any) -> Callable[[list[Op]], None]:
        def change(ops: list[Op]) -> None:
            op = next(op for op in ops if op.type == kind)
            for key, value in to.items():
                setattr(op, key, value)

        return change

    def other_equation(ops: list[Op]) -> None:
        op = next(op for op in ops if op.type == "einsum")
        text = Constant(TensorType("string", ()), np.array("nchw,nwhu->nuhc"))
        op.inputs["equation"] = [text]

    fused = first_of("matmul", type="scaled_dot_product_attention")
    assert changed(make, "original", fused) == "unknown"
    assert changed(make, "split_einsum", first_of("einsum", type="matmul")) == "unknown"
    assert changed(make, "split_einsum", first_of("softmax", type="exp")) == "unknown"
    assert changed(make, "split_einsum", other_equation) == "unknown"


def test_letters_of_an_einsum_do_not_matter(make: Make) -> None:
    def rename(ops: list[Op]) -> None:
        text = Constant(TensorType("string", ()), np.array("bkhc,bchq->bkhq"))
        for op in ops:
            if op.type == "einsum":
                op.inputs["equation"] = [text]

    assert changed(make, "split_einsum_v2", rename) == "split_einsum_v2"


def test_an_interface_that_is_none_of_ours_has_no_component(make: Make) -> None:
    program = load_program(make("vae_decoder"))
    program.inputs[0] = replace(program.inputs[0], name="latent")
    assert infer_component(program) is None


def test_weights_and_digests_are_those_of_the_files(make: Make) -> None:
    path = make("vae_encoder")
    model = one(path)
    weights = path / WEIGHTS
    constants = [c for _, c in load_program(path).constants() if c.file]
    assert model.weights.bytes == weights.stat().st_size
    assert model.weights.elements == sum(c.array().size for c in constants)
    assert model.weights.formats == {"fp32": model.weights.elements}
    assert model.weights.bits_per_weight == pytest.approx(32, rel=0.01)
    for name in (MODEL, WEIGHTS):
        data = (path / name).read_bytes()
        fact = model.files[str(name)]
        assert (fact.bytes, fact.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert model.bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def compressed(tmp_path: Path, target: str, compress: Callable[[Any], Any]) -> ModelFacts:
    from coremltools.converters.mil import Builder as mb

    @mb.program(input_specs=[mb.TensorSpec((1, 32, 8, 8))], opset_version=target)
    def program(x: Any) -> Any:
        weight = np.random.default_rng(0).standard_normal((64, 32, 3, 3)).astype(np.float32)
        return mb.conv(x=x, weight=weight)

    model = ct.convert(program, minimum_deployment_target=target, skip_model_load=True)
    path = tmp_path / "compressed.mlpackage"
    compress(model).save(str(path))
    return one(path)


def config(cls: str, **settings: Any) -> Any:
    import coremltools.optimize.coreml as cto

    return cto.OptimizationConfig(global_config=getattr(cto, cls)(**settings))


def test_bits_per_weight_of_a_palette_are_those_on_disk(tmp_path: Path) -> None:
    def palettize(model: Any) -> Any:
        settings = config("OpPalettizerConfig", mode="uniform", nbits=6)
        return ct.optimize.coreml.palettize_weights(model, settings)

    model = compressed(tmp_path, ct.target.iOS17, palettize)
    assert model.weights.formats == {"6-bit palette": 64 * 32 * 9}
    assert 6 < model.weights.bits_per_weight < 6.5


def test_grouped_palettes_and_integers_of_ios18(tmp_path: Path) -> None:
    def palettize(model: Any) -> Any:
        settings = config(
            "OpPalettizerConfig",
            mode="uniform",
            nbits=3,
            granularity="per_grouped_channel",
            group_size=16,
        )
        return ct.optimize.coreml.palettize_weights(model, settings)

    def quantize(model: Any) -> Any:
        settings = config("OpLinearQuantizerConfig", dtype="int4", granularity="per_channel")
        return ct.optimize.coreml.linear_quantize_weights(model, settings)

    model = compressed(tmp_path, ct.target.iOS18, palettize)
    assert model.weights.formats == {"3-bit palettes": 64 * 32 * 9}
    assert 3 < model.weights.bits_per_weight < 4
    (tmp_path / "int").mkdir()
    model = compressed(tmp_path / "int", ct.target.iOS18, quantize)
    assert model.weights.formats == {"int4 linear": 64 * 32 * 9}
    assert 4 < model.weights.bits_per_weight < 4.5


@pytest.fixture
def artifact(make: Make, tmp_path: Path) -> Path:
    """A folder with three linked packages and a manifest."""
    for component in ("vae_decoder", "unet", "text_encoder"):
        package = make(component)
        shutil.copytree(package, tmp_path / "name" / package.name, copy_function=os.link)
    (tmp_path / "name/manifest.json").write_text('{"artifact": "tiny_original"}')
    (tmp_path / "name/vocab.json").write_text("{}")
    return tmp_path / "name"


def test_an_artifact_lists_its_models_in_the_bundles_order(artifact: Path) -> None:
    found = inspect(artifact)
    assert [m.file for m in found.models] == [
        "TextEncoder.mlpackage",
        "Unet.mlpackage",
        "VAEDecoder.mlpackage",
    ]
    value = json.loads(json.dumps(found.to_json()))
    assert value["schema"] == 1
    assert value["manifest"] == {"artifact": "tiny_original"}
    assert value["bytes"] == sum(m["bytes"] for m in value["models"])
    unet = value["models"][1]
    assert (unet["attention"], unet["image_size"]) == ("original", "128x192")
    assert unet["inputs"][0]["shape"] == [2, 4, 24, 16]
    assert unet["weights"]["bits_per_weight"] == pytest.approx(16, rel=0.05)
    assert unet["user_defined"] == {"k": "v"}


def test_the_text_reads_well_at_any_width(artifact: Path) -> None:
    text = inspect(artifact).lines(80)
    assert text[0].startswith("tiny_original: 3 models, ")
    unet = text[text.index("Unet.mlpackage") :]
    assert unet[1] == "  component    unet, attention original, 128x192"
    assert "  inputs       sample                 fp16  2 × 4 × 24 × 16" in unet
    assert "  metadata     k = v" in unet
    digests = [line for line in text if "weight.bin" in line]
    assert all(
        len(line) <= 80
        for line in text
        if ".bin" not in line and ".mlmodel" not in line and "Manifest" not in line
    )
    assert len(digests) == 3
    assert not any("\u00a0" in line or line != line.rstrip() for line in text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999_600, "1.00 MB"),
        (624_000, "624 kB"),
        (5_134_000_000, "5.13 GB"),
        (12_340_000, "12.3 MB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert units.size(count) == text
    assert units.count(2_567_000_000) == "2.57 G"


def test_what_cannot_be_inspected_is_named(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such package or folder"):
        inspect(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no .mlpackage or .mlmodelc\n.*: name\."):
        inspect(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Give an artifact's folder"):
        inspect(tmp_path / "empty")
    (artifact / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        inspect(artifact)
    (tmp_path / "Unet.mlmodelc").mkdir()
    with pytest.raises(CannotExecute, match="compiled ML Program"):
        inspect(tmp_path / "Unet.mlmodelc")
    (artifact / "Unet.mlpackage" / MODEL).unlink()
    with pytest.raises(InputError, match="model file is missing"):
        inspect(artifact / "Unet.mlpackage")


def test_a_package_without_its_weights_is_named(make: Make, tmp_path: Path) -> None:
    package = Path(shutil.copytree(make("text_encoder"), tmp_path / "a.mlpackage"))
    (package / WEIGHTS).unlink()
    with pytest.raises(InputError, match="the weight file is missing"):
        inspect(package)
