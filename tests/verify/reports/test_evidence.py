"""How an artifact was verified, told: true of every evidence, and never more than was done."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.values import EFFORTS, Resolution
from tests.support.evidence import SMALL, artifact, evidence, fail, matrix, report
from verify.judge.checks import Results
from verify.reports import report as reports
from verify.reports.evidence import NOT_SAID, how_verified, meanings
from verify.reports.evidence_words import EvidenceWord, parse_word
from verify.reports.figures import figures_line
from verify.reports.saved import read_reports
from verify.reports.summary import summary_json, summary_markdown, summary_table

OTHER = artifact("original", "16", "1024x1024")
SIZES = st.sampled_from([(64, 64), (320, 448), (1024, 1024)]).map(lambda s: Resolution(*s))
NAMES = st.sampled_from([OTHER, "a b", "t=999 64x64 of x"])
WORDS = st.one_of(
    st.sampled_from([EvidenceWord("weights"), EvidenceWord("graph"), EvidenceWord("numbers")]),
    st.builds(EvidenceWord, st.just("numbers"), SIZES),
    st.builds(
        EvidenceWord, st.just("step"), SIZES, st.integers(0, 999), st.one_of(st.none(), NAMES)
    ),
    st.builds(EvidenceWord, st.just("run"), SIZES, st.none(), st.one_of(st.none(), NAMES)),
)


def fitting(component: str) -> st.SearchStrategy[list[str]]:
    """Any words that a component can have."""
    spec = COMPONENTS[component]
    plain = st.sampled_from(["weights", "graph"])
    if not spec.has_resolution:
        return st.lists(plain | st.just("numbers"), min_size=1, unique=True)
    once, timestep = ("step", 999) if spec.kind == "unet" else ("run", None)
    executed = st.builds(
        EvidenceWord, st.just(once), SIZES, st.just(timestep), st.none() | NAMES
    ) | st.builds(EvidenceWord, st.just("numbers"), SIZES)
    return st.lists(plain | executed.map(str), min_size=1, max_size=4, unique=True)


EVIDENCE = st.fixed_dictionaries({}, optional={c: fitting(c) for c in COMPONENTS}).filter(bool)


# ---- the words ----


@settings(deadline=None)
@given(WORDS)
def test_a_word_is_read_as_it_was_written(word: EvidenceWord) -> None:
    assert parse_word(str(word)) == word


@pytest.mark.parametrize(
    "text",
    [
        "", "Weights", "weights ", "weights 64x64", "numbers 64", "numbers 65x64", "numbers  64x64",
        "numbers 064x64", "t=999", "t=-1 64x64", "t=0999 64x64", "run", "run 64x64 of ",
        "run 64x64 of ../x", "numbers 64x64 of x", "thorough", "t=999 64x64\n",
    ],
)  # fmt: skip
def test_what_is_no_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="weights, graph, numbers"):
        parse_word(text)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("effort", "full", '`effort` is the text "full"; allowed is "quick", "standard" or'),
        ("evidence", ["weights"], "`evidence` is a list; allowed is an object"),
        ("evidence", {"unet": "weights"}, '`evidence.unet` is the text "weights"; allowed is a'),
        ("evidence", {"unet": [3]}, r"`evidence.unet\[0\]` is the number 3; allowed is a text"),
        (
            "evidence",
            {"unet": ["all"]},
            r'`evidence.unet\[0\]` is the text "all"; .+ numbers WIDTH',
        ),
        ("evidence", {"unte": ["graph"]}, "`evidence` .+ one of text_encoder, .+ not unte"),
        ("evidence", {"unet": ["numbers"]}, "`evidence` .+ not numbers of unet"),
        ("evidence", {"unet": ["run 64x64"]}, "`evidence` .+ not run 64x64 of unet"),
        ("evidence", {"vae_decoder": ["t=1 64x64"]}, "not t=1 64x64 of vae_decoder"),
        ("evidence", {"text_encoder": ["numbers 64x64"]}, "not numbers 64x64 of text_encoder"),
    ],
)
def test_a_wrong_value_in_a_report_is_one_clear_error(
    tmp_path: Path, key: str, value: Any, says: str
) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps({**report(), key: value}))
    with pytest.raises(InputError, match=says) as error:
        read_reports(file)
    assert str(file) in str(error.value.where)


def test_reports_with_evidence_and_older_ones_are_read(tmp_path: Path) -> None:
    new = report()
    old = {k: v for k, v in new.items() if k not in ("effort", "evidence", "attention")}
    for number, document in enumerate((new, old)):
        (tmp_path / f"{number}.json").write_text(json.dumps(document))
    assert read_reports(tmp_path) == (new, old)


# ---- the sentence ----

EXECUTED_HERE = "one step of the UNet (t=999) and one run of the VAE were executed and compared"


def test_quick_says_that_nothing_was_executed_at_its_size() -> None:
    how = how_verified(report(effort="quick"))
    assert how.sentence() == (
        "Checked at quick effort: every stored weight was compared with the checkpoint's, every "
        "operation with that of the same network at 320 × 448, and outputs of the UNet and the VAE "
        "at 320 × 448 and of the text encoders with PyTorch's; at this artifact's own size, "
        "1024 × 1024, the UNet and the VAE were not executed."
    )
    assert how.short == "small size"


def test_standard_says_what_was_executed_here_and_that_it_was_no_more() -> None:
    how = how_verified(report())
    text = f"at this file's own size, 1024 × 1024, {EXECUTED_HERE}, and no more."
    assert how.sentence("file").endswith(text)
    assert how.short == "one step"


def test_standard_says_what_was_executed_on_another_artifact() -> None:
    how = how_verified(report(size="832x1216", elsewhere=OTHER))
    text = (
        "at full size one step of the UNet (t=999) and one run of the VAE on another file "
        f"({OTHER}, 1024 × 1024) were executed and compared, not on this one."
    )
    assert how.sentence("file").endswith(text)
    assert "own size" not in how.sentence()
    assert how.short == "one step elsewhere"


def test_two_others_that_were_executed_are_each_named_with_what_it_was() -> None:
    found = report(size="832x1216", elsewhere=OTHER)
    for component in ("vae_decoder", "vae_encoder"):
        found["evidence"][component][-1] = "run 64x64 of small"
    text = (
        f"; at full size one step of the UNet (t=999) on another artifact ({OTHER}, 1024 × 1024) "
        "and one run of the VAE on another artifact (small, 64 × 64) were executed and compared, "
        "not on this one."
    )
    assert how_verified(found).sentence().endswith(text)


def test_thorough_says_that_it_was_executed_at_its_own_size() -> None:
    how = how_verified(report(effort="thorough"))
    text = "outputs of the UNet and the VAE at this file's own size, 1024 × 1024, the UNet's at "
    assert text + "several timesteps, and of the text encoders with PyTorch's." in how.sentence(
        "file"
    )
    assert how.short == "executed"


def test_the_vaes_one_run_may_be_anothers() -> None:
    found = report()
    found["evidence"]["vae_decoder"][-1] += f" of {OTHER}"
    how = how_verified(found)
    assert how.short == "one step"
    assert f"; at full size one run of the VAE decoder on another artifact ({OTHER}, " in (
        how.sentence()
    )


def test_what_was_not_compared_is_said_of_the_models_that_it_was_not() -> None:
    found = report(effort="quick")
    found["evidence"]["unet"].remove("graph")
    found["evidence"]["text_encoder"].remove("weights")
    how = how_verified(found)
    assert "; weights of the text encoder were not compared one by one" in how.sentence()
    assert "; operations of the UNet were not compared, so outputs at another" in how.sentence()
    assert "every stored weight of text encoder 2, the UNet and the VAE was" in how.sentence()
    assert how.short == "small size, weights in part, graph in part"
    for words in found["evidence"].values():
        words[:] = [w for w in words if w.startswith("numbers")]
    assert how_verified(found).short == "small size, no weights, no graph"


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("fail", "; failed: graph of the UNet."),
        ("indeterminate", "; without a verdict: graph of the UNet."),
    ],
)
def test_what_did_not_pass_is_said(verdict: str, says: str) -> None:
    found = fail(report(), verdict=verdict)
    assert how_verified(found).sentence().endswith(says)
    del found["checks"]  # as in a manifest
    assert "; not all of it " in how_verified(found).sentence()


def test_what_failed_is_not_said_to_have_been_left_out() -> None:
    """Evidence has no word of what was not found right."""
    found = fail(report(effort="quick"))
    found["evidence"]["unet"] = ["weights", f"numbers {SMALL}"]
    text = how_verified(found).sentence()
    assert "; operations of the UNet were not successfully compared, so outputs" in text
    assert text.endswith("; failed: graph of the UNet.")
    assert "the UNet and the VAE were not successfully executed" in text


@pytest.mark.parametrize("words", [[], None])
def test_a_model_without_a_word_counts(words: list[str] | None) -> None:
    found = fail(report(effort="quick"), "weights")
    del found["evidence"]["unet"]
    if words is not None:
        found["evidence"]["unet"] = words
    how = how_verified(found)
    assert "every stored weight of the text encoders and the VAE was compared" in how.sentence()
    assert how.short == "no outputs, weights in part, graph in part"


def test_an_older_report_says_that_it_does_not_say() -> None:
    found = report()
    del found["evidence"], found["effort"]
    how = how_verified(found)
    assert how.short == NOT_SAID
    assert how.sentence() == (
        "This artifact's verification does not say what was executed at which size; it has checks "
        "of structure, weights, graph and conversion."
    )


@settings(deadline=None, max_examples=60)
@given(EVIDENCE, st.sampled_from([None, *EFFORTS]), st.sampled_from([None, "64x64", "1024x1024"]))
def test_no_sentence_claims_more_than_the_words(
    words: dict[str, list[str]], effort: str | None, resolution: str | None
) -> None:
    how = how_verified(
        {"effort": effort, "evidence": words, "resolution": resolution, "verdict": "pass"}
    )
    text = how.sentence()
    sized = [c for c in words if COMPONENTS[c].has_resolution]
    at_own = [c for c in sized if f"numbers {resolution}" in words[c]]
    assert ("at several timesteps" in text) == ("unet" in at_own)
    assert (how.reach == "executed") == (
        set(at_own) == set(sized)
        and all("numbers" in own for c, own in words.items() if c not in sized)
    )
    parsed = {c: [parse_word(w) for w in words[c]] for c in sized if c not in at_own}
    once = [w for each in parsed.values() for w in each if w.kind in ("step", "run")]
    here = [w for w in once if not w.artifact and resolution in (None, str(w.size))]
    assert ("own size" in text and "and no more" in text) == bool(here)
    if sized and not here and not at_own:
        assert how.reach not in ("one step", "executed")
    assert "not on this one" not in text or any(w.artifact for w in once)
    for component, own in words.items():
        if "weights" not in own:
            assert "were not compared one by one" in text
            assert "weights" in how.short
        if "graph" not in own and component not in at_own and component in sized:
            assert "were not compared, so outputs at another size" in text
            assert "graph" in how.short


# ---- where it is shown ----


def printed(renderable: Any, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_the_size_of_a_check_stands_where_its_number_does() -> None:
    found = report(bits="6")
    assert "compression" not in figures_line(found)
    assert "24.0 dB (unet, t=1 cond at 320x448, noise_pred)" in figures_line(found)
    (row,) = (r for r in reports.rows(found) if r[1:3] == ("compression", "unet"))
    assert "(t=1 cond at 320x448, noise_pred)" in row[3]
    fail(found, "compression")
    text = printed(summary_table([found]))
    assert "compression · unet · t=999 cond at 320x448 · noise_pred" in text


def test_the_summary_says_the_evidence_of_each_artifact_and_what_it_means() -> None:
    found = matrix(sizes=("1024x1024", "832x1216"), bits=("16",))
    text = printed(summary_table(found))
    lines = text.splitlines()
    of = [next(n for n, line in enumerate(lines) if r["artifact"] in line) for r in found]
    shorts = [how_verified(r).short for r in found]
    assert shorts == ["one step", "one step elsewhere"] * 2
    assert [lines[n + 1].strip() for n in of] == shorts
    assert f"Numbers are of {SMALL} where nothing was executed at an artifact's own" in text
    for short, meaning in meanings(map(how_verified, found)).items():
        assert f"Evidence, {short}: {meaning}." in " ".join(text.split())
    rows = [r.split(" | ") for r in summary_markdown(found).splitlines() if r.startswith("|")]
    assert rows[0][-1] == "evidence |"
    assert [row[-1] for row in rows[2:]] == [f"{short} |" for short in shorts]
    assert summary_json(found[0])["evidence"] == found[0]["evidence"]


def test_an_old_summary_has_no_word_of_evidence() -> None:
    found = report()
    del found["evidence"], found["effort"]
    assert "vidence" not in printed(summary_table([found])) + summary_markdown([found])
    assert "evidence" not in summary_json(found)


def test_evidence_is_told_in_terminal_markdown_and_junit(good: Results) -> None:
    results = replace(good, effort="quick", evidence=evidence("quick", "64x96"))
    sentence = how_verified(reports.to_json(results)).sentence()
    assert "own size, 64 × 96" in sentence
    assert sentence in " ".join(printed(reports.table(results), 400).split())
    assert f"\n{sentence}  \n" in reports.markdown(results)
    root = ElementTree.fromstring(reports.junit(results))
    found = {p.attrib["name"]: p.attrib["value"] for p in root.iter("property")}
    assert (found["effort"], found["evidence"]) == ("quick", "small size")
    assert found["evidence means"] == sentence


def test_two_cases_that_differ_in_size_alone_have_names_of_their_own(good: Results) -> None:
    last = next(c for c in good.checks if c.component == "unet" and c.metrics)
    both = replace(good, checks=(last, replace(last, size=Resolution(320, 448))))
    root = ElementTree.fromstring(reports.junit(both))
    assert [c.attrib["name"] for c in root.iter("testcase")] == [
        last.case, f"{last.case} at {SMALL}",
    ]  # fmt: skip


def test_a_report_is_not_changed_by_telling_of_it() -> None:
    found = report()
    before = copy.deepcopy(found)
    how_verified(found).sentence()
    assert found == before
