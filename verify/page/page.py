"""Results as a page that anyone can read: one file, everything in it, nothing fetched.

The report's JSON is the source; `verify/templates` holds the page. A Content-Security-Policy that
allows only images inside the page and its own style and script, known by their digests, keeps the
browser from loading anything else.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from convert.components import COMPONENTS
from convert.errors import InputError
from verify.judge.checks import PICTURE_LEVELS, worst
from verify.page import curves, matrix, view, words
from verify.page.chart import swatch
from verify.reports import figures
from verify.reports.evidence import how_verified
from verify.reports.report import MARKS, SCHEMA
from verify.reports.summary import SHORT

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_FAILURES = 5  # artifacts; the others are folded, as all are where there are more than
MOST_ROWS = 12  # of them
THUMBNAIL = 192  # pixels of the longer side, twice what is shown
_PNG = b"\x89PNG\r\n\x1a\n"

Images = Mapping[str, bytes]


def html(
    document: Mapping[str, Any],
    images: Images,
    *,
    command: str | None = None,
    index: str | None = None,
) -> str:
    """The report of one artifact as an HTML page.

    Args:
        document: the report's JSON, see `verify.reports.report.to_json`.
        images: PNG files by the paths that the document has; the page says which are missing.
        command: the command line that repeats the verification; made from the document if None.
        index: a relative link to the page of all artifacts.

    Raises:
        InputError: the document is of another schema, or an image is not a PNG.
    """
    _require_schema(document)
    checks = document["checks"]
    levels, rows = view.matrix(checks)
    return _render(
        "report.html",
        report=document,
        index=index,
        sentence=words.sentence(document),
        how=how_verified(document).sentence() if document.get("evidence") else None,
        is_compressed=not figures.is_one(document),
        ran=words.ran(document),
        tiles=view.tiles(document),
        failures=view.failures(checks, document["artifact"], document["source"]),
        runs=[_run(g, document, images) for g in view.failed_first(document)],
        step_chart=curves.step_chart(document),
        levels=levels,
        rows=rows,
        measurements=view.measurements(checks),
        worst_ops=document.get("worst_ops", {}),
        verified=words.verified(checks),
        not_verified=words.not_verified(
            set(levels),
            view.components(checks),
            document["runtime"],
            document["resolution"],
            how_verified(document).reach,
        ),
        command=command or view.command(document),
    )


def index_html(documents: Sequence[Mapping[str, Any]], images: Images) -> str:
    """The page of a run: its artifacts by attention, resolution and bits, then a row for each; both
    link to `<artifact>.html`.

    Args:
        documents: the reports' JSON.
        images: PNG files by the paths that the documents have; an artifact's first picture becomes
            its thumbnail.

    Raises:
        InputError: a document is of another schema, or an image is not a PNG.
    """
    rows = []
    for document in documents:
        _require_schema(document)
    for document in matrix.failed_first(documents):
        generations = document.get("generations", [])
        shown = [
            g["images"]["candidate"] for g in generations if g["images"]["candidate"] in images
        ]
        bad = [c for c in document["checks"] if c["verdict"] != "pass"]
        counts = figures.count(document["checks"])
        psnr = [float(g["psnr_db"]) for g in generations if g["psnr_db"] is not None]
        rows.append(
            {
                "report": document,
                "link": quote(f"{document['artifact']}.html"),
                "thumbnail": _thumbnail(images[shown[0]]) if shown else None,
                "cells": view.index_cells(document),
                "psnr": figures.show(min(psnr, default=None)),
                "counts": counts,
                "evidence": how_verified(document).short,
                "problems": bad[:3],
                "more": len(bad[3:]),
            }
        )
    grids = matrix.grids(documents) if len(documents) > 1 else []
    return _render(
        "index.html",
        grids=grids,
        usual_size=matrix.usual_size(grids),
        has_sizes=any(c.get("size") for d in documents for c in d["checks"]),
        legend=matrix.legend(documents),
        verdict=worst(document["verdict"] for document in documents),
        rows=rows,
        shown=SHOWN_FAILURES,
        most_rows=MOST_ROWS,
        passed=sum(document["verdict"] == "pass" for document in documents),
        components=[(SHORT[c], words.NAMES[c]) for c in COMPONENTS],
        pictures=any(row["thumbnail"] for row in rows),
        is_compressed=not all(map(figures.is_one, documents)),
        scopes=list(dict.fromkeys(document["scope"] for document in documents)),
    )


def read_images(document: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """The images that a report in this folder names, as far as they are there."""
    names = [n for g in document.get("generations", []) for n in g["images"].values() if n]
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _run(
    generation: Mapping[str, Any], document: Mapping[str, Any], images: Images
) -> dict[str, Any]:
    """One generation with its pictures in the page, its chart and its verdict."""
    of = [
        c
        for c in document["checks"]
        if c["level"] in PICTURE_LEVELS and c["case"] == generation["case"]
    ]
    pictures = {
        name: _picture(images[path]) if path in images else None
        for name, path in generation["images"].items()
    }
    return {
        **generation,
        "verdict": worst(c["verdict"] for c in of) if of else None,
        "pictures": pictures,
        "has_start": generation["images"].get("start") is not None,
        "chart": curves.generation_chart(generation, document),
    }


def _picture(png: bytes) -> dict[str, Any]:
    """A PNG as an address that holds it, and its size in pixels."""
    if not png.startswith(_PNG):
        raise InputError("an image of the report is not a PNG")
    return {
        "address": _address("image/png", png),
        "width": int.from_bytes(png[16:20]),
        "height": int.from_bytes(png[20:24]),
    }


def _thumbnail(png: bytes) -> dict[str, Any]:
    """A small JPEG of a PNG, in the form of `_picture`."""
    from PIL import Image

    _picture(png)
    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    address = _address("image/jpeg", file.getvalue())
    return {"address": address, "width": small.width, "height": small.height}


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _require_schema(document: Mapping[str, Any]) -> None:
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"the report has schema {document.get('schema')!r}; this tool reads {SCHEMA}"
        )


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    """The templates; everything that a report says is escaped, undefined names are errors."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    environment.globals.update(
        style=Markup(style),
        script=Markup(script),
        policy="; ".join(
            (
                "default-src 'none'",
                "img-src data:",
                f"style-src '{_digest(style)}'",
                f"script-src '{_digest(script)}'",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        marks=MARKS,
        verdicts=words.VERDICTS,
        definitions=words.DEFINITIONS,
        swatch=lambda number: Markup(swatch(number)),
    )
    environment.filters.update(
        show=figures.show,
        decibels=figures.decibels,
        found=figures.found,
        cosine=view.cosine,
        case=words.case,
        sentence=words.capital,
        size=words.size,
        gate=words.gate_words,
        component=words.component_name,
        svg=Markup,
    )
    return environment


def _digest(text: str) -> str:
    """A text's SHA-256 as a Content-Security-Policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
