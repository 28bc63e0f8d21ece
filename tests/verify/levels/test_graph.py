"""Level `graph`: sound programs of every kind pass, every fault of a graph is caught and named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.networks.build import build_network
from convert.opening.door import open_checkpoint
from convert.package.mlpackage import MODEL
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import ATTENTIONS, DeploymentTarget, Resolution
from convert.weights.compress import BLOCK, Compression, Method, is_compressible
from release.compile.mlmodelc import compile_package
from release.pack.aliases import aliased
from tests.support.checkpoints import edit_checkpoint, make_checkpoint, write_component
from tests.support.graph_faults import GRAPH_FAULTS, exchange_graph, plant
from verify.artifact.ours import our_program
from verify.artifact.probe import probe_package
from verify.equivalence.sizes import small_size
from verify.judge.checks import Check
from verify.levels.graph import check_graph
from verify.mil import Program, load_program
from verify.question import Question
from verify.run import verify

SIZE = (192, 264)  # latents of 24 x 33: two chunks of queries, an odd level, height is not width
# A UNet whose attentions all have heads to exchange, and a VAE; as few ops as that takes.
UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": (2, 2),
    "layers_per_block": 1,
}
KINDS = [(attention, bits) for attention in ATTENTIONS for bits in ("16", "6")]
NOWHERE = {  # faults for which a network has no place
    "original": {"gap_between_chunks", "overlap_of_chunks", "chunk_unlike_its_siblings"},
    "split_einsum": {
        "gap_between_chunks",
        "overlap_of_chunks",
        "chunk_unlike_its_siblings",
        "transposed",
    },
    "split_einsum_v2": {"transposed"},
}
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(make_checkpoint(tmp_path_factory.mktemp("graph") / "c", unet=UNET))


@pytest.fixture(scope="module")
def packages(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """UNets by attention and bits; each is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("packages")

    def make(attention: str, bits: str) -> Path:
        path = folder / f"{attention}_{bits}.mlpackage"
        if not path.exists():
            write_component(path, checkpoint, "unet", size=SIZE, attention=attention, bits=bits)
        return path

    return make


def judged(program: Program, component: str, source: Checkpoint, **options: Any) -> dict[str, str]:
    """What the level found wrong, by case; nothing of a program that passes."""
    checks = check_graph(program, component, source, **options)
    assert checks
    assert {check.level for check in checks} == {"graph"}
    return {c.case: c.message for c in checks if c.verdict != "pass"}


def probed(package: Path, source: Checkpoint, folder: Path, component: str = "unet") -> Program:
    """The program that would be executed in a package's place."""
    program = load_program(package)
    size = small_size(source, {component: [program]})
    return load_program(probe_package(program, component, source, folder, size=size))


# ---- what is sound ----


@pytest.mark.parametrize("number", range(20))
def test_a_sound_program_of_any_size_is_the_small_one(checkpoint: Checkpoint, number: int) -> None:
    rng = random.Random(number)
    component = ("unet", "unet", "vae_decoder", "vae_encoder")[number % 4]
    deployment: DeploymentTarget = rng.choice(("macOS14", "iOS18"))
    bits = rng.choice(("16", "8", "6", "1", "int8") + (("3", "int4") * (deployment == "iOS18")))
    network = build_network(
        checkpoint,
        component,
        resolution=Resolution(8 * rng.randint(2, 90), 8 * rng.randint(2, 90)),
        attention=rng.choice(ATTENTIONS),
        dtype=rng.choice((np.float16, np.float32)),
        deployment=deployment,
        compression=Compression.uniform(checkpoint.component_tensors(component), bits),
    )
    assert judged(our_program(network, component, deployment), component, checkpoint) == {}


def test_weights_stored_in_many_ways_are_told_by_their_places(checkpoint: Checkpoint) -> None:
    """Mixed bits, palettes for groups of channels, integers: a tensor each."""
    rng = random.Random(0)
    methods = [Method("4", 4), Method("2"), Method("6"), Method("int8"), Method("int4"), None]
    tensors = checkpoint.component_tensors("unet")
    wanted = {
        name: rng.choice(methods)
        for name, tensor in tensors.items()
        if is_compressible(name, tensor) and tensor.shape[1] % BLOCK == 0
    }
    assert len({*wanted.values()}) == len(methods)
    network = build_network(
        checkpoint, "unet", resolution=Resolution(*SIZE), attention="split_einsum",
        dtype=np.float16, deployment="macOS15", compression=Compression.of(wanted),
    )  # fmt: skip
    assert judged(our_program(network, "unet", "macOS15"), "unet", checkpoint) == {}


@pytest.mark.parametrize("component", ["vae_decoder", "vae_encoder"])
def test_the_scale_of_latents_is_part_of_the_graph(
    checkpoint: Checkpoint, component: str, tmp_path: Path
) -> None:
    source = edit_checkpoint(checkpoint, tmp_path, "vae", config={"scaling_factor": 0.2})
    network = build_network(
        source, component, resolution=Resolution(*SIZE), attention=None, dtype=np.float16,
        deployment="macOS14",
    )  # fmt: skip
    program = our_program(network, component, "macOS14")
    assert judged(program, component, source) == {}
    found = judged(program, component, checkpoint)
    assert "more than expected" in found["ops"] or "is expected" in found["ops"]


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_is_the_one_made_anew(
    checkpoint: Checkpoint, component: str, tmp_path: Path
) -> None:
    package = write_component(tmp_path / "a.mlpackage", checkpoint, component, bits="8")
    assert judged(load_program(package), component, checkpoint) == {}
    other = edit_checkpoint(checkpoint, tmp_path, component, config={"eos_token_id": 300})
    assert "pooled_equal" in str(judged(load_program(package), component, other))


def test_an_executed_program_stands_in_the_small_ones_place(
    checkpoint: Checkpoint, packages: Make, tmp_path: Path
) -> None:
    package = packages("split_einsum_v2", "6")
    small = probed(package, checkpoint, tmp_path / "near")
    checks = check_graph(load_program(package), "unet", checkpoint, executed=small)
    assert {check.verdict for check in checks} == {"pass"}
    assert any("the executed program for" in check.gate for check in checks)
    # Small enough, split_einsum is split_einsum_v2 with one chunk; its weights have the same bytes.
    other = probed(packages("split_einsum", "6"), checkpoint, tmp_path / "other")
    assert judged(load_program(package), "unet", checkpoint, executed=other) == {}
    # With few queries it has one chunk itself, and says no more than that it is split_einsum.
    few = build_network(
        checkpoint, "unet", resolution=Resolution(80, 112), attention="split_einsum_v2",
        dtype=np.float16, deployment="macOS14",
    )  # fmt: skip
    cut = build_network(
        checkpoint, "unet", resolution=Resolution(208, 176), attention="split_einsum_v2",
        dtype=np.float16, deployment="macOS14",
    )  # fmt: skip
    one, other = (our_program(network, "unet", "macOS14") for network in (few, cut))
    for constant in (*dict(one.constants()).values(), *dict(other.constants()).values()):
        if constant.file is not None:
            constant.file.path = other.path  # one weight file, which is nowhere
    assert judged(one, "unet", checkpoint, executed=other) == {}
    # One whose weight file is another one, of the same bytes or not.
    away = Path(shutil.copytree(tmp_path / "near", tmp_path / "away"))
    (copied,) = away.iterdir()
    assert judged(load_program(package), "unet", checkpoint, executed=load_program(copied)) == {}
    weights = copied / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[200] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    found = judged(load_program(package), "unet", checkpoint, executed=load_program(copied))
    assert found.keys() == {"constants"}
    assert "has other values than the one expected" in found["constants"]


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae_encoder"])
def test_a_compiled_model_is_judged_as_its_package(
    checkpoint: Checkpoint, component: str, tmp_path: Path
) -> None:
    """With the second names that it has in a bundle."""
    package = write_component(tmp_path / "Model.mlpackage", checkpoint, component, size=SIZE)
    named = aliased(package, component, tmp_path / "named")
    compiled = load_program(compile_package(named, tmp_path / "compiled", engine="native"))
    assert judged(compiled, component, checkpoint) == {}
    if COMPONENTS[component].has_resolution:
        small = probed(Path(compiled.path), checkpoint, tmp_path / "small", component)
        assert judged(compiled, component, checkpoint, executed=small) == {}
    edited = aliased(package, component, tmp_path / "edited")
    wrong = plant(edited, GRAPH_FAULTS["another_epsilon"])
    again = load_program(compile_package(edited, tmp_path / "again", engine="native"))
    assert f"`{wrong}`: `epsilon`" in judged(again, component, checkpoint)["constants"]


def test_a_whole_artifact_is_judged_and_the_claims_count(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe = parse_recipe(
        'name = "a"\nsource.path = "a"\n'
        'matrix = { attention = ["split_einsum"], resolution = ["192x264"] }\n',
        where="test",
    )
    snapshot = Snapshot(checkpoint.path, None, None, ())
    artifact = run(make_plan(recipe, checkpoint), snapshot, tmp_path / "out")[0].path
    question = Question(levels=["graph"], runtime="torch")
    results = verify(artifact, checkpoint, question)
    assert results
    assert {c.component for c in results.checks} == set(COMPONENTS)
    other = write_component(
        tmp_path / "o.mlpackage", checkpoint, "unet", size=(264, 192), attention="split_einsum"
    )
    exchange_graph(artifact / "Unet.mlpackage", other)
    failures = {c.component: c for c in verify(artifact, checkpoint, question).failures}
    assert failures.keys() == {"unet"}
    assert "`sample` is fp16[2, 4, 24, 33], expected fp16[2, 4, 33, 24]" in str(
        verify(artifact, checkpoint, question).failures
    )


@pytest.mark.usefixtures("one_thread")
def test_what_is_probed_is_what_is_compared_with(checkpoint: Checkpoint, packages: Make) -> None:
    question = Question(
        levels=["graph", "conversion"], runtime="torch", timesteps=(500,), probe=Resolution(64, 64)
    )
    results = verify(packages("original", "16"), checkpoint, question)
    assert results, [c.message for c in results.failures]
    graph = [c for c in results.checks if c.level == "graph"]
    assert all("the executed program for" in c.gate for c in graph if c.case != "types")
    assert "64x64" not in results.scope


# ---- what is not ----


@pytest.mark.parametrize(("attention", "bits"), KINDS)
def test_faults_of_a_unets_graph_are_caught_and_named(
    checkpoint: Checkpoint, packages: Make, attention: str, bits: str, tmp_path: Path
) -> None:
    sound = packages(attention, bits)
    small = probed(sound, checkpoint, tmp_path / "small")
    caught(sound, "unet", checkpoint, small, NOWHERE[attention], tmp_path)


@pytest.mark.parametrize(
    ("component", "nowhere"),
    [
        ("vae_decoder", {"slice_shifted", "end_too_short"}),
        ("vae_encoder", {"slice_shifted", "end_too_short", "another_upsampling", "another_factor"}),
        (
            "text_encoder",
            {"slice_shifted", "end_too_short", "another_upsampling", "another_factor",
             "height_and_width_exchanged"},
        ),
    ],
)  # fmt: skip
def test_faults_of_other_graphs_are_caught_and_named(
    checkpoint: Checkpoint, component: str, nowhere: set[str], tmp_path: Path
) -> None:
    sound = write_component(tmp_path / "a.mlpackage", checkpoint, component, size=SIZE)
    caught(sound, component, checkpoint, None, nowhere | NOWHERE["original"], tmp_path)


def caught(
    sound: Path,
    component: str,
    source: Checkpoint,
    small: Program | None,
    nowhere: set[str],
    folder: Path,
) -> None:
    """Plant every fault into a copy of a package, and look whether the level names its op."""
    package = Path(shutil.copytree(sound, folder / "planted.mlpackage"))
    content = (sound / MODEL).read_bytes()
    missed: dict[str, Mapping[str, str]] = {}
    absent = set()
    for name, fault in GRAPH_FAULTS.items():
        (package / MODEL).write_bytes(content)
        wrong = plant(package, fault)
        if wrong is None:
            absent.add(name)
            continue
        checks = check_graph(load_program(package), component, source, executed=small)
        found = {c.case: c.message for c in checks if c.verdict == "fail"}
        if f"`{wrong}`" not in str(found):
            missed[name] = {"op": wrong, **found}
    assert missed == {}
    assert absent == nowhere


def test_another_artifacts_graph_is_told(
    checkpoint: Checkpoint, packages: Make, tmp_path: Path
) -> None:
    """Of another size, attention or bits, with the manifest's claims left as they were."""
    claims = {"attention": "split_einsum", "resolution": "192x264", "deployment": "macOS14"}
    for attention, bits in (("original", "16"), ("split_einsum_v2", "16"), ("split_einsum", "6")):
        package = Path(shutil.copytree(packages("split_einsum", "16"), tmp_path / attention))
        exchange_graph(package, packages(attention, bits))
        small = probed(packages("split_einsum", "16"), checkpoint, tmp_path / f"{attention}-s")
        found = judged(
            load_program(package), "unet", checkpoint, claims=claims, executed=small,
            resolution=Resolution(*SIZE),
        )  # fmt: skip
        assert found, attention


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"norm_eps": 1e-3}, "down_blocks_0_resnets_0_norm1_add"),
        ({"norm_num_groups": 4}, "down_blocks_0_resnets_0_norm1_reshape"),
        ({"attention_head_dim": (1, 2)}, "attn1_reshape"),
        ({"flip_sin_to_cos": False}, "time_proj_concat"),
        ({"act_fn": "relu"}, "silu"),
    ],
)
def test_the_graph_of_another_checkpoint_over_these_weights_is_told(
    checkpoint: Checkpoint,
    packages: Make,
    config: dict[str, Any],
    named: str,
    tmp_path: Path,
) -> None:
    other = edit_checkpoint(checkpoint, tmp_path, "unet", config=config)
    package = Path(shutil.copytree(packages("original", "16"), tmp_path / "a.mlpackage"))
    exchange_graph(package, write_component(tmp_path / "o.mlpackage", other, "unet", size=SIZE))
    assert named in str(judged(load_program(package), "unet", checkpoint))


# ---- what cannot be told ----


def verdicts(checks: list[Check]) -> set[str]:
    return {check.verdict for check in checks}


def test_a_square_program_tells_nothing(checkpoint: Checkpoint, packages: Make) -> None:
    program = load_program(packages("original", "16"))
    for size, why in ((Resolution(64, 72), "constant"), (Resolution(*SIZE), "192x264 and at")):
        network = build_network(
            checkpoint, "unet", resolution=size, attention="original", dtype=np.float16,
            deployment="macOS14",
        )  # fmt: skip
        small = our_program(network, "unet", "macOS14")
        (check,) = check_graph(program, "unet", checkpoint, executed=small)
        assert (check.verdict, why in check.message) == ("indeterminate", True), check.message


def test_another_converters_program_has_no_verdict(
    checkpoint: Checkpoint, packages: Make, tmp_path: Path
) -> None:
    from convert.package.mlpackage import Description
    from convert.peer.engine import convert_component

    package = tmp_path / "apple.mlpackage"
    convert_component(
        checkpoint, "text_encoder", resolution=None, attention=None, out=package,
        deployment="macOS14", dtype=np.dtype(np.float16),
        description=Description("", "", "", "", *COMPONENTS["text_encoder"].texts),
    )  # fmt: skip
    (check,) = check_graph(load_program(package), "text_encoder", checkpoint)
    assert check.verdict == "indeterminate"
    assert "ours differs first in" in check.message


def test_without_the_checkpoint_there_is_no_verdict(checkpoint: Checkpoint, packages: Make) -> None:
    from dataclasses import replace

    parts = {n: replace(part, tensors={}) for n, part in checkpoint.parts.items()}
    bare = replace(checkpoint, parts=parts)
    checks = check_graph(load_program(packages("original", "16")), "unet", bare)
    assert verdicts(checks) == {"indeterminate"}
