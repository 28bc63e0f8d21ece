"""The model card: true of each file, valid for the Hub, and whole when it is rendered."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt
from PIL import Image

from convert.recipe.builtin import builtin_recipe_text
from convert.recipe.recipe import parse_recipe
from release.card.card import compose
from release.card.licenses import front_matter, objection
from release.card.markdown import block, code, escape, table
from release.card.source_card import MARK, SourceCard, copied_part, read_source_card
from release.pack.pack import read_release
from tests.support.browser import find_browser, screenshot

ATTENTION = ("original", "split_einsum")


def html(text: str) -> str:
    """The card as the Hub renders it: CommonMark with tables and HTML."""
    body = text.split("\n---\n", 1)[1]
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))


@pytest.fixture(scope="session")
def animagine(base_release: Path) -> dict[str, Any]:
    """A release manifest of all of animagine's artifacts, made from a real one."""
    manifest = read_release(base_release)
    recipe = builtin_recipe_text("animagine-xl-3.1")
    manifest["recipe"] = {"name": "animagine-xl-3.1", "digest": "0" * 64, "text": recipe}
    manifest["source"] |= {"repo": "cagliostrolab/animagine-xl-3.1", "commit": "1" * 40}
    (archive,) = manifest["archives"]
    archives = []
    for artifact in parse_recipe(recipe, where="test").artifacts():
        one = copy.deepcopy(archive)
        one["archive"] = f"{artifact.name}.zip"
        one["files"][0]["name"] = f"{artifact.name}.zip"
        one["manifest"] |= {
            "artifact": artifact.name,
            "attention": artifact.attention,
            "bits": artifact.bits,
            "resolution": str(artifact.resolution),
        }
        archives.append(one)
    return {**manifest, "archives": archives}


def test_the_card_of_a_release_shows_its_images_and_copies_the_source(base_release: Path) -> None:
    text = (base_release / "README.md").read_text()
    page = html(text)
    (image,) = re.findall(r'<img src="([^"]+)"', page)
    assert (base_release / image).is_file()
    assert "a `toy` | with &lt;b&gt;bold&lt;/b&gt; marks" in page  # as it was given
    assert "PSNR 41.3 dB" in page
    assert "The rest of this card was copied from" in page
    assert text.rstrip().endswith("# Base\n\nA base model.")
    assert "55.1 dB" in page
    assert "Not verified" not in page


def test_the_card_says_what_published_cards_say_and_correctly(animagine: dict[str, Any]) -> None:
    page = html(compose(animagine))
    for fact in (
        "<code>original</code> runs on <code>CPU &amp; GPU</code> only",
        "takes minutes",
        "Variant, bits and width × height stand in each file's name",
        "all files from macOS 14 and iOS 17 on",
        "<strong>Image-to-image</strong>: all files",
        "for iPhones and iPads: no file",
        "There is no safety checker",
        "ControlNet cannot be used",
        "Not everything that the original model does works in Core ML",
        "has no Euler a scheduler: choose DPM-Solver++",
    ):
        assert fact in page, fact


def test_loras_are_named_with_strengths_and_digests(animagine: dict[str, Any]) -> None:
    lora = {
        "file": "loras/detail.safetensors",
        "sha256": "a" * 64,
        "scale": 0.8,
        "text_scale": 0.6,
        "kinds": {"LoRA": {"unet": 722}, "DoRA": {"unet": 1}},
        "ignored": ["embedding `style` inside the file"],
    }
    plain = compose(animagine)
    card = compose({**animagine, "source": {**animagine["source"], "loras": [lora]}})
    assert "Merged into" not in plain
    assert (
        f"<code>detail.safetensors</code> (LoRA, DoRA), strength 0.8, of the text encoders 0.6, "
        f"SHA-256 <code>{'a' * 64}</code>; not applied: embedding" in html(card)
    )


def test_embeddings_are_named_with_words_and_digests(animagine: dict[str, Any]) -> None:
    embedding = {
        "files": {"embeddings/negative.safetensors": "a" * 64},
        "words": ["negxl", "negxlb"],
        "text_encoders": ["text_encoder", "text_encoder_2"],
        "notes": ["`negxl` because `neg` can be no word"],
    }
    plain = html(compose(animagine))
    source = {**animagine["source"], "embeddings": [embedding]}
    card = html(compose({**animagine, "source": source}))
    assert "Embeddings" not in plain
    assert (
        "<code>negxl negxlb</code> (<code>negative.safetensors</code>, SHA-256 "
        f"<code>{'a' * 64}</code>); <code>negxl</code> because" in card
    )


def test_clip_skip_is_explained_once(animagine: dict[str, Any]) -> None:
    assert "clip skip 2 is what SDXL always does" in html(compose(animagine))
    pony = {"name": "pony-v6-xl", "digest": "0" * 64, "text": builtin_recipe_text("pony-v6-xl")}
    text, _, _ = compose({**animagine, "recipe": pony}).partition("<summary>recipe.toml")
    assert text.lower().count("clip skip 2") == 1


def test_another_vae_is_named_with_its_digest_and_what_it_computes_in(
    animagine: dict[str, Any],
) -> None:
    vae = {
        "name": "madebyollin/sdxl-vae-fp16-fix",
        "files": {"other-vae/diffusion_pytorch_model.safetensors": "a" * 64},
        "layout": "a VAE's folder in diffusers' layout",
        "known": "madebyollin/sdxl-vae-fp16-fix",
        "license": "mit",
        "commit": "b" * 40,
    }
    plain = html(compose(animagine))
    because = "its config.json says `force_upcast`: false"
    archives = [
        {**a, "manifest": {**a["manifest"], "vae_precision": "float16",
                           "vae_precision_because": because}}
        for a in animagine["archives"]
    ]  # fmt: skip
    source = {**animagine["source"], "vae": vae}
    card = html(compose({**animagine, "source": source, "archives": archives}))
    assert "In place of the checkpoint" not in plain
    assert "The VAE computes in" not in plain
    assert f"SHA-256 <code>{'a' * 64}</code>" in card
    assert "(licence: mit)" in card
    assert card.count("The VAE computes in float16: its config.json says") == 1


def test_the_base_that_a_file_lacked_is_named(animagine: dict[str, Any]) -> None:
    base = {"name": "sdxl-base", "repo": "stabilityai/sdxl-base", "commit": "b" * 40}
    card = html(compose({**animagine, "source": {**animagine["source"], "base": base}}))
    told = f"lacks comes from <code>stabilityai/sdxl-base</code> at commit <code>{'b' * 40}</code>"
    assert told in card
    assert "lacks comes from" not in html(compose(animagine))


def test_every_file_has_its_row(animagine: dict[str, Any]) -> None:
    page = html(compose(animagine))
    rows = {
        cells[0]: cells[1:]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
        if len(cells := [re.sub("<.*?>", "", c) for c in re.findall(r"<td.*?>(.*?)</td>", row)]) > 8
    }
    assert len(rows) == 2 * 2 * 9
    row = rows["animagine-xl-3.1_split-einsum_6-bit_832x1216.zip"]
    assert row[:3] == ["split_einsum", "832 × 1216", "6"]
    assert row[5:7] == ["CPU &amp; Neural Engine, or CPU &amp; GPU", "macOS 14, iOS 17"]
    row = rows["animagine-xl-3.1_original_8-bit_1536x640.zip"]
    assert row[:3] == ["original", "1536 × 640", "8"]
    assert row[5] == "CPU &amp; GPU"


def test_settings_sizes_and_tags_of_animagine_are_in_tables(animagine: dict[str, Any]) -> None:
    page = html(compose(animagine))
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", page)]
    pairs = list(pairwise(cells))
    for pair in (
        ("Scheduler", "Euler a"),
        ("Steps", "28"),
        ("Guidance scale (CFG)", "7"),
        ("masterpiece", "&gt; 95%"),
        ("explicit, nsfw", "Explicit"),
        ("newest", "2021 to 2024"),
        ("very displeasing", "≤ 0.27"),
        ("1216 × 832", "19:13"),
        ("640 × 1536", "5:12"),
    ):
        assert pair in pairs, pair
    blocks = re.findall(r"<pre><code[^>]*>(.*?)\n</code></pre>", page, re.DOTALL)
    assert "masterpiece, best quality, very aesthetic, absurdres" in blocks
    assert any(b.startswith("nsfw, lowres, (bad), text, error") for b in blocks)


def test_what_is_true_of_some_files_only_says_of_which(animagine: dict[str, Any]) -> None:
    some = copy.deepcopy(animagine)
    some["archives"] = some["archives"][:2]
    first, second = (a["manifest"] for a in some["archives"])
    del first["components"]["vae_encoder"]
    first |= {"verdict": None, "verification": None}
    second |= {"minimum_system": "macOS 15, iOS 18"}
    page = html(compose(some))
    names = [a["archive"] for a in some["archives"]]
    assert f"<strong>Not verified</strong>: <code>{names[0]}</code>." in page
    assert "not verified</td>" in page
    assert f"Image-to-image</strong>: <code>{names[1]}</code>" in page
    assert f"System: <code>{names[1]}</code> from macOS 15 and iOS 18 on" in page


def test_the_front_matter_is_the_hubs(animagine: dict[str, Any]) -> None:
    data = ModelCard(compose(animagine)).data.to_dict()
    assert data == {
        "license": "other",
        "license_name": "faipl-1.0-sd",
        "license_link": "https://freedevproject.org/faipl-1.0-sd/",
        "language": ["en"],
        "tags": ["coreml", "text-to-image", "stable-diffusion-xl"],
        "pipeline_tag": "text-to-image",
        "base_model": "cagliostrolab/animagine-xl-3.1",
        "base_model_relation": "quantized",
    }


def test_what_the_recipe_leaves_open_is_the_sources(base_release: Path) -> None:
    source = SourceCard("text", {"license": "openrail++", "language": ["en", "ja"], "tags": ["x"]})
    data = ModelCard(compose(read_release(base_release), source=source)).data.to_dict()
    assert (data["license"], data["language"]) == ("openrail++", ["en", "ja"])
    assert "x" not in data["tags"]
    assert "base_model" not in data


@pytest.fixture
def validator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The Hub's card validation on 127.0.0.1; gives what was asked of it."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, **body})
            front = body["content"].split("---")[1]
            good = "license: other" not in front or "license_name: " in front
            answer = b"" if good else b"license_name is required where license is other"
            self.send_response(200 if good else 400)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield asked
    server.shutdown()
    server.server_close()


def test_the_card_passes_the_hubs_validation(
    animagine: dict[str, Any], validator: list[dict[str, Any]]
) -> None:
    text = compose(animagine)
    ModelCard(text).validate()
    (asked,) = validator
    assert (asked["path"], asked["repoType"]) == ("/api/validate-yaml", "model")
    assert asked["content"] == text
    with pytest.raises(ValueError, match="license_name is required"):
        ModelCard(text.replace("license_name", "licence_name")).validate()


def test_a_sources_card_is_copied_without_its_front_matter(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text(
        "---\nlicense: mit\nlanguage:\n- en\n---\n# Model\n\n![a](01.png) [b](https://x.org/y) "
        '<img src="./b/c.png"> [d](#part)\n',
        "utf-8",
    )
    card = read_source_card(file, repo="owner/model", commit="abc")
    assert card is not None
    assert card.data == {"license": "mit", "language": ["en"]}
    base = "https://huggingface.co/owner/model/resolve/abc"
    assert card.text == (
        f'# Model\n\n![a]({base}/01.png) [b](https://x.org/y) <img src="{base}/b/c.png"> [d](#part)'
    )
    assert read_source_card(tmp_path / "none.md") is None


@pytest.mark.parametrize("content", ["", "---\n: [\n---\nx", "no front matter", "---\n- a\n---\nx"])
def test_odd_cards_are_copied_all_the_same(tmp_path: Path, content: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(content)
    card = read_source_card(file)
    assert card is not None
    assert card.data == {}


def test_a_card_written_again_keeps_what_it_copied(base_release: Path) -> None:
    kept = copied_part(base_release / "README.md")
    assert kept is not None
    assert kept.text == "# Base\n\nA base model."
    again = compose(read_release(base_release), source=kept)
    assert again.count(MARK) == 1


@pytest.mark.skipif(find_browser() is None, reason="no Chromium here: the picture was not taken")
def test_the_card_is_a_page_that_a_browser_shows(base_release: Path, tmp_path: Path) -> None:
    page = base_release.parent / "card.html"  # beside the release, for its images
    body = html((base_release / "README.md").read_text())
    page.write_text(
        '<!doctype html><meta charset="utf-8"><base href="release/"><body style="margin:1em">'
        + body
    )
    screenshot(page, tmp_path / "card.png", width=900)
    with Image.open(tmp_path / "card.png") as picture:
        width, height = picture.size
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert width == 900
    assert height > 1000
    assert (40, 90, 160) in colours  # the sample image


NASTY = [
    "a|b", "*x*", "_x_", "<script>", "`x`", "``", "[x](y)", "![x](y)", "# x", "- x", "+ x", "1. x",
    "1) x", "> x", "~~x~~", "a & b", "&lt;", "\\", "a\\|b", "$x$", "===", "x\ny",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY)
def test_any_text_is_shown_as_it_is(text: str) -> None:
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])

    def shown(source: str, tag: str) -> str:
        match = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", markdown.render(source), re.DOTALL)
        assert match, markdown.render(source)
        plain = re.sub("<.*?>", "", match[1])
        for entity, sign in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
            plain = plain.replace(entity, sign)
        return plain

    line = " ".join(text.split())
    assert shown(escape(text), "p") == line
    assert shown(table(["h"], [[escape(text)]]), "td") == line
    assert shown(code(text), "code") == line
    assert shown(block(text), "code") == text + "\n"
    if "\\|" not in line:  # GFM reads a backslash before a pipe as the pipe, even in code
        assert shown(table(["h"], [[code(text, in_table=True)]]), "code") == line


def test_licences() -> None:
    assert front_matter("openrail++", None, "https://x.org/l") == {"license": "openrail++"}
    assert front_matter("faipl-1.0-sd", None, None) == {
        "license": "other",
        "license_name": "faipl-1.0-sd",
    }
    assert front_matter(None, None, None) == {}
    assert objection("openrail++") is None
    assert objection("other", "faipl-1.0-sd") is None
    for license, name in (("cc-by-nd-4.0", None), ("other", None), (None, None)):
        found = objection(license, name)
        assert found is not None
        assert found.reason
