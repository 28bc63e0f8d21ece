"""The HTML report: complete, self-contained and safe as text; readable and quiet in a browser."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.components import COMPONENTS
from convert.errors import InputError
from convert.values import LEVELS
from tests.support.browser import NAMES, Browser, Page, find_browser, screenshot
from verify.judge.checks import Results
from verify.page import words
from verify.page.chart import Series, error_chart
from verify.page.page import html, index_html, read_images
from verify.reports.report import to_json

pytestmark = pytest.mark.usefixtures("one_thread")

SCREENSHOTS = Path(__file__).parents[3] / "out" / "test-screenshots"
Document = dict[str, Any]
VOID = {"meta", "link", "img", "br", "input", "hr"}
SVG_VOID = {"path", "line", "circle", "rect"}


class Parsed(HTMLParser):
    """A page's elements, its text and the rows of its tables; raises on unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.sources: dict[str, str] = {}  # of style and script
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SVG_VOID
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.sources[self._open[-1]] = data
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data.strip()

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def png(seed: int, width: int = 128, height: int = 96) -> bytes:
    """A picture that no other seed gives, and its neighbours differ from by one level."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x + 40, y + 60, (x + y) // 2], axis=-1) + seed
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


IMAGES = {f"images/{n:016x}.png": png(n) for n in range(5)}


def generation(case: str, first: int, *, start: int | None = None) -> Document:
    name = list(IMAGES)
    return {
        "case": case,
        "kind": "text-to-image" if start is None else "image-to-image",
        "prompt": "a <b>large</b> circle & “more”",
        "negative_prompt": "blurry",
        "scheduler": "euler_a",
        "steps": 4,
        "guidance": 5.0,
        "strength": None if start is None else 0.6,
        "seed": 7,
        "resolution": "128x96",
        "images": {
            "reference": name[first],
            "candidate": name[first + 1],
            "start": None if start is None else name[start],
        },
        "trajectory": [
            {"timestep": t, "latents_snr_db": a, "noise_pred_snr_db": b}
            for t, a, b in ((999.0, "inf", 55.0), (750.0, 60.1, 56.0), (500.0, 58.2, None),
                            (250.0, 57.3, 54.5))
        ],
        "latents_cosine": 0.99999871,
        "psnr_db": 48.1,
        "ssim": 0.998,
    }  # fmt: skip


def check(level: str, case: str, verdict: str = "pass", message: str = "", **more: Any) -> Document:
    return {
        "level": level, "component": "pipeline", "case": case, "output": "image", "metrics": None,
        "gate": "psnr_db >= 28", "verdict": verdict, "message": message, **more,
    }  # fmt: skip


@pytest.fixture
def document(good: Results) -> Document:
    """A report as `verify` writes it, with two generations and the worst ops of the UNet."""
    found = json.loads(json.dumps(to_json(good)))
    cases = "euler_a text-to-image 1", "euler_a image-to-image 1"
    found["generations"] = [generation(cases[0], 0), generation(cases[1], 2, start=4)]
    found["checks"] += [check(level, case) for case in cases for level in ("generation", "sanity")]
    found["worst_ops"] = {
        "unet": [
            {"op": "op_812_cast_fp16", "type": "softmax", "module": "mid_block.attentions.0",
             "local_snr_db": 61.2, "propagated_snr_db": 55.3},
            {"op": "op_7", "type": "reshape", "module": None,
             "local_snr_db": "inf", "propagated_snr_db": None},
        ]
    }  # fmt: skip
    return dict(found)


def spoil(document: Document, verdict: str = "fail") -> Document:
    """The UNet's first outputs wrong, one of them not finite; the first picture judged so, too."""
    document["verdict"] = verdict
    unet = [c for c in document["checks"] if (c["level"], c["component"]) == ("conversion", "unet")]
    for number, found in enumerate(unet):
        found["verdict"] = verdict
        found["message"] = f"snr_db is {number}, which is too little"
        found["metrics"]["snr_db"] = float(number)
    unet[0]["metrics"].update(finite=False, snr_db=None)
    picture = next(c for c in document["checks"] if c["level"] == "sanity")
    picture.update(verdict=verdict, message="the picture is black")
    return document


# ---- as text ----


def test_everything_is_in_the_page_and_nothing_else_may_load(document: Document) -> None:
    page = Parsed(html(document, IMAGES))
    addresses = [a[k] or "" for _, a in page.elements for k in ("src", "href", "srcset") if k in a]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|https?:", page.sources["style"] + page.sources["script"])
    (policy,) = [m["content"] or "" for m in page.of("meta") if "http-equiv" in m]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for kind in ("style", "script"):
        digest = hashlib.sha256(page.sources[kind].encode()).digest()
        assert rules[f"{kind}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert not any("style" in a or k.startswith("on") for _, a in page.elements for k in a)


def test_every_picture_is_in_the_page_once_and_described(document: Document) -> None:
    pictures = Parsed(html(document, IMAGES)).of("img")
    found = [base64.b64decode((p["src"] or "").split(",")[1]) for p in pictures]
    assert sorted(found) == sorted(IMAGES.values())
    assert all(p["alt"] and (p["width"], p["height"]) == ("128", "96") for p in pictures)
    alts = [p["alt"] or "" for p in pictures]
    assert alts[0].startswith("PyTorch’s picture for: a <b>large</b>")
    assert alts[1].startswith("Core ML’s picture for: a <b>large</b>")


def test_every_check_is_in_the_page(document: Document) -> None:
    spoil(document)
    rows = Parsed(html(document, IMAGES)).rows
    shown = [row for row in rows if len(row) == 8][1:]
    assert len(shown) == len(document["checks"])
    for row, found in zip(shown, document["checks"], strict=True):
        assert row[0] == {"pass": "✓", "fail": "✗"}[found["verdict"]]
        keys = ("level", "component", "case", "output", "gate", "message")
        assert [row[n] for n in (1, 2, 3, 4, 6, 7)] == [found[k] or "" for k in keys]


def test_what_a_report_says_is_never_markup(document: Document) -> None:
    attack = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>"
    plain = Parsed(html(document, IMAGES))
    names = ("artifact", "source", "runtime", "scope", "policy", "resolution")
    document.update({name: attack for name in names})
    document["versions"] = {attack: attack}
    document["worst_ops"]["unet"][0].update(op=attack, type=attack, module=attack)
    for run in document["generations"]:
        run.update({k: attack for k in ("case", "prompt", "negative_prompt", "scheduler")})
    for found in document["checks"]:
        found.update(message=attack, case=attack, output=attack, gate=attack)
    for page in (html(document, IMAGES, command=attack), index_html([document], IMAGES)):
        parsed = Parsed(page)
        assert len(parsed.of("script")) <= 1
        assert not any("onerror" in attributes for _, attributes in parsed.elements)
        assert attack in parsed.text
    parsed = Parsed(html(document, IMAGES))
    assert len(parsed.of("img")) == len(plain.of("img"))
    assert parsed.sources == plain.sources


@pytest.mark.parametrize(
    ("verdict", "word", "says"),
    [
        ("pass", "Passed", "All {n} checks passed. The Core ML models compute what"),
        ("fail", "Failed", "{bad} of {n} checks failed. Do not rely on"),
        ("indeterminate", "No verdict", "{bad} of {n} checks could not be made"),
    ],
)
def test_the_verdict_stands_first_in_plain_words(
    document: Document, verdict: str, word: str, says: str
) -> None:
    if verdict != "pass":
        spoil(document, verdict)
    bad = sum(c["verdict"] != "pass" for c in document["checks"])
    page = Parsed(html(document, IMAGES))
    head = page.text[: page.text.index("Checks passed")]
    assert page.text.lstrip().startswith(f"{word}: {document['artifact']}")
    assert says.format(n=len(document["checks"]), bad=bad) in head
    assert [h for h in ("Passed", "Failed", "No verdict") if h in head] == [word]


def test_failures_come_first_and_are_explained(document: Document) -> None:
    assert "What did not pass" not in html(document, IMAGES)
    spoil(document)
    document["generations"].reverse()
    text = Parsed(html(document, IMAGES)).text
    assert text.index("What did not pass") < text.index("Pictures") < text.index("Accuracy")
    assert words.LEVELS["conversion"][2] in text
    assert words.NOT_FINITE in text
    assert words.LEVELS["sanity"][2] in text
    assert f"sdxl-coreml bisect {document['artifact']}/Unet.mlpackage --source base" in text
    assert "snr_db is 11, which is too little" in text
    pictures = text[text.index("Pictures") :]  # the one that failed is shown before the other
    assert pictures.index("text-to-image 1") < pictures.index("image-to-image 1")


def test_no_more_is_claimed_than_was_checked(document: Document) -> None:
    del document["generations"], document["worst_ops"]
    document["checks"] = [c for c in document["checks"] if c["level"] == "structure"]
    text = " ".join(Parsed(html(document, {})).text.split())
    assert "Outputs were not compared with PyTorch’s." in text
    assert "compute what the checkpoint computes" not in text
    for level in ("conversion", "generation", "sanity"):
        assert words.LEVELS[level][1] in text
    assert "Core ML itself." in text
    assert document["scope"] in text
    document["runtime"] = "coreml"
    text = Parsed(html(document, {})).text
    assert "Core ML itself." not in text
    assert "Other devices and versions of macOS." in text


def test_every_level_and_component_has_words() -> None:
    assert set(LEVELS) <= set(words.LEVELS)
    assert {*COMPONENTS, "artifact", "pipeline"} == set(words.NAMES)


def test_numbers_without_a_number_are_shown(document: Document) -> None:
    document["generations"][0].update(psnr_db="inf", ssim=None, latents_cosine=1.0)
    page = Parsed(html(document, IMAGES))
    assert "∞ dB" in page.text
    assert ["999", "∞ dB", "55.0 dB"] in page.rows
    assert ["500", "58.2 dB", "not finite"] in page.rows
    assert ["op_7", "reshape", "∞ dB", "–", "–"] in page.rows
    assert "0.999999" in page.text  # and never rounded to 1


def test_a_picture_that_was_not_kept_is_said_to_be_missing(document: Document) -> None:
    page = html(document, {})
    assert page.count("This picture was not kept.") == 5
    assert not Parsed(page).of("img")


def test_what_is_no_report_or_no_png_is_refused(document: Document) -> None:
    with pytest.raises(InputError, match="not a PNG"):
        html(document, {name: b"GIF89a" for name in IMAGES})
    document["schema"] = 2
    for page in (lambda: html(document, IMAGES), lambda: index_html([document], IMAGES)):
        with pytest.raises(InputError, match="schema 2; this tool reads 1"):
            page()


def test_headings_and_regions_are_in_order(document: Document) -> None:
    for page in (html(spoil(document), IMAGES), index_html([document], IMAGES)):
        parsed = Parsed(page)
        levels = [int(tag[1]) for tag, _ in parsed.elements if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in zip([0, *levels], levels, strict=False))
        names = [a["id"] for _, a in parsed.elements if "id" in a]
        assert len(names) == len(set(names))
        assert {a["aria-labelledby"] for _, a in parsed.elements if "aria-labelledby" in a} <= {
            *names
        }
        assert parsed.of("html") == [{"lang": "en"}]


def test_the_index_links_every_report(document: Document) -> None:
    other = spoil(copy.deepcopy(document))
    other["artifact"] = "toy 100%_split?einsum"
    page = index_html([document, other], IMAGES)
    parsed = Parsed(page)
    links = [a["href"] for a in parsed.of("a")]
    failed, passed = "toy%20100%25_split%3Feinsum.html", f"{document['artifact']}.html"
    assert links[0] == failed  # what did not pass comes first
    assert links[-2:] == [failed, passed]
    assert set(links) == {failed, passed}
    assert "1 of 2 artifacts passed" in parsed.text
    assert "UNet, t=999 uncond, noise_pred" in parsed.text
    row = next(r for r in parsed.rows if "split?einsum" in r[0])
    assert row[3] == "✗not finite"
    thumbnails = [base64.b64decode((p["src"] or "").split(",")[1]) for p in parsed.of("img")]
    assert len(thumbnails) == 2
    with Image.open(io.BytesIO(thumbnails[0])) as image:
        assert image.format == "JPEG"
        assert image.size == (128, 96)


def test_images_are_read_from_beside_the_report(document: Document, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in list(IMAGES)[:4]:
        (tmp_path / name).write_bytes(IMAGES[name])
    assert read_images(document, tmp_path) == dict(list(IMAGES.items())[:4])


def test_a_chart_places_values_against_the_limit() -> None:
    series = Series("a", [(999, 50.0), (500, 20.0), (0, None)]), Series("b", [(999, float("inf"))])
    page = Parsed(error_chart("SNR", series, 35.0))
    (limit,) = [a for a in page.of("line") if a["class"] == "gate"]
    first, second = (a for a in page.of("circle"))
    assert float(first["cy"] or 0) < float(limit["y1"] or 0) < float(second["cy"] or 0)
    assert float(first["cx"] or 0) < float(second["cx"] or 0)  # time runs from noise to picture
    assert "×" in page.text
    assert "∞" in page.text
    assert "limit 35 dB" in page.text


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip(
            f"none of {', '.join(NAMES)}, and no $CHROMIUM: layout, dark mode, print, keyboard and "
            "network silence of the report's page were not checked"
        )
    with Browser(program) as found:
        yield found


@pytest.fixture
def page_file(document: Document, tmp_path: Path) -> Path:
    file = tmp_path / "report.html"
    file.write_text(html(spoil(document), IMAGES, index="index.html"), "utf-8")
    return file


@pytest.fixture
def index_file(document: Document, tmp_path: Path) -> Path:
    file = tmp_path / "index.html"
    file.write_text(index_html([document, spoil(copy.deepcopy(document))], IMAGES), "utf-8")
    return file


# For each text on the page its WCAG 2 contrast with the opaque background that is under it.
CONTRASTS = """
(() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).slice(0, 3).map((c) =>
      c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script")) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    let under = element;
    while (under.parentElement && (channels(getComputedStyle(under).backgroundColor)[3] ?? 1) < 1)
      under = under.parentElement;
    const [a, b] = [luminance(color), luminance(getComputedStyle(under).backgroundColor)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([Math.round(ratio * 100) / 100, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
})()
"""


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["report", "index"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_is_readable_wide_and_narrow_light_and_dark(
    browser: Browser, page_file: Path, index_file: Path, kind: str, width: int
) -> None:
    file = page_file if kind == "report" else index_file
    brightness = {}
    for scheme in ("light", "dark"):
        page = browser.open(file, width=width, dark=scheme == "dark")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 40
        assert min(contrasts)[0] >= 4.5, min(contrasts)
        shot = SCREENSHOTS / f"{kind}-{width}-{scheme}.png"
        page.screenshot(shot)
        with Image.open(shot) as image:
            pixels = np.asarray(image.convert("L"))
        assert pixels.shape[1] == width
        assert pixels.std() > 10  # something is on it
        brightness[scheme] = np.median(pixels)
        assert page.requests() == [file.as_uri()]
        assert page.complaints() == []
    assert brightness["light"] > 220
    assert brightness["dark"] < 40


@pytest.mark.browser
def test_pictures_can_be_compared_with_the_keyboard_alone(
    browser: Browser, page_file: Path
) -> None:
    page = browser.open(page_file)

    def state(script: str) -> Any:
        return page.evaluate(
            f"(() => {{ const c = document.querySelector('.compare'); {script} }})()"
        )

    def visible() -> list[str]:
        return list(
            state(
                "return [...c.querySelectorAll('figure')].filter((f) => f.checkVisibility("
                "{visibilityProperty: true})).map((f) => f.className)"
            )
        )

    assert visible() == ["reference", "candidate"]
    state("c.querySelector('input').focus()")
    page.press("ArrowRight")
    assert state("return c.dataset.view") == "slider"
    page.press("Tab")
    assert state("return document.activeElement === c.querySelector('.split')")
    page.press("Home")
    page.press("ArrowRight")
    clip = "return getComputedStyle(c.querySelector('.candidate img')).clipPath"
    assert state(clip) == "inset(0px 0px 0px 1%)"
    state("c.querySelector('input:checked').focus()")
    page.press("ArrowRight")
    assert state("return c.dataset.view") == "flicker"
    assert visible() in (["reference"], ["candidate"])
    assert state(
        "c.querySelector('.turn').click(); return c.querySelector('.turn').textContent"
    ) == ("Change picture")
    before = visible()
    state("c.querySelector('.turn').click()")
    assert [*before, *visible()] in (["reference", "candidate"], ["candidate", "reference"])
    state("c.querySelector('input:checked').focus()")
    page.press("ArrowRight")
    assert visible() == ["difference"]
    pixel = "return [...c.querySelector('canvas').getContext('2d').getImageData(9, 7, 1, 1).data]"
    assert state(pixel) == [8, 8, 8, 255]  # neighbouring pictures differ by one level
    assert "Largest difference: 1 of 255" in state(
        "return c.querySelector('.difference').innerText"
    )
    page.screenshot(SCREENSHOTS / "report-difference.png")
    assert page.complaints() == []


def columns(page: Page) -> list[list[int]]:
    """Left edge and width of the pictures that are seen."""
    return list(
        page.evaluate(
            "[...document.querySelector('.stage').querySelectorAll('figure')].filter((f) => "
            "f.checkVisibility()).map((f) => f.getBoundingClientRect()).map((r) => "
            "[Math.round(r.left), Math.round(r.width)])"
        )
    )


@pytest.mark.browser
def test_without_scripts_and_on_paper_the_pictures_stand_side_by_side(
    browser: Browser, page_file: Path
) -> None:
    page = browser.open(page_file, scripts=False)
    (left, width), (right, other) = columns(page)
    assert right >= left + width > left + 100
    assert other == width
    assert page.complaints() == []
    page = browser.open(page_file)
    page.evaluate("document.querySelector('input[value=difference]').click()")
    assert len(columns(page)) == 1
    page.call("Emulation.setEmulatedMedia", media="print")
    assert len(columns(page)) == 2


@pytest.mark.browser
def test_a_page_that_was_tampered_with_loads_nothing(browser: Browser, page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    extra = '<img src="http://127.0.0.1:9/x.png"><script>document.title = "changed"</script>'
    page_file.write_text(text.replace("</main>", f"{extra}</main>"), "utf-8")
    page = browser.open(page_file)
    assert page.evaluate("document.title").startswith("Failed")
    assert len(page.complaints()) == 2
    assert all("Content Security Policy" in text for text in page.complaints())


@pytest.mark.browser
def test_a_screenshot_takes_one_call(browser: Browser, index_file: Path, tmp_path: Path) -> None:
    screenshot(index_file, tmp_path / "new" / "index.png", 500)
    with Image.open(tmp_path / "new" / "index.png") as image:
        assert image.width == 500
