"""What a report shows as an SNR: of a compressed artifact the checkpoint's, or named program."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from convert.opening.door import open_checkpoint
from convert.plan.plan import make_plan
from convert.recipe.recipe import parse_recipe
from convert.run.run import run
from convert.source.download import Snapshot
from release.build import build_release
from release.pack.pack import find_artifacts
from verify.batch import Outcome, verify_all
from verify.judge.checks import Results
from verify.judge.policy import load_policy
from verify.reports import figures, report
from verify.reports.baseline import bless
from verify.reports.diff import diff
from verify.reports.summary import summary_markdown, summary_table

pytestmark = pytest.mark.usefixtures("one_thread")
SIXTEEN, SIX = "r_original_16-bit_64x64", "r_original_6-bit_64x64"
RECIPE = """
name = "r"
source.path = "toy"
matrix = { attention = ["original"], resolution = ["64x64"], bits = ["16", "6"] }
[verify]
gates = [{ bits = "6", component = "unet", min_snr_db = 10.0 }]
"""
Report = dict[str, Any]


class Run:
    """A run of the toy in 16 and 6 bits: its folder, its reports and, of 6 bits, its results."""

    def __init__(self, out: Path, outcome: Outcome, results: Results, release: Path) -> None:
        self.out, self.outcome, self.results, self.release = out, outcome, results, release
        self.sixteen, self.six = outcome.reports

    def lowest(self, level: str, component: str = "unet") -> float:
        """Straight from the checks: the lowest SNR of a component's outputs at a level."""
        return min(
            c["metrics"]["snr_db"]
            for c in self.six["checks"]
            if (c["level"], c["component"]) == (level, component)
            and c["metrics"]
            and "weight" not in c["case"]
        )


@pytest.fixture(scope="module")
def toy_run(one_thread: None, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("figures") / "out"
    plan = make_plan(parse_recipe(RECIPE, where="test"), open_checkpoint(toy))
    made = run(plan, Snapshot(toy, None, None, ()), out, jobs=1)
    kept: list[Results] = []

    def told(results: Results, *arguments: Any, **options: Any) -> Report:
        kept.append(results)
        return original(results, *arguments, **options)

    original = report.to_json
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "to_json", told)
        outcome = verify_all(out, made, plan)
    build_release(find_artifacts(out), out / "release", reports=out / "reports")
    return Run(out, outcome, kept[-1], out / "release")


class Page(HTMLParser):
    """A page's text, and its tables' cells by row."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text, self.rows, self._skip, self._cell = "", list[list[str]](), False, False
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._skip = tag in ("style", "script")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._cell = tag in ("td", "th") or (self._cell and tag not in ("table", "tr"))

    def handle_endtag(self, tag: str) -> None:
        self._skip = self._skip and tag not in ("style", "script")
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.text += data
            if self._cell:
                self.rows[-1][-1] += data


def printed(shown: Any) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_two_figures_of_a_compressed_model_and_one_of_another(toy_run: Run) -> None:
    checkpoint, program = toy_run.lowest("compression"), toy_run.lowest("conversion")
    assert checkpoint < 35 < program - 5  # or else nothing below says anything
    assert toy_run.six["compressed"] == ["text_encoder", "text_encoder_2", "unet"]
    assert toy_run.six["components"]["unet"] == {"snr_db": checkpoint, "program_snr_db": program}
    vae = toy_run.six["components"]["vae_decoder"]
    assert vae["snr_db"] == vae["program_snr_db"]
    assert toy_run.sixteen["compressed"] == []
    assert all(c["snr_db"] == c["program_snr_db"] for c in toy_run.sixteen["components"].values())
    assert toy_run.six["snr_db"] == min(c["snr_db"] for c in toy_run.six["components"].values())


def test_every_snr_of_six_bits_is_the_checkpoints_or_is_called_the_programs(toy_run: Run) -> None:
    """Terminal, summary.md, card and both pages: wherever the program's 6-bit SNR of the UNet is
    written, `program` stands in the same row, and the checkpoint's stands beside it."""
    checkpoint, program = (f"{toy_run.lowest(lv):.1f}" for lv in ("compression", "conversion"))
    six, out = toy_run.six, toy_run.out
    for text in (printed(summary_table([six])), (out / "reports" / "summary.md").read_text()):
        rows = [row for row in text.splitlines() if row.startswith(("| ✓", "|  |", "✓", "   "))]
        first = next(n for n, row in enumerate(rows) if SIX in row)
        assert "checkpoint" in rows[first]
        assert checkpoint in rows[first]
        assert program not in rows[first]
        assert "program" in rows[first + 1]
        assert program in rows[first + 1]
    for text in (printed(report.table(toy_run.results)), report.markdown(toy_run.results)):
        conversion = next(r for r in text.splitlines() if re.search(r"conversion.*unet", r))
        compression = next(r for r in text.splitlines() if re.search(r"compression.*unet", r))
        assert f"program: lowest SNR {program} dB (t=37" in conversion
        assert f"checkpoint: lowest SNR {checkpoint} dB (t=37, noise_pred)" in compression
        assert re.search(r"weights: lowest SNR [\d.]+ dB \(weights, worst of \d+,", compression)
        assert re.search(rf"Lowest SNR: checkpoint {six['snr_db']:.1f} dB .*, program ", text)
        assert "SNR ≥" not in text
    page = Page(out / "reports" / f"{SIX}.html")
    head = page.text[: page.text.index("Models and levels")]
    said = re.findall(r"SNR[^0-9]*?([\d.]+) dB", head)
    assert f"{six['snr_db']:.1f}" in said
    assert re.search(rf"Lowest SNR of the program\s*{six['program_snr_db']:.1f} dB", head)
    assert f"SNR is {six['snr_db']:.1f} dB" in head
    for row in page.rows:
        for cell in row:
            if re.search(rf"SNR\s+{re.escape(program)} dB", cell):
                assert f"program: lowest SNR {program} dB" in cell
    chart = page.text[page.text.index("The same in numbers") :]
    assert "Against the checkpoint" in page.text
    assert re.search(rf"37\s*{checkpoint} dB\s*{program} dB", chart)
    (row,) = (r for r in Page(out / "reports" / "index.html").rows if SIX in r[0])
    assert re.fullmatch(rf"\s*{checkpoint}\s+program {program}\s*", row[3])


def test_json_junit_release_and_card_have_both_figures(toy_run: Run) -> None:
    six, out = toy_run.six, toy_run.out
    summary = json.loads((out / "reports" / "summary.json").read_text())
    (entry,) = (r for r in summary["results"] if r["artifact"] == SIX)
    saved = json.loads((out / "reports" / f"{SIX}.json").read_text())
    for found in (entry, saved):
        assert {k: found[k] for k in ("snr_db", "program_snr_db", "components")} == {
            k: six[k] for k in ("snr_db", "program_snr_db", "components")
        }
    assert entry["snr_db"] < entry["program_snr_db"] - 5
    root = ElementTree.fromstring(report.junit(toy_run.results))
    facts = {p.get("name"): p.get("value") or "" for p in root.iter("property")}
    assert facts["checkpoint snr"].startswith(f"{six['snr_db']:.1f} dB (")
    assert facts["program snr"].startswith(f"{six['program_snr_db']:.1f} dB (")
    for case in root.iter("testcase"):
        kind = {"conversion": "program", "compression": "(checkpoint|weights)"}
        if text := case.findtext("system-out"):
            assert re.match(kind[str(case.get("classname")).split(".")[0]] + ": lowest SNR", text)
    manifest = json.loads((toy_run.release / "manifest.json").read_text())
    (archive,) = (a["manifest"] for a in manifest["archives"] if a["manifest"]["artifact"] == SIX)
    checked = archive["verification"]
    assert checked["snr_db"] == round(six["snr_db"], 2)
    assert checked["program_snr_db"] == round(six["program_snr_db"], 2)
    assert checked["lowest_snr_db"]["compression"]["unet"] == round(
        toy_run.lowest("compression"), 2
    )
    card = (toy_run.release / "README.md").read_text()
    lines = [line for line in card.splitlines() if line.startswith("|")]
    heads = [cell.strip() for cell in lines[0].split("|")]
    (row,) = ([c.strip() for c in line.split("|")] for line in lines if f"{SIX}.zip" in line)
    cells = dict(zip(heads, row, strict=True))
    assert cells["SNR, checkpoint"] == f"{checked['snr_db']:.1f} dB"
    assert cells["SNR, program"] == f"{checked['program_snr_db']:.1f} dB"
    assert "snr_db >= 10" in card  # what was asked of it


def test_diff_says_which_figure_is_worse(toy_run: Run) -> None:
    old = bless(toy_run.outcome.reports, "a test")["reports"]
    for level, name in (("conversion", "program"), ("compression", "checkpoint")):
        new = copy.deepcopy(list(toy_run.outcome.reports))
        check = next(
            c for c in new[1]["checks"]
            if (c["level"], c["component"], c["output"]) == (level, "unet", "noise_pred")
        )  # fmt: skip
        check["metrics"]["snr_db"] -= 3
        (change,) = diff(old, new, load_policy()).worse
        assert change.new.startswith(f"{name} snr_db ")


def test_counts_are_the_same_everywhere(toy_run: Run) -> None:
    six, total = toy_run.six, len(toy_run.six["checks"])
    assert json.loads((toy_run.out / "reports" / "summary.json").read_text())["results"][1][
        "checks"
    ] == {"total": total, "passed": total}
    root = ElementTree.fromstring(report.junit(toy_run.results))
    assert root.get("tests") == str(total) == str(len(list(root.iter("testcase"))))
    assert f"{total}/{total}" in printed(summary_table([six]))
    assert f"{total}/{total}" in summary_markdown([six])
    assert f"({total} checks)" in printed(report.table(toy_run.results))
    assert f"({total} checks)" in report.markdown(toy_run.results)
    page = Page(toy_run.out / "reports" / f"{SIX}.html").text
    assert f"All {total} checks passed" in page
    assert re.search(rf"Checks passed\s*{total} of {total}", page)
    (row,) = (r for r in Page(toy_run.out / "reports" / "index.html").rows if SIX in r[0])
    assert row[-2:] == [f"{total}/{total}", "executed"]


def failing(report_: Report, metric: str, gate: str, value: float, level: str) -> Report:
    """The report with one check of the UNet below its gate."""
    found = copy.deepcopy(report_)
    check = next(
        c for c in found["checks"]
        if (c["level"], c["component"], c["output"]) == (level, "unet", "noise_pred")
    )  # fmt: skip
    check["metrics"][metric] = value
    check.update(gate=gate, verdict="fail", message=f"{metric} is {value:.4g}, {gate} is asked")
    return {**found, "verdict": "fail"}


@pytest.mark.parametrize(
    ("level", "metric", "gate", "value", "figure", "shown"),
    [
        ("compression", "snr_db", "snr_db >= 30", 24.19, "checkpoint", "✗ 24.2"),
        ("conversion", "snr_db", "snr_db >= 35", 24.19, "program", "✗ 24.2"),
        ("conversion", "fp16_error_ratio", "fp16_error_ratio <= 3", 4.1, "program", "✗ 4.1× fp16"),
        ("compression", "nrmse", "nrmse <= 0.01", 0.12, "checkpoint", "✗ NRMSE 0.12"),
    ],
)
def test_a_failed_row_shows_what_failed_and_its_gate_once(
    toy_run: Run, level: str, metric: str, gate: str, value: float, figure: str, shown: str
) -> None:
    bad = failing(toy_run.six, metric, gate, value, level)
    text = printed(summary_table([bad]))
    row = next(r for r in text.splitlines() if figure in r and ":" not in r)
    assert shown in row
    assert text.count("✗") == 3  # the artifact, the cell, the line below
    (line,) = (r for r in text.splitlines() if gate in r)
    assert line.count(gate) == 1
    assert f"{SIX} · {level} · unet · t=999" in line
    assert f"{metric} is {value}" in line
    from verify.page.page import html, index_html

    for page in (html(bad, {}), index_html([bad], {})):
        where = page[page.index("What did not pass") :]
        where = where[: where.index("</article>")]
        assert where.count("Asked:") == 1
        assert f"{metric} is {value:.4g}" in where
        assert "is asked" not in where


def test_a_picture_that_is_near_enough_does_not_hide_latents_that_are_not() -> None:
    check = {
        "level": "generation", "component": "pipeline", "case": "euler 1", "output": "latents",
        "metrics": {"snr_db": 12.0, "cosine": 0.93, "finite": True}, "gate": "cosine >= 0.99",
        "verdict": "fail", "message": "cosine is 0.93, cosine >= 0.99 is asked",
    }  # fmt: skip
    bad = {"bits": "16", "checks": [check], "generations": [{"psnr_db": 41.0}]}
    assert figures.cell(bad, "pipeline", "checkpoint") == (False, "cos 0.9300")


def test_without_level_compression_the_checkpoints_figure_is_not_measured(toy_run: Run) -> None:
    for known in (True, False):  # what earlier versions wrote does not say what is compressed
        less = copy.deepcopy(toy_run.six)
        less["checks"] = [c for c in less["checks"] if c["level"] != "compression"]
        if not known:
            del less["compressed"]
        assert figures.figures_json(less)["snr_db"] is None
        assert figures.figures_json(less)["components"]["unet"]["snr_db"] is None
        assert "checkpoint not measured" in figures.figures_line(less)
        row = next(r for r in printed(summary_table([less])).splitlines() if SIX in r)
        assert "not measured" in row
        assert f"{toy_run.lowest('conversion'):.1f}" not in row


def test_the_checkpoints_figure_is_never_better_than_the_programs(toy_run: Run) -> None:
    found = copy.deepcopy(toy_run.six)
    for check in found["checks"]:
        if (check["level"], check["component"]) == ("compression", "unet") and check["metrics"]:
            check["metrics"]["snr_db"] = 90.0
    unet = figures.figures_json(found)["components"]["unet"]
    assert unet["snr_db"] == unet["program_snr_db"] < 90


@pytest.mark.parametrize("value", ["inf", "-inf", None])
def test_figures_of_every_number_are_json_and_text(toy_run: Run, value: Any) -> None:
    found = copy.deepcopy(toy_run.six)
    for check in found["checks"]:
        if check["metrics"]:
            check["metrics"].update(snr_db=value, finite=value is not None)
    text = json.dumps(figures.figures_json(found), allow_nan=False)
    assert json.loads(text)["snr_db"] == value
    assert printed(summary_table([found]))
    assert math.isinf(figures.snr(found["checks"][-1]))
