"""What verifying takes, told beforehand: what is computed, what is done, what fits into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from convert.checkpoint.checkpoint import Checkpoint
from convert.files.cache import Cache
from convert.plan.plan import Plan, make_plan
from convert.process.progress import Silent
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from convert.values import EFFORTS, Effort, Resolution
from verify.proof import estimate, prove, scheme
from verify.proof.cost import cost_of
from verify.proof.estimate import efforts_shown, processes, stages, verify_seconds
from verify.proof.pieces import ProofPiece, memory_of
from verify.proof.tasks import ProofContext, ProofTask
from verify.reference.recording import Recording
from verify.reference.reference import Reference

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = Resolution(64, 96)
# One that is executed as it is, and one that a smaller size stands for.
RECIPE = """
name = "base"
source.path = "base"
verify.levels = ["structure", "weights", "graph", "conversion", "compression"]
[matrix]
attention = ["original", "split_einsum"]
resolution = ["64x64", "512x640"]
bits = ["16", "6"]
"""


@pytest.fixture(scope="module")
def plan(base: Checkpoint) -> Plan:
    return make_plan(parse_recipe(RECIPE, where="test"), base)


@pytest.mark.parametrize("component", ["unet", "vae_decoder", "vae_encoder"])
def test_products_are_those_that_pytorch_counts(
    component: str, base: Checkpoint, recording: Recording
) -> None:
    inputs = recording.cases[component][0].inputs
    with Reference(base, component) as model, FlopCounterMode(display=False) as counter:
        model(inputs)
    # What it does not count is attention itself.
    assert cost_of(base, component, SIZE).products == counter.get_total_flops() / 2


def test_attentions_are_all_queries_by_all_keys(base: Checkpoint) -> None:
    config, (height, width) = base.unet, base.vae.latent_size(SIZE)
    attended = 0
    for name, tensor in base.component_tensors("unet").items():
        if name.endswith("to_q.weight"):
            level = config.level(name)
            tokens = -(-height // 2**level) * -(-width // 2**level)
            keys = tokens if "attn1" in name else 77
            attended += 2 * 2 * tokens * keys * tensor.shape[0]  # batch, and both products
    assert cost_of(base, "unet", SIZE).attended == attended > 0


@pytest.mark.parametrize("effort", EFFORTS)
def test_what_is_planned_is_what_a_run_does(
    effort: Effort,
    plan: Plan,
    base: Checkpoint,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path_factory.getbasetemp() / "estimated"  # one for all efforts
    made = run(plan, Snapshot(base.path, None, None, ()), out, jobs=1)
    asked: list[ProofTask] = []

    def noted(context: Any, cache: Any, tasks: Sequence[ProofTask], *_: object) -> None:
        asked.extend(tasks)

    monkeypatch.setattr(prove, "do_all", noted)
    half = tuple(c for c in base.components if not c.startswith("vae"))
    with Cache(out / ".cache") as cache:
        context = ProofContext(
            base, dict(made[0].manifest["source"]["files"]), base.components, half,
            plan.recipe.verify, out / ".cache",
        )  # fmt: skip
        prove.prove(context, made, effort, cache, Silent())
    expected = [piece for pieces in stages(plan, effort).values() for piece in pieces]
    assert Counter(p.kind for p in expected) == Counter(t.kind for t in asked)
    sizes = Counter((t.kind, t.execution.size, len(t.execution.timesteps))
                    for t in asked if t.execution and t.kind != "package")  # fmt: skip
    assert Counter((p.kind, p.size, p.steps) for p in expected if p.size) == sizes


def test_it_knows_what_the_scheme_says(plan: Plan) -> None:
    assert len(scheme.SMALL_TIMESTEPS) == estimate.SMALL_STEPS
    assert len(scheme.TIMESTEPS) == estimate.ALL_STEPS
    assert estimate.ENTRIES == scheme.ENTRIES
    assert estimate.SMALLEST == scheme.SMALLEST


def test_each_effort_has_its_time_in_words(plan: Plan) -> None:
    seconds = verify_seconds(plan)
    assert 0 < seconds["quick"] < seconds["standard"] < seconds["thorough"]
    text = efforts_shown(plan, {"quick": 59.6, "standard": 600, "thorough": 9000})
    expected = "Verifying takes about 10 min at effort standard (quick 60 s, thorough 2.5 h)"
    assert text == expected


def test_processes_are_as_many_as_fit_into_memory(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    small, large = (
        ProofPiece("numbers", ("vae_decoder",), s) for s in (SIZE, Resolution(1024, 1024))
    )
    least, most = memory_of(base, small), memory_of(base, large)
    assert least < most
    pieces = [small, large, small, small, small]
    assert processes(base, pieces) == 1  # nothing here takes long enough
    monkeypatch.setattr(estimate, "LARGE", 0)

    def fitting(room: int) -> int:
        monkeypatch.setattr(estimate, "available_memory", lambda: int(room / estimate.SHARE) + 2)
        return processes(base, pieces)

    assert fitting(1) == 1
    assert fitting(most + least - 8) == 1
    assert fitting(most + least) == 2
    assert fitting(most + 3 * least) == 4
    assert fitting(most * 9) == 4  # cores
