"""What the converter stores is what the checker's rule says, for tensors of every awkward shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.checkpoint.tensors import StoredTensor
from convert.components import COMPONENTS
from convert.errors import InputError
from convert.networks.build import build_network
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import MANIFEST, MODEL, Description, manifest, serialise
from convert.plan.plan import Job, make_plan
from convert.recipe.recipe import Recipe, parse_recipe
from convert.run.manifest import CompressionRequest, TensorRequest
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import FORMATS, Bits, Resolution
from convert.weights.compress import Compression, Method, choose_method, is_compressible
from convert.weights.weight_file import layout
from tests.support.checkpoints import make_checkpoint
from tests.support.packages import edit_manifest
from verify.artifact.graph import count_weights
from verify.levels.stored_bits import deviations
from verify.mil import Program, load_program
from verify.question import Question
from verify.run import verify

# Widths that neither 32 nor any group divides, and tensors just above and below what is compressed.
AWKWARD: dict[str, Any] = {
    "unet": {
        "block_out_channels": (58, 87),
        "norm_num_groups": 29,
        "attention_head_dim": (2, 3),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "layers_per_block": 1,
    },
    "vae": {"block_out_channels": (15, 30, 30, 45), "norm_num_groups": 15},
    "text": {"hidden_size": 33, "intermediate_size": 67, "projection_dim": 31},
    "text_2": {"hidden_size": 95, "intermediate_size": 101, "projection_dim": 31},
}
INPAINTING = {**AWKWARD, "unet": {**AWKWARD["unet"], "in_channels": 9}}
ROUND = {**AWKWARD, "unet": {}, "vae": {}, "text": {}, "text_2": {"hidden_size": 80}}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("awkward")
    shapes = {"four": AWKWARD, "nine": INPAINTING, "round": ROUND}
    return {n: open_checkpoint(make_checkpoint(folder / n, **s)) for n, s in shapes.items()}


def recipe_of(bits: Iterable[str], target: str, compress: str = "", vae: str = "") -> Recipe:
    own = f"components = {{ {vae} }}\n" if vae else ""
    return parse_recipe(
        'name = "a"\nsource.path = "a"\n'
        f'matrix = {{ attention = ["original"], resolution = ["64x64"], bits = {list(bits)} }}\n'
        f'target.deployment = "{target}"\n[compress]\n{own}{compress}',
        where="test",
    )


def program_of(folder: Path, checkpoint: Checkpoint, job: Job) -> Program:
    """A package without its weight file: how weights are stored is told without one."""
    component = COMPONENTS[job.component]
    network = build_network(
        checkpoint,
        job.component,
        resolution=Resolution(64, 64),
        attention="original",
        dtype=np.dtype(job.precision),
        deployment=job.deployment,
        compression=job.compression,
    )
    about = Description("a test", "nobody", "none", "1", *component.texts)
    plan = layout(network.blobs.values())
    folder.joinpath(MODEL).parent.mkdir(parents=True)
    model = serialise(network, plan, about, format=FORMATS[job.deployment])
    folder.joinpath(MODEL).write_bytes(model)
    folder.joinpath(MANIFEST).write_bytes(manifest())
    return load_program(folder)


def formats_of(
    folder: Path, checkpoint: Checkpoint, recipe: Recipe, components: Iterable[str] = ()
) -> set[str]:
    """Checks every package of the recipe's plan; returns the formats that were found."""
    plan = make_plan(recipe, checkpoint, components=components)
    programs = {
        job: program_of(folder / f"{number}.mlpackage", checkpoint, job)
        for number, job in enumerate(plan.jobs)
    }
    for artifact in plan.artifacts:
        for component, job in artifact.jobs.items():
            own = getattr(recipe.compress.components, component)
            asked = CompressionRequest(bits=own, group_size=recipe.compress.group_size)
            bits = artifact.artifact.bits
            wrong = list(deviations(programs[job], component, checkpoint, bits, asked))
            assert not wrong, (job, wrong)
    return {name for program in programs.values() for name in count_weights(program).formats}


@pytest.mark.parametrize(
    ("target", "widths"),
    [
        ("macOS14", ("16", "8", "6", "4", "2", "1", "int8", "mixed-4.5")),
        ("iOS18", ("16", "8", "6", "4", "3", "2", "1", "int8", "int4", "mixed-4.5")),
        ("macOS26", ("3", "int4")),
    ],
)
def test_every_width_is_stored_as_the_rule_says(
    awkward: Mapping[str, Checkpoint], target: str, widths: tuple[str, ...], tmp_path: Path
) -> None:
    found = formats_of(tmp_path, awkward["four"], recipe_of(widths, target))
    names = {"16": "fp16", "int8": "int8 linear", "int4": "int4 linear", "mixed-4.5": "fp16"}
    assert {names.get(width, f"{width}-bit palette") for width in widths} <= found


@pytest.mark.parametrize(("target", "widths"), [("iOS17", ("int8",)), ("macOS15", ("int4", "4"))])
def test_so_it_is_with_the_nine_channels_of_inpainting(
    awkward: Mapping[str, Checkpoint], target: str, widths: tuple[str, ...], tmp_path: Path
) -> None:
    recipe = recipe_of(widths, target)
    assert "int8 linear" in formats_of(tmp_path, awkward["nine"], recipe, ["unet"])


@pytest.mark.parametrize(
    ("target", "width"), [("macOS14", "int8"), ("macOS14", "4"), ("iOS18", "int4"), ("iOS18", "3")]
)
def test_so_it_is_with_a_vae_in_float32(
    awkward: Mapping[str, Checkpoint], target: str, width: str, tmp_path: Path
) -> None:
    recipe = recipe_of(["6"], target, vae=f'vae_decoder = "{width}", vae_encoder = "{width}"')
    components = ["vae_decoder", "vae_encoder"]
    found = formats_of(tmp_path, awkward["four"], recipe, components)
    assert found - {"fp32"}


def refusal(recipe: Recipe, checkpoint: Checkpoint) -> str:
    """Why the UNet cannot be planned, or nothing."""
    try:
        make_plan(recipe, checkpoint, components=["unet"])
    except InputError as error:
        return str(error)
    return ""


def test_groups_are_as_asked_or_refused_before_any_work(
    awkward: Mapping[str, Checkpoint], tmp_path: Path
) -> None:
    """120 channels in groups of 16, for example, which coremltools leaves ungrouped unasked."""
    planned = []
    for name, size in itertools.product(("four", "round"), (4, 5, 8, 16, 29, 32, 48, 58, 64)):
        recipe = recipe_of(["4"], "iOS18", f"group_size = {size}")
        tensors = awkward[name].component_tensors("unet")
        large = {n: t.shape[0] for n, t in tensors.items() if is_compressible(n, t)}
        undivided = {n for n, channels in large.items() if channels > size and channels % size}
        problem = refusal(recipe, awkward[name])
        assert bool(problem) == bool(undivided)
        if problem:
            assert any(f"`{n}`" in problem for n in undivided)
        else:
            planned.append((name, size))
    assert {("four", 29), ("round", 16)} <= set(planned)
    widths = ["4", "mixed-5.0"]
    for size in (8, 16):
        recipe = recipe_of(widths, "iOS18", f"group_size = {size}")
        found = formats_of(tmp_path / str(size), awkward["round"], recipe, ["unet"])
        assert "4-bit palettes" in found


def test_the_first_convolution_has_bytes_of_its_own(
    awkward: Mapping[str, Checkpoint], tmp_path: Path
) -> None:
    plan = make_plan(recipe_of(["int4"], "macOS15"), awkward["four"], components=["unet"])
    (job,) = plan.jobs
    tensors = awkward["four"].component_tensors("unet")
    assert tensors["conv_in.weight"].shape == (58, 4, 3, 3)
    assert job.compression.method("conv_in.weight") == Method("int8")
    program = program_of(tmp_path / "a.mlpackage", awkward["four"], job)
    weights = count_weights(program)
    assert weights.formats["int8 linear"] >= 58 * 36


@pytest.mark.parametrize("channels", [1, 2])
def test_what_would_take_no_fewer_bytes_stays(channels: int) -> None:
    tensor = StoredTensor("a.weight", "F16", (4096, channels), Path("none"), 0)
    for bits in ("int8", "int4"):
        assert choose_method("x.weight", tensor, bits) is None
    assert choose_method("x.weight", tensor, "4") == Method("4")


# ---- what strays from the rule is found ----

TEXT = "encoder.layers.0.mlp.fc1.weight"  # 101 × 95
CHANGES: dict[str, tuple[str, Callable[[dict[str, Method | None]], Any], str]] = {
    "int8 where int4 fits": (
        "int4",
        lambda m: m.update({"text_projection.weight": Method("int8")}),
        "text_projection.weight [64, 96] is stored as int8 with 64×1 scales; int4 makes it int4 "
        "with 64×3 scales",
    ),
    "one that was left out": ("6", lambda m: m.update({TEXT: None}), "is stored as float16; 6 m"),
    "another width": ("6", lambda m: m.update({TEXT: Method("8")}), "stored as 8-bit palette; 6 m"),
    "a palette for integers": (
        "int8",
        lambda m: m.update({TEXT: Method("8")}),
        "is stored as 8-bit palette; int8 makes it int8 with",
    ),
    "groups that nobody asked for": (
        "4",
        lambda m: m.update({"text_projection.weight": Method("4", 16)}),
        "is stored as 4-bit palettes, 4×1 of them; 4 makes it 4-bit palette",
    ),
    "an embedding": (
        "4",
        lambda m: m.update({"embeddings.token_embedding.weight": Method("4")}),
        "token_embedding.weight [534, 96] is stored as 4-bit palette; 4 makes it float16",
    ),
    "any at 16 bits": ("16", lambda m: None, "is stored as 4-bit palette; 16 makes it float16"),
    "integers in a mixture": (
        "mixed-8.5",
        lambda m: m.update({TEXT: Method("int8")}),
        "is stored as int8 with",
    ),
    "more than the average": (
        "mixed-4.5",
        lambda m: m.update(dict.fromkeys(m, Method("8"))),
        "bits; mixed-4.5 promises no more",
    ),
}


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    text = {"hidden_size": 96, "num_attention_heads": 4, "projection_dim": 64}
    folder = tmp_path_factory.mktemp("even") / "even"
    return open_checkpoint(make_checkpoint(folder, text={"intermediate_size": 96}, text_2=text))


@pytest.mark.parametrize("case", CHANGES)
def test_what_strays_from_the_rule_is_found(even: Checkpoint, case: str, tmp_path: Path) -> None:
    bits, change, says = CHANGES[case]
    component = "text_encoder_2"
    (job,) = make_plan(
        recipe_of(["4" if bits in ("16", "mixed-4.5", "mixed-8.5") else bits], "iOS18"),
        even,
        components=[component],
    ).jobs
    right = program_of(tmp_path / "right.mlpackage", even, job)
    if bits != "16":
        assert not list(deviations(right, component, even, bits, CompressionRequest()))
    methods: dict[str, Method | None] = dict(job.compression.methods)
    change(methods)
    wrong = replace(job, compression=Compression.of(methods))
    program = program_of(tmp_path / "wrong.mlpackage", even, wrong)
    found = list(deviations(program, component, even, bits, CompressionRequest()))
    assert any(says in text for text in found), found


def test_bits_of_its_own_are_those_that_were_asked(even: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_of(
        ["6"],
        "iOS18",
        f'tensors = [{{ component = "text_encoder_2", name = "{TEXT}", bits = "int4" }}]',
    )
    (job,) = make_plan(recipe, even, components=["text_encoder_2"]).jobs
    program = program_of(tmp_path / "a.mlpackage", even, job)
    own = CompressionRequest(tensors={TEXT: TensorRequest(bits=Bits("int4"))})
    assert not list(deviations(program, "text_encoder_2", even, "6", own))
    assert list(deviations(program, "text_encoder_2", even, "6", CompressionRequest()))
    assert list(deviations(program, "text_encoder_2", even, "16", own))


def test_a_finished_artifact_says_what_was_asked_of_it(even: Checkpoint, tmp_path: Path) -> None:
    recipe = recipe_of(
        ["int4"],
        "macOS15",
        "group_size = 8\n"
        f'tensors = [{{ component = "text_encoder_2", name = "{TEXT}", bits = "2" }}]',
        vae='text_encoder = "8"',
    )
    components = ["text_encoder", "text_encoder_2"]
    plan = make_plan(recipe, even, components=components)
    (made,) = run(plan, Snapshot(even.path, None, None, ()), tmp_path / "out")
    told = made.manifest["compression"]
    assert told["text_encoder"]["asked"] == {"bits": "8", "group_size": 8}
    assert told["text_encoder_2"]["asked"] == {
        "group_size": 8,
        "tensors": {TEXT: {"bits": "2"}},
    }

    def failures() -> set[str]:
        results = verify(made.path, even, Question(levels=["structure"], components=components))
        return {f"{c.component}/{c.case}" for c in results.failures} - {"artifact/components"}

    assert failures() == set()
    for asked, expected in (
        ({"bits": "6"}, {"text_encoder/bits"}),
        ({}, {"text_encoder/bits"}),
        ({"bits": "5"}, {"artifact/manifest", "text_encoder/bits"}),
        ({"group_size": 0}, {"artifact/manifest", "text_encoder/bits"}),
    ):
        entry = {**told["text_encoder"], "asked": asked}
        edit_manifest(made.path, compression={**told, "text_encoder": entry})
        assert failures() == expected, asked
