"""What is asked and what there is to compare with: what excludes the other is refused at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.recipe.sections import CompressionGate, Verify
from convert.values import Bits, Resolution
from verify.golden import Golden
from verify.judge.policy import load_policy
from verify.question import Evidence, Question, require_possible
from verify.reference.recording import Recording

FOLDER, PACKAGE, COMPILED = Path("none"), Path("none/A.mlpackage"), Path("none/A.mlmodelc")
PROBED = {"probe": Resolution(64, 64)}
TIMED = {"timesteps": (999,)}


@pytest.mark.parametrize(
    ("path", "asked", "golden", "problem"),
    [
        (FOLDER, {**PROBED, "levels": ["sanity"]}, False, "makes no pictures"),
        (FOLDER, PROBED, True, "needs no golden bundle"),
        (FOLDER, TIMED, True, "a golden bundle has its own"),
        (FOLDER, {**TIMED, "levels": ["structure"]}, False, "no level compares the UNet"),
        (PACKAGE, {"levels": ["generation"]}, False, "one package makes no pictures"),
    ],
)
def test_what_does_not_go_together_is_refused(
    path: Path, asked: dict[str, Any], golden: bool, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        require_possible(path, Question(**asked), golden=golden)


@pytest.mark.parametrize(
    ("path", "asked", "golden"),
    [
        (PACKAGE, PROBED | TIMED, False),
        (COMPILED, TIMED, False),
        (FOLDER, {"levels": ["conversion", "sanity"]}, True),
    ],
)
def test_what_goes_together_is_not(path: Path, asked: dict[str, Any], golden: bool) -> None:
    require_possible(path, Question(**asked), golden=golden)


def test_evidence_is_of_one_kind(base: Checkpoint) -> None:
    recording = Recording(Resolution(64, 64), {})
    golden = Golden(Path("bundle"), replace(base, parts={}), {}, recording, (), {})
    with pytest.raises(InputError, match="neither a checkpoint nor a golden bundle"):
        Evidence(recording=recording)
    for more in ({"recording": recording}, {"traces": ()}):
        with pytest.raises(InputError, match="a golden bundle has its own"):
            Evidence(base, golden=golden, **more)
    both = Evidence(base, golden=golden)
    assert (both.reference, both.recorded, both.traced) == (base, recording, ())
    assert Evidence.of(golden).reference is golden.checkpoint
    assert Evidence.of(base) == Evidence(base)
    assert Evidence.of(both) is both


def test_what_is_asked_for_takes_the_place_of_a_recipes_gate() -> None:
    gate = CompressionGate(bits="6", component="unet", min_snr_db=10.0)
    other = CompressionGate(bits="6", component="pipeline", min_latents_cosine=0.9)
    question = Question(recipe=Verify(gates=(gate, other)))
    with pytest.raises(InputError, match="the bits of these are not known") as caught:
        question.rules(None, where=FOLDER)
    assert caught.value.where == str(FOLDER)
    assert question.rules(Bits("8"), where=FOLDER).recipe == ()
    gates = question.rules(Bits("6"), where=FOLDER).recipe
    assert [(g.components, g.value) for g in gates] == [(("unet",), 10.0), (("pipeline",), 0.9)]
    rules = replace(question, minimum={"unet": 20.0}).rules(Bits("6"), where=FOLDER)
    gates = rules.recipe
    assert [(g.components, g.value) for g in gates] == [(("pipeline",), 0.9), (("unet",), 20.0)]
    assert rules.policy == load_policy()
