"""What is wrong with a bundle in itself, whatever app reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from convert.errors import InputError
from convert.files.documents import Document, FileFacts, checked
from release.lint import apps
from release.lint.app_view import exists
from release.lint.compiled import completeness, disagreements, states
from release.lint.interface import mismatches
from release.lint.rules import Finding
from release.lint.swift import Undecodable, metadata
from release.lint.tree import Tree, digest, read, read_json
from release.pack.manifest import FILE

REQUIRED = ("TextEncoder", "TextEncoder2", "Unet", "VAEDecoder", "VAEEncoder")
KNOWN = {
    *REQUIRED, "UnetChunk1", "UnetChunk2", "UnetRefiner", "UnetRefinerChunk1", "UnetRefinerChunk2",
    "ControlledUnet", "SafetyChecker",
}  # fmt: skip


class _BundleManifest(Document):
    """What is read of a bundle's manifest."""

    artifact: str
    verdict: str | None = None
    files: dict[str, FileFacts]


def layout(tree: Tree) -> Iterator[Finding]:
    """Are the models and the tokenizer directly inside, compiled, and all there?"""
    nested = sorted({p.split("/")[0] for p in tree.files if re.match(r"[^/]+/[^/]+\.mlmodelc/", p)})
    if nested and not any(exists(tree, model) for model in KNOWN):
        yield Finding(
            "error", "nested-folder", nested[0], f"the models lie in {nested[0]}/, one folder down",
            "the app looks for them directly in the model's folder and finds none",
        )  # fmt: skip
        return
    for package in sorted({p.split("/")[0] for p in tree.files if ".mlpackage/" in p}):
        yield Finding(
            "error", "not-compiled", package, "is a package, not a compiled model",
            "apps load .mlmodelc only: the model is not found",
        )  # fmt: skip
    chunks = [model for model in ("UnetChunk1", "UnetChunk2") if exists(tree, model)]
    if len(chunks) == 1:
        lacking = "UnetChunk2" if chunks == ["UnetChunk1"] else "UnetChunk1"
        effect = "chunks are used only if both are there"
        if not exists(tree, "Unet"):
            effect += ", and there is no Unet.mlmodelc instead: loading the model fails"
        yield Finding("error", "one-chunk", f"{lacking}.mlmodelc", "is missing", effect)
    for model in REQUIRED:
        if exists(tree, model) or (model == "Unet" and chunks):
            continue
        if model == "VAEEncoder":
            effect = "no image-to-image; MochiDiffusion does not know the size and shows 512x512"
            yield Finding("warning", "no-encoder", f"{model}.mlmodelc", "is missing", effect)
    for name in sorted({p.split("/")[0] for p in tree.files}):
        stem = name.removesuffix(".mlmodelc")
        if name.endswith(".mlmodelc") and stem not in KNOWN:
            near = next((k for k in sorted(KNOWN) if k.casefold() == stem.casefold()), None)
            meant = f"; it has to be {near}.mlmodelc" if near else ""
            effect = "apps find models by their exact names, and this one is not found"
            yield Finding("error", "wrong-name", name, f"is a name no app knows{meant}", effect)
        if name in ("__MACOSX", ".DS_Store"):
            yield Finding("note", "clutter", name, "is left by macOS's Finder", "needs room only")


def models(tree: Tree) -> Iterator[Finding]:
    """Each compiled model: complete, its interface, and metadata.json true of the program."""
    entries = {}
    for model in sorted(KNOWN):
        if not exists(tree, model):
            continue
        name = f"{model}.mlmodelc"
        for rule, file, problem in completeness(tree, name):
            yield Finding("error", rule, file, problem, "Core ML refuses to load the model")
        for state in states(tree, name):
            problem = f"has the state `{state}`, which lasts from run to run"
            effect = (
                "apps for Stable Diffusion give models no states, and Core ML runs none without"
            )
            yield Finding("error", "stateful", name, problem, effect)
        try:
            entries[model] = metadata(tree, name)[0]
        except (Undecodable, LookupError):
            continue  # what that means is told by the apps
        for problem in disagreements(tree, name, entries[model]):
            effect = "apps that read it are misled about the model"
            yield Finding("error", "metadata-untrue", f"{name}/metadata.json", problem, effect)
    for rule, model, problem in mismatches(entries):
        effect = "the app's numbers do not fit the model: loading, or the first image, fails"
        yield Finding("error", rule, f"{model}.mlmodelc", problem, effect)
    yield from _attention(tree, entries.get("Unet") or entries.get("UnetChunk1"))


def _attention(tree: Tree, entry: Any) -> Iterator[Finding]:
    """The variant that apps will see against the one that name and manifest promise."""
    try:
        is_split = apps.SPLIT_EINSUM_MARKER in entry["mlProgramOperationTypeHistogram"]
    except (LookupError, TypeError):
        return
    promised = _promised(tree)
    file, both = "Unet.mlmodelc", (apps.MOCHI, apps.GUERNIKA)
    if promised == "original" and is_split:
        effect = (
            "it is taken for split_einsum and put on the Neural Engine, where it is slow or fails"
        )
        yield Finding(
            "error", "einsum-in-original", file, "holds einsum ops; it is called original",
            effect, both,
        )  # fmt: skip
    if promised.startswith("split") and not is_split:
        effect = "it is taken for original and never put on the Neural Engine"
        yield Finding(
            "error", "no-einsum", file, f"holds no einsum op; it is called {promised}", effect, both
        )


def _promised(tree: Tree) -> str:
    """The attention that the manifest claims, or else the folder's name; or nothing."""
    try:
        return str(read_json(tree, FILE)["attention"])
    except (OSError, InputError, LookupError, TypeError):
        found = re.search(r"(?:^|_)(split[-_]einsum(?:[-_]v2)?|original)(?:_|$)", tree.name)
        return found[1].replace("-", "_") if found else ""


def provenance(tree: Tree, digests: bool) -> Iterator[Finding]:
    """Every file as the manifest has it."""
    try:
        manifest = checked(_BundleManifest, read_json(tree, FILE), FILE)
        files, name, verdict = manifest.files, manifest.artifact, manifest.verdict
    except OSError:
        effect = "nobody can tell where the models come from"
        yield Finding("warning", "no-manifest", FILE, "is missing", effect)
        return
    except InputError as error:
        effect = "nobody can tell where the models come from"
        problem = f"is no manifest of ours: {error.problem}"
        yield Finding("error", "manifest", FILE, problem, effect)
        return
    if tree.name and name != tree.name:
        effect = "archives and cards name another folder than the one that is there"
        yield Finding(
            "error", "folder-name", tree.name, f"is called {name} in its manifest", effect
        )
    if verdict != "pass":
        state = "was not verified" if verdict is None else f"has the verdict `{verdict}`"
        yield Finding("warning", "unverified", FILE, f"the artifact {state}", "it may be wrong")
    for path, facts in files.items():
        size = tree.files.get(path)
        if size is None:
            problem = "is in the manifest and not there"
        elif size != facts.size:
            problem = f"has {size} bytes, the manifest says {facts.size}"
        elif digests and not _has_digest(tree, path, facts.sha256):
            problem = "has another SHA-256 than the manifest says"
        else:
            continue
        yield Finding("error", "digest", path, problem, "it is not what was verified")


def tokenizer(tree: Tree) -> Iterator[Finding]:
    """Do vocabulary and merges belong together? Every merge makes a token of the vocabulary."""
    try:
        vocab = read_json(tree, "vocab.json")
        merges = read(tree, "merges.txt").decode()
    except (OSError, ValueError, InputError):
        return  # told by the apps
    if not isinstance(vocab, dict):
        return
    pairs = [line.split() for line in merges.splitlines() if line and not line.startswith("#")]
    if not pairs:
        effect = "words are spelt letter by letter, and images ignore the prompt"
        yield Finding("error", "tokenizer", "merges.txt", "holds no merges", effect)
    lost = [pair for pair in pairs if len(pair) == 2 and "".join(pair) not in vocab]
    if lost:
        yield Finding(
            "error", "tokenizers-differ", "merges.txt",
            f"{len(lost)} of {len(pairs)} merges make tokens that vocab.json lacks, such as "
            f"`{''.join(lost[0])}`: they are of two tokenizers",
            "words become <|endoftext|>, and images ignore the prompt",
        )  # fmt: skip


def _has_digest(tree: Tree, path: str, expected: str) -> bool:
    try:
        return digest(tree, path) == expected
    except OSError:  # in an archive, a checksum that does not fit
        return False
