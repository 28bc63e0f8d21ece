"""Plan → artifacts: packages made once, linked wherever they belong, finished or absent.

What `out` holds afterwards is described in the README under "What a run leaves". Everything in
`out/.cache` may be deleted; it is what makes a second run, or one that was killed, cheap.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert import __version__
from convert.cache import Cache, code_digest, digest_file, key_of
from convert.components import COMPONENTS, user_metadata
from convert.download import Snapshot
from convert.errors import InputError
from convert.interrupts import deferred_interrupt
from convert.plan import Job, Plan, PlannedArtifact
from convert.progress import Progress, Silent
from convert.snapshot import disk_error, link
from convert.units import size
from convert.values import FORMATS

MANIFEST = "manifest.json"
SCHEMA = 1
PACKAGE = "model.mlpackage"
OURS = {".cache", "reports", "release"}
ABOUT = (
    "Stable Diffusion generates images conditioned on text and/or other images as input through "
    "the diffusion process. Please refer to https://arxiv.org/abs/2112.10752 for details."
)


@dataclass(frozen=True)
class Result:
    """One artifact folder of a run."""

    path: Path
    manifest: Mapping[str, Any]
    fresh: bool  # made in this run, rather than found finished


def run(
    plan: Plan, source: Snapshot, out: Path, *, progress: Progress | None = None
) -> list[Result]:
    """Make every artifact of the plan in `out`; what is finished there already is left alone.

    Args:
        plan: what to make.
        source: where the checkpoint came from, for the manifest.
        out: the output folder; made if absent.

    Raises:
        InputError: `out` holds something else, the checkpoint does not fit, the disk is full.
    """
    progress = progress or Silent()
    require_ours(out, plan)
    is_new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        maker = _Maker(plan, source, Cache(out / ".cache"), progress)
        jobs = plan.jobs
        with progress.stage("Converting", sum(map(plan.weight_bytes, jobs)), "B") as advance:
            packages = {job: maker.package(job, advance) for job in jobs}
        return [maker.artifact(a, packages, out) for a in plan.artifacts]
    except InputError:
        if is_new:  # what was made of a checkpoint that cannot be converted is of no use
            shutil.rmtree(out, ignore_errors=True)
        raise
    except OSError as error:
        raise disk_error(error, out) from None
    finally:
        shutil.rmtree(out / ".cache" / "tmp", ignore_errors=True)


def require_ours(out: Path, plan: Plan) -> None:
    """Raise InputError if `out` holds what no run has put there, or more than the plan makes."""
    if out.exists() and not out.is_dir():
        raise InputError("is a file; a folder is expected", where=out)
    planned = {a.artifact.name: a for a in plan.artifacts}
    for entry in sorted(out.iterdir()) if out.exists() else []:
        if entry.name in OURS:
            continue
        manifest = read_manifest(entry)
        if manifest is None:
            raise InputError(
                f"holds `{entry.name}`, which no run has made; nothing was written",
                where=out,
                hint="Give --out a new or empty folder, or one that an earlier run has made.",
            )
        if entry.name in planned:
            lost = [c for c in manifest["components"] if c not in planned[entry.name].jobs]
            if lost:
                raise InputError(
                    f"has {', '.join(lost)} too, which this run would remove; nothing was written",
                    where=entry,
                    hint="Give --out another folder, or ask for these components as well.",
                )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an artifact folder, or None if it is none of ours."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        return manifest if "artifact" in manifest and "fingerprint" in manifest else None
    except (OSError, ValueError, TypeError):
        return None


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write or replace the manifest of an artifact folder, atomically."""
    new = folder / f".{MANIFEST}.new"
    new.write_text(
        json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
    )
    new.replace(folder / MANIFEST)


class _Maker:
    def __init__(self, plan: Plan, source: Snapshot, cache: Cache, progress: Progress) -> None:
        self.plan, self.source, self.cache, self.progress = plan, source, cache, progress
        self.checkpoint = plan.checkpoint
        self.digests = self._digests()

    def _digests(self) -> dict[str, str]:
        """SHA-256 of the checkpoint's files, by path in it; from the Hub where it vouches."""
        known = {f.name: f.sha256 for f in self.source.files if f.sha256}
        files = self.checkpoint.files
        unknown = {name: path for name, path in files.items() if name not in known}
        size = sum(p.stat().st_size for p in unknown.values())
        with self.progress.stage("Hashing the checkpoint", size, "B") as advance:
            found = self.cache.digests(unknown.values(), advance)
        known.update({name: found[path] for name, path in unknown.items()})
        return {name: known[name] for name in sorted(files)}

    def package(self, job: Job, advance: Any) -> tuple[Path, Mapping[str, Any]]:
        """The finished package of a job, in the cache, with its facts (files and digests)."""
        about = self.description(job)
        part = COMPONENTS[job.component].part
        inputs = {
            "job": {**vars(job), "resolution": str(job.resolution)},
            "about": about,
            "files": {
                name: digest
                for name, digest in self.digests.items()
                if name.startswith(f"{part}/") or name.endswith("config.json")
            },
            "code": code_digest(),
        }
        key = key_of(inputs)
        if self.cache.has("packages", key):
            advance(self.plan.weight_bytes(job))

        def fill(folder: Path) -> Mapping[str, Any]:
            with deferred_interrupt():
                if job.engine == "apple":
                    from convert.apple import convert_job
                else:
                    from convert.native import convert_job
            target = folder / PACKAGE
            known = convert_job(
                self.checkpoint, job, about, self.digests, target, self.cache, advance
            )
            self.progress.done(str(job))
            return self.facts(job, target, known)

        return self.cache.entry("packages", key, fill)

    def facts(self, job: Job, package: Path, known: Mapping[str, str]) -> dict[str, Any]:
        """Size and SHA-256 of a package's files, and its true bits per weight."""
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in package.rglob("*") if p.is_file()):
            name = str(path.relative_to(package))
            files[name] = {
                "size": path.stat().st_size,
                "sha256": known.get(name) or digest_file(path),
            }
        weights = sum(t.size for t in self.checkpoint.component_tensors(job.component).values())
        size = sum(f["size"] for name, f in files.items() if name.endswith("weight.bin"))
        return {"files": files, "bits_per_weight": round(8 * size / weights, 3)}

    def description(self, job: Job) -> dict[str, Any]:
        """What the model says of itself: Apple's words, the source, and the apps' settings."""
        part = self.checkpoint.part(job.component)
        repo, commit = self.source.repo, self.source.commit
        where = f"available at huggingface.co/{repo}" if repo else f"of {self.checkpoint.name}"
        return {
            "short": ABOUT,
            "author": f"Please refer to the Model Card {where}",
            "license": self.plan.recipe.release.license or "Please refer to the Model Card",
            "version": f"{repo}@{commit}" if repo else self.checkpoint.name,
            "user": {
                **user_metadata(
                    job.component,
                    dict(part.config),
                    dict(self.checkpoint.scheduler),
                    dict(self.checkpoint.model_index),
                ),
                "com.github.apple.coremltools.version": version("coremltools"),
                "com.github.sdxl-coreml.version": __version__,
            },
        }

    def artifact(
        self,
        planned: PlannedArtifact,
        packages: Mapping[Job, tuple[Path, Mapping[str, Any]]],
        out: Path,
    ) -> Result:
        """The artifact's folder, linked together from finished packages."""
        name = planned.artifact.name
        manifest, texts = self.manifest(planned, packages)
        path = out / name
        found = read_manifest(path)
        if found and found["fingerprint"] == manifest["fingerprint"] and _complete(path, found):
            return Result(path, found, fresh=False)
        with _new_folder(out / ".cache" / "tmp" / f"{name}-{os.getpid()}") as folder:
            for component, job in planned.jobs.items():
                target = folder / manifest["components"][component]
                _link_tree(packages[job][0] / PACKAGE, target)
            for file, text in texts.items():
                (folder / file).write_text(text, "utf-8")
            write_manifest(folder, manifest)
            if path.exists():
                shutil.rmtree(path)
            folder.rename(path)
        total = sum(f["size"] for f in manifest["files"].values())
        self.progress.done(f"{name}: {size(total)}")
        return Result(path, manifest, fresh=True)

    def manifest(
        self,
        planned: PlannedArtifact,
        packages: Mapping[Job, tuple[Path, Mapping[str, Any]]],
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The manifest, without a verdict yet, and the tokenizer's files."""
        recipe, artifact = self.plan.recipe, planned.artifact
        components = {c: f"{COMPONENTS[c].file}.mlpackage" for c in planned.jobs}
        tokenizer = self.checkpoint.tokenizers.get("tokenizer") or next(
            iter(self.checkpoint.tokenizers.values())
        )
        texts = {"vocab.json": tokenizer.vocab, "merges.txt": tokenizer.merges}
        files = {
            f"{components[c]}/{file}": facts
            for c, job in planned.jobs.items()
            for file, facts in packages[job][1]["files"].items()
        }
        for file, text in texts.items():
            data = text.encode()
            files[file] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "artifact": artifact.name,
            "attention": artifact.attention,
            "bits": artifact.bits,
            "resolution": str(artifact.resolution),
            "deployment": recipe.target.deployment,
            "vae_precision": recipe.target.vae_precision,
            "engine": next(iter(planned.jobs.values())).engine,
            "components": components,
            "bits_per_weight": {
                c: packages[job][1]["bits_per_weight"] for c, job in planned.jobs.items()
            },
            "files": dict(sorted(files.items())),
            "source": {
                "name": self.checkpoint.name,
                "repo": self.source.repo,
                "commit": self.source.commit,
                "files": self.digests,
            },
            "recipe": {"name": recipe.name, "digest": recipe.digest, "text": recipe.text},
            "versions": {
                "sdxl-coreml": __version__,
                **{p: version(p) for p in ("coremltools", "numpy")},
            },
            "specification_version": FORMATS[recipe.target.deployment].specification_version,
        }
        return {**manifest, "fingerprint": key_of(manifest), "verdict": None}, texts


def _complete(path: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether every file is there with its size."""
    try:
        return all(
            (path / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
    except OSError:
        return False


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _link_tree(source: Path, target: Path) -> None:
    """The same tree from hard links, or from copies where links are impossible."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        link(file, target / file.relative_to(source))
