"""The page of a whole matrix: every artifact in its cell, with verdict, evidence and SNR."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convert.values import ATTENTIONS
from tests.support.browser import NAMES, Browser, find_browser
from tests.support.evidence import SIZES, artifact, fail, matrix, report
from tests.verify.page.test_page import CONTRASTS, SCREENSHOTS
from verify.page import matrix as grid
from verify.page.page import html, index_html
from verify.reports.evidence import how_verified

Report = dict[str, Any]


class Table(HTMLParser):
    """The grids of a page, read as a screen reader does: each link with its cell's headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[tuple[str, str, str, str, str]] = []  # attention, bits, size, link, text
        self.empty = 0
        self.order: list[str] = []  # headings and links as they come
        self._in = False
        self._heads: list[list[tuple[str, int]]] = []
        self._row, self._at, self._link, self._text, self._tag = "", -1, "", "", ""
        self._span = 1
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "div" and "grid" in (given.get("class") or "").split():
            self._in = True
        if tag == "a" and (given.get("href") or "").endswith(".html"):
            self.order.append(given["href"] or "")
        if not self._in:
            return
        if tag == "thead":
            self._heads = []
        if tag == "tr":
            self._at = -1
            self._heads.append([])
        if tag in ("th", "td"):
            self._at += tag == "td"
            self._tag, self._text, self._span = tag, "", int(given.get("colspan") or 1)
            self.scope = given.get("scope")
        if tag == "a":
            self._link, self._text = given["href"] or "", ""
        if given.get("aria-label") and tag == "span":
            self._text += f"{given['aria-label']} "

    def handle_endtag(self, tag: str) -> None:
        if not self._in:
            return
        text = " ".join(self._text.split())
        if tag == "table":
            self._in = False
        if tag == "th":
            if self.scope == "row":
                self._row = text
            else:
                self._heads[-1] += [(text, self._span)]
        if tag == "a":
            attention, bits = self._headings()
            self.cells.append((attention, bits, self._row, self._link, text))
        if tag == "td" and text == "– not there":
            self.empty += 1

    def _headings(self) -> tuple[str, str]:
        groups = [name for name, span in self._heads[0][1:] for _ in range(span)]
        return groups[self._at], self._heads[1][self._at][0]

    def handle_data(self, data: str) -> None:
        self._text += f" {data} " if self._in else ""


def test_every_artifact_is_in_its_cell_with_verdict_snr_and_evidence() -> None:
    documents = matrix()
    table = Table(index_html(documents, {}))
    assert len(table.cells) == 72
    assert table.empty == 0
    found = {link: (attention, bits, size) for attention, bits, size, link, _ in table.cells}
    for document in documents:
        assert found[f"{document['artifact']}.html"] == (
            document["attention"],
            f"{document['bits']} bits",
            document["resolution"].replace("x", " × "),
        )
    texts = {link: text for *_, link, text in table.cells}
    assert texts[f"{documents[0]['artifact']}.html"] == "Passed ✓ 54.0 dB at its own size one step"
    six = artifact("split_einsum", "6", "640x1536")
    assert texts[f"{six}.html"] == "Passed ✓ 24.0 dB one step elsewhere"


def test_the_size_of_a_number_is_said_once_where_it_is_that_of_most() -> None:
    page = index_html(matrix(), {})
    assert "(of UNet and VAE at 320 × 448 pixels where the cell names no other size)" in page
    assert page.count("at its own size</small>") == 2  # of the two that were executed
    assert "pixels where" not in index_html(matrix(effort="thorough"), {})


def test_what_the_evidence_means_stands_below_with_its_count() -> None:
    documents = matrix()
    legend = grid.legend(documents)
    assert [(short, count) for short, count, _ in legend] == [
        ("one step", 2),
        ("one step elsewhere", 70),
    ]
    text = " ".join(re.sub("<[^>]+>", " ", index_html(documents, {})).split())
    for short, count, meaning in legend:
        assert f"{short} {count} artifacts {meaning[0].upper()}{meaning[1:]}." in text.replace(
            "&#39;", "'"
        )


def test_what_did_not_pass_is_seen_first_and_says_what_it_was() -> None:
    documents = matrix()
    fail(documents[5])
    fail(documents[50], "weights", "vae_decoder", "indeterminate")
    page = index_html(documents, {})
    table = Table(page)
    bad = [f"{documents[n]['artifact']}.html" for n in (5, 50)]
    assert table.order[:2] == bad  # before the grid
    rows = page[page.index("All 72 artifacts") :]
    assert [rows.index(link) for link in bad] == sorted(rows.index(link) for link in bad)
    assert rows.index(bad[1]) < rows.index(f"{documents[0]['artifact']}.html")
    texts = {link: text for *_, link, text in table.cells}
    assert texts[bad[0]] == "Failed ✗ 38.0 dB UNet: graph one step elsewhere"
    assert texts[bad[1]] == "No verdict ? 24.0 dB VAE decoder: weights one step elsewhere"


def test_many_that_did_not_pass_are_folded() -> None:
    documents = [fail(document) for document in matrix(sizes=SIZES[:3], bits=("16",))]
    page = index_html(documents, {})
    assert page.count('<article class="failure fail">') == 6
    assert "<summary>1 more artifact</summary>" in page


def test_a_matrix_with_holes_has_a_place_for_each_that_is_there() -> None:
    documents = matrix(("original", "split_einsum"), SIZES[:2], ("16", "mixed-4.5", "int8"))
    missing = artifact("original", "mixed-4.5", SIZES[0])
    kept = [d for d in documents if d["artifact"] != missing and d["bits"] != "int8"]
    kept += [d for d in documents if (d["attention"], d["bits"]) == ("split_einsum", "int8")]
    (found,) = grid.grids(kept)
    assert found.columns == [
        ("original", ["16 bits", "mixed-4.5"]),
        ("split_einsum", ["16 bits", "int8", "mixed-4.5"]),
    ]
    table = Table(index_html(kept, {}))
    assert len(table.cells) == len(kept)
    assert table.empty == 1


def test_several_recipes_have_a_grid_each_the_failed_one_first() -> None:
    first = matrix(("original",), SIZES[:2], ("16",))
    second = [report(size=size, name="pony", elsewhere="x_1024x1024") for size in SIZES[:2]]
    fail(second[1])
    found = grid.grids([*first, *second])
    assert [(g.name, g.count, g.verdict) for g in found] == [
        ("pony", 2, "fail"), ("animagine-xl-3.1", 2, "pass"),
    ]  # fmt: skip
    page = index_html([*first, *second], {})
    assert page.index('id="grid-1"') < page.index("pony <small>2 artifacts of")


def test_names_that_do_not_say_what_they_are_still_make_one_grid() -> None:
    documents = matrix(("original",), SIZES[:3], ("16",))
    for number, document in enumerate(documents):
        document["artifact"] = f"release-{'abc'[number]}"
    documents.append({**copy.deepcopy(documents[0]), "artifact": "again"})
    (found,) = grid.grids(documents)
    assert found.name == documents[0]["source"]
    first = found.rows[0][1][0]
    assert [entry.artifact for entry in first.entries] == ["release-a", "again"]
    page = Table(index_html(documents, {}))
    assert [text.split()[-1] for *_, text in page.cells][:2] == ["release-a", "again"]


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["{name}_{attention}_{bits}-bit_{size}", "{size}-{bits}-{attention}-{name}",
                     "{name} {attention} {bits}bit {size}"]),
    st.sampled_from(["sd16-8bit", "a_b-4x4", "animagine-xl-3.1", "x"]),
    st.sampled_from(ATTENTIONS), st.sampled_from(["16", "4", "int8", "mixed-4.5"]),
    st.sampled_from(["1024x1024", "64x96"]),
)  # fmt: skip
def test_artifacts_of_one_name_are_of_one_grid(
    template: str, name: str, attention: str, bits: str, size: str
) -> None:
    """Whatever the template, and where the report does not say the attention."""
    both = []
    for own in (("original", "16", "512x512"), (attention, bits, size)):
        document = report(own[0], "16", own[2], "quick")
        document |= {"attention": None, "bits": own[1]}
        document["artifact"] = template.format(
            name=name, attention=own[0].replace("_", "-"), bits=own[1], size=own[2]
        )
        both.append(document)
    third = report(name="other")
    found = grid.grids([*both, third])
    assert sorted(g.count for g in found) == [1, 2]
    two = next(g for g in found if g.count == 2)
    assert [heading for heading, _ in two.columns] == [
        a for a in ATTENTIONS if a in ("original", attention)
    ]


def test_reports_without_evidence_make_a_grid_without_it() -> None:
    documents = matrix(sizes=SIZES[:2], bits=("16",))
    for document in documents:
        del document["evidence"], document["effort"], document["attention"]
        for check in document["checks"]:
            check.pop("size", None)
    page = index_html(documents, {})
    table = Table(page)
    assert {c[0] for c in table.cells} == {"original", "split_einsum"}
    assert {c[-1] for c in table.cells} == {"Passed ✓ 54.0 dB", "Passed ✓ 55.0 dB"}
    assert "Evidence" not in page
    assert not grid.legend(documents)
    mixed = Table(index_html([*documents, report(bits="8", effort="quick")], {}))
    assert len(mixed.cells) == 5


def test_without_the_checkpoints_figure_it_is_the_programs_and_says_so() -> None:
    documents = matrix(("original",), SIZES[:2], ("6",))
    for document in documents:
        document["checks"] = [c for c in document["checks"] if c["level"] != "compression"]
    texts = [c[-1] for c in Table(index_html(documents, {})).cells]
    assert texts[1] == "Passed ✓ 55.0 dB of the program at 320 × 448 one step elsewhere"
    documents[0]["checks"] = [c for c in documents[0]["checks"] if c["level"] == "weights"]
    assert "no SNR" in Table(index_html(documents, {})).cells[0][-1]


def test_one_artifact_needs_no_grid_and_has_its_evidence() -> None:
    page = index_html([report()], {})
    assert not Table(page).cells
    assert '<td role="cell" data-label="Evidence">one step</td>' in page


# ---- an artifact's own page ----


def told(document: Mapping[str, Any]) -> str:
    page = re.sub("(?s)<(style|script)>.*?</.*?>|<[^>]+>", " ", html(document, {}))
    return " ".join(page.replace("&#39;", "'").split())


@pytest.mark.parametrize(
    ("effort", "elsewhere", "ran", "left"),
    [
        ("quick", None, "Smaller programs with these weights, op by op", "its own size. That they"),
        ("standard", None, "with these weights (one timestep of this one)", "but for one timestep"),
        ("standard", "a_64x64", "Smaller programs with these", "another artifact was executed"),
        ("thorough", None, "The ML Program itself", ""),
    ],
)  # fmt: skip
def test_a_page_says_what_was_executed_and_claims_no_more(
    effort: Any, elsewhere: str | None, ran: str, left: str
) -> None:
    document = report(effort=effort, elsewhere=elsewhere)
    text = told(document)
    assert how_verified(document).sentence() in text
    assert ran in text
    claim = "The Core ML models compute what the checkpoint computes"
    assert (claim in text) == ("the same program was computed" in text) == (effort == "thorough")
    assert ("Outputs" in text[text.index("Not checked") :]) == (effort != "thorough")
    assert left in text
    assert f"--effort {effort}" in text


def test_numbers_of_two_sizes_are_never_in_one_curve_or_one_row() -> None:
    document = report(bits="6")
    page = html(document, {})
    chart = page[page.index('<figure class="plot">') : page.index("</figure>")]
    assert "latents, at 320 × 448" in chart
    assert "54.0 dB" not in chart  # of its own size
    rows = [r for r in re.findall("(?s)<tr.*?</tr>", page) if 'data-label="Worst case"' in r]
    unet = [re.sub(r"<[^>]+>|\s+", " ", r).split() for r in rows if "noise_pred" in r]
    cases = [" ".join(row) for row in unet]
    assert any("t=999 cond of 1" in case for case in cases)
    assert sum("at 320 × 448 of 12" in case for case in cases) == 2
    for check in document["checks"]:  # the most timesteps, here its own size
        if check["case"] != "t=999 cond" and check["component"] == "unet":
            check.pop("size", None)
    page = html(document, {})
    chart = page[page.index('<figure class="plot">') : page.index("</figure>")]
    assert "latents</figcaption>" in chart


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(f"none of {', '.join(NAMES)}, and no $CHROMIUM: the grid was not looked at")
    with Browser(program) as found:
        yield found


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 375])
def test_72_artifacts_are_readable_wide_and_narrow_light_and_dark(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    documents = matrix()
    fail(documents[5])
    fail(documents[50], "weights", "vae_decoder", "indeterminate")
    del documents[30]
    file = tmp_path / "index.html"
    file.write_text(index_html(documents, {}), "utf-8")
    for scheme in ("light", "dark"):
        page = browser.open(file, width=width, dark=scheme == "dark", scripts=False)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert min(page.evaluate(CONTRASTS))[0] >= 4.5
        shot = SCREENSHOTS / f"matrix-{width}-{scheme}.png"
        page.screenshot(shot)
        with Image.open(shot) as image:
            assert np.asarray(image.convert("L")).std() > 10
        assert page.complaints() == []
    seen = page.evaluate(
        "(() => { const g = document.querySelector('.grid'), l = g.querySelectorAll('a');"
        "return [g.scrollWidth > g.clientWidth, l.length, l[0].offsetHeight] })()"
    )
    assert seen[:2] == [width == 375, 71]
    assert seen[2] >= 24  # CSS pixels: WCAG 2.2's least size of what one points at


@pytest.mark.browser
def test_headings_stay_in_sight_while_the_grid_scrolls(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(index_html(matrix(), {}), "utf-8")
    page = browser.open(file, width=375)
    page.resize(375, 400)

    def places() -> list[float]:
        return list(
            page.evaluate(
                "(() => { const g = document.querySelector('.grid'), t = g.getBoundingClientRect();"
                "const of = (s) => g.querySelector(s).getBoundingClientRect();"
                "return [of('tbody th').left - t.left, of('thead tr + tr th').top - t.top,"
                "of('.corner').left - t.left, of('tbody td').left - t.left] })()"
            )
        )

    before = places()
    page.evaluate("document.querySelector('.grid').scrollTo(200, 120)")
    after = places()
    assert after[:3] == pytest.approx(before[:3], abs=1)
    assert after[3] == pytest.approx(before[3] - 200, abs=1)
