"""Whole artifacts with one fault in them, their manifests made anew, to be verified as users do.

A `Planting` says what is spoilt and where; a `Garden` has sound artifacts and makes spoilt copies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from convert.checkpoint.checkpoint import Checkpoint
from convert.components import COMPONENTS
from convert.errors import UserError
from convert.files.disk import digest_file
from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import ATTENTIONS
from release.compile.mlmodelc import compile_package
from tests.support.checkpoints import edit_checkpoint, make_checkpoint
from tests.support.graph_faults import GRAPH_FAULTS, exchange_graph, plant
from tests.support.odd_faults import FILE_FAULTS, ODD_FAULTS
from tests.support.weight_faults import PLANTS, stored_weights

SIZES = ("192x264", "264x192")  # larger than what is executed; the first is spoilt
BITS = ("16", "6")
# Every kind of tensor is in the weight file, and attentions have heads and more than one chunk.
UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": (2, 2),
    "layers_per_block": 1,
    "addition_time_embed_dim": 32,
}
VAE = {"block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
       "up_block_types": ("UpDecoderBlock2D",) * 2}  # fmt: skip
OTHER = {  # a checkpoint of the same shapes
    "unet": {"norm_eps": 1e-3},
    "vae": {"norm_num_groups": 4},
    "text_encoder": {"hidden_act": "gelu"},
    "text_encoder_2": {"layer_norm_eps": 1e-3},
}
OTHER_GRAPHS = ("graph of another size", "graph of another attention", "graph of other bits",
                "graph of another checkpoint")  # fmt: skip


@dataclass(frozen=True)
class Planting:
    """One fault in one component of one artifact.

    Attributes:
        fault: its name in one of the tables.
        compiled: whether the artifact is of compiled models.
    """

    fault: str
    component: str
    attention: str
    bits: str
    seed: int
    compiled: bool = False

    def __str__(self) -> str:
        form = ".mlmodelc" if self.compiled else ".mlpackage"
        return f"{self.component} {self.attention} {self.bits} bits {form}"


@dataclass(frozen=True)
class Verdict:
    """What was said of an artifact: the levels that failed it, and in which words."""

    verdict: str
    levels: tuple[str, ...] = ()
    text: str = ""


def every_planting(seed: int, attentions: tuple[str, ...] = ATTENTIONS) -> Iterator[Planting]:
    """Fault after fault, each in a component, attention and width that follow from the seed."""
    weights = [fault for faults in PLANTS.values() for fault in faults]
    faults = [*weights, *GRAPH_FAULTS, *OTHER_GRAPHS, *FILE_FAULTS, *ODD_FAULTS]
    random, number = Random(seed), 0
    places = [
        (component, attention, bits)
        for component, attention, bits in product(COMPONENTS, attentions, BITS)
        if COMPONENTS[component].has_attention or attention == attentions[-1]
    ]
    turns = {fault: random.sample(places, len(places)) for fault in faults}
    while True:  # a fault has more than one place in a network
        for turn in range(len(places)):
            for fault in faults:
                number += 1
                place = turns[fault][turn]
                yield Planting(fault, *place, seed * 100_000 + number, compiled=number % 5 == 0)


class Garden:
    """Sound artifacts of a tiny checkpoint, and of one of its shapes; spoilt copies of them."""

    def __init__(self, folder: Path, attentions: tuple[str, ...] = ATTENTIONS) -> None:
        self.folder = folder
        self.checkpoint = open_checkpoint(make_checkpoint(folder / "c", unet=UNET, vae=VAE))
        self.other = self.checkpoint
        for part, config in OTHER.items():
            self.other = edit_checkpoint(self.other, folder / part, part, config=config)
        self.attentions = attentions
        self.sound = made(self.checkpoint, folder / "out", RECIPE, SIZES, attentions)
        self.strange = made(self.other, folder / "strange", RECIPE, SIZES[:1], attentions)

    def spoilt(self, planting: Planting) -> tuple[Path, tuple[str, ...]] | None:
        """An artifact with the fault, and what a report has to name; None if it has no place."""
        folder = self.folder / "spoilt"
        shutil.rmtree(folder, ignore_errors=True)
        source = self.sound[planting.attention, planting.bits, SIZES[0]]
        artifact = Path(shutil.copytree(source, folder, copy_function=os.link))
        package = artifact / f"{COMPONENTS[planting.component].file}.mlpackage"
        names = self._plant(planting, package)
        if names is None:
            return None
        if planting.compiled:
            for one in sorted(artifact.glob("*.mlpackage")):
                try:
                    compile_package(one, artifact, engine="native")
                except UserError:
                    return None  # what cannot be compiled is nothing to verify
                shutil.rmtree(one)
        remake_manifest(artifact)
        return artifact, names

    def _plant(self, planting: Planting, package: Path) -> tuple[str, ...] | None:
        component, fault = planting.component, planting.fault
        random = np.random.default_rng(planting.seed)
        if fault in OTHER_GRAPHS:
            return self._exchange(planting, package)
        if fault in FILE_FAULTS:
            name = FILE_FAULTS[fault](package, random)
            return None if name is None else (name,)
        for form, faults in PLANTS.items():
            if fault in faults:
                stored = stored_weights(package, self.checkpoint, component).values()
                if form not in {weight.form for weight in stored}:
                    return None
                return faults[fault](package, self.checkpoint, component, random)
        name = plant(package, {**GRAPH_FAULTS, **ODD_FAULTS}[fault], Random(planting.seed))
        return None if name is None else (name,)

    def _exchange(self, planting: Planting, package: Path) -> tuple[str, ...] | None:
        at, bits, size = planting.attention, planting.bits, SIZES[0]
        artifacts = self.sound
        if planting.fault == "graph of another size":
            size = SIZES[1]
        elif planting.fault == "graph of another attention":
            at = Random(planting.seed).choice([a for a in self.attentions if a != at])
        elif planting.fault == "graph of other bits":
            (bits,) = set(BITS) - {bits}
        else:
            artifacts = self.strange
        other = artifacts[at, bits, size] / package.name
        model = "Data/com.apple.CoreML/model.mlmodel"
        if (other / model).read_bytes() == (package / model).read_bytes():
            return None
        exchange_graph(package, other)
        return ()


RECIPE = """
name = "a"
source.path = "a"
compress.components = {{ vae_decoder = "4" }}
matrix = {{ attention = {attentions}, resolution = {sizes}, bits = {bits} }}
"""


def made(
    checkpoint: Checkpoint,
    out: Path,
    recipe: str,
    sizes: tuple[str, ...],
    attentions: tuple[str, ...] = ATTENTIONS,
    bits: tuple[str, ...] = BITS,
) -> dict[tuple[str, str, str], Path]:
    """The artifacts of a run, by attention, bits and size."""
    text = recipe.format(attentions=[*attentions], sizes=[*sizes], bits=[*bits])
    plan = make_plan(parse_recipe(text, where="planted"), checkpoint)
    found = run(plan, Snapshot(checkpoint.path, None, None, ()), out, jobs=1)
    return {
        (m["attention"], m["bits"], m["resolution"]): result.path
        for result in found
        for m in (result.manifest,)
    }


def remake_manifest(artifact: Path) -> None:
    """Say in the manifest what the folder's files are now, as if they had always been so."""
    file = artifact / "manifest.json"
    values = json.loads(file.read_text())
    files = sorted(f for f in artifact.rglob("*") if f.is_file() and f != file)
    values["files"] = {
        str(f.relative_to(artifact)): {"size": f.stat().st_size, "sha256": digest_file(f)}
        for f in files
    }
    for component, name in values["components"].items():
        if not (artifact / name).exists():
            values["components"][component] = str(Path(name).with_suffix(".mlmodelc"))
    file.unlink()  # it is the sound artifact's, too
    file.write_text(json.dumps(values))


def judged(artifact: Path, checkpoint: Checkpoint, effort: str = "nothing") -> Verdict:
    """What `verify` says of an artifact.

    Args:
        effort: how much is executed; `nothing` for the levels that look at what was shipped.
    """
    from verify.question import Question
    from verify.run import verify

    question = Question(levels=("structure", "weights", "graph"), runtime="torch")
    if effort != "nothing":
        question = Question(effort=effort, runtime="torch")  # type: ignore[arg-type]
    try:
        results = verify(artifact, checkpoint, question)
    except UserError as error:
        return Verdict("refused", (), str(error))
    told = [check for check in results.checks if check.verdict != "pass"]
    levels = tuple(sorted({check.level for check in told}))
    text = "\n".join(f"{c.level} {c.component} {c.case}: {c.message}" for c in told)
    return Verdict(results.verdict, levels, text)


def names_all(verdict: Verdict, planting: Planting, names: tuple[str, ...]) -> bool:
    """Whether a verdict names the component, and the op or tensor that is wrong."""
    lines = [line for line in verdict.text.splitlines() if f" {planting.component} " in line]
    text = "\n".join(lines).replace(".", "_")
    return bool(lines) and all(name.replace(".", "_") in text for name in names)


def without_compiling(planting: Planting) -> Planting:
    """The same in a package."""
    return replace(planting, compiled=False)


def table(rows: Mapping[Planting, Verdict]) -> list[str]:
    """What was planted and what caught it, a line for each fault and component."""
    lines: dict[tuple[str, str], list[tuple[Planting, Verdict]]] = {}
    for planting, verdict in rows.items():
        lines.setdefault((planting.fault, planting.component), []).append((planting, verdict))
    out = []
    for (fault, component), found in sorted(lines.items()):
        where = sorted({f"{p.attention}/{p.bits}" for p, _ in found})
        levels = sorted({level for _, v in found for level in (v.levels or (v.verdict,))})
        caught = sum(v.verdict == "fail" for _, v in found)
        out.append(
            f"{fault:32} {component:15} {caught:3} of {len(found):3}  by {', '.join(levels)}"
            f"  in {', '.join(where)}"
        )
    return out
