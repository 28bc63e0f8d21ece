"""Every value of every file that is read from outside, replaced by one of another kind.

    python -m tests.support.fuzz --cases 50000

Each case changes one file, runs the command line in this process, and puts the file back. Whatever
is in the file, the command ends with 0, an honest verdict (1 or 3) or 2 with one error that names
the file; never with 4 or a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import json
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import typer

from convert.opening.door import open_checkpoint
from convert.recipe.sections import Compress
from convert.values import Bits
from convert.weights.allocation import Allocation, Allotted
from convert.weights.compress import budget, options
from convert.weights.methods import component_weights
from convert.weights.mixed_bits import provisional
from sdxl_coreml import app
from tests.support.evidence import SMALL, evidence

HUGE = 10**400
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, -(10**9), 2**63, HUGE, -HUGE, 0.5, -0.5, 32.0, 1e300,
    -1e300, 1e-300, "", "8", "x", "None", "../../x", "a\0b", "😀", "x" * 5000, "%s{0}[red]",
    [], [1], [None], ["x"], [[1, 2], [3]], {}, {"a": 1}, {"": None}, {"content": 3}, {"path": []},
    [-1, 10**9], [2.0, 4.0, 8.0],
)  # fmt: skip
WHOLE: tuple[bytes, ...] = (
    b"", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000, b"{" * 40, b'{"a":' * 90 + b"1",
    b"\xff\xfe{\x00}\x00", b"\x00" * 64, b"NaN", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"1" * 5000,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", b"<html></html>",
    b'{"a": "\\ud800"}', b"[[1]]", b"not JSON", b"a = [" + b"[" * 5000, b"\xef\xbb\xbf[]",
)  # fmt: skip
MOST_GROUPS = 150
COMMAND = typer.main.get_command(app.application())  # typer makes it anew for every call
SHAPE: dict[str, Any] = {
    "unet": {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1),
        "attention_head_dim": (2, 2),
        "layers_per_block": 1,
    },
    "vae": {
        "block_out_channels": (16, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
}


@dataclass(frozen=True)
class Target:
    """A file to spoil, and a command that reads it.

    Attributes:
        share: how often it is chosen beside the others.
        header: the JSON is the header of a safetensors file.
        clean: what the command leaves and a next case must not find.
    """

    file: Path
    command: tuple[str, ...]
    share: float = 1.0
    header: bool = False
    clean: tuple[Path, ...] = ()


@dataclass
class Tally:
    """How the cases ended."""

    codes: Counter[int] = field(default_factory=Counter)
    by_file: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sdxl-coreml", *arguments]),
        mock.patch.object(app, "application", return_value=COMMAND),
        mock.patch.object(app, "atexit"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            app.main()
        except SystemExit as ended:
            code = ended.code
    return (code if isinstance(code, int) else 0), out.getvalue(), err.getvalue()


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def replaced(value: Any, path: Sequence[Any], change: Callable[[Any], Any]) -> Any:
    """A document with another value at `path`."""
    if not path:
        return change(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], change)
    return copy


def spoilt(content: bytes, header: bool, rng: random.Random) -> tuple[str, bytes]:
    """What was done to a file, and its content then."""
    if rng.random() < 0.08:
        whole = rng.choice(WHOLE)
        return f"the whole is {whole[:30]!r}", _as_header(whole, content) if header else whole
    if rng.random() < 0.04:
        at = rng.randrange(len(content))
        return f"cut at byte {at}", content[:at]
    size = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + size] if header else content
    document, places_by_key = _parsed(text)
    if not places_by_key:  # TOML, text: a line or a value is replaced
        lines = text.decode().splitlines(keepends=True)
        at = rng.randrange(len(lines))
        key, sign, _ = lines[at].partition("=")
        lines[at] = f"{key}{sign} {json.dumps(rng.choice(VALUES))}\n"
        return f"line {at + 1} is {lines[at]!r:.60}", "".join(lines).encode()
    path = rng.choice(rng.choice(places_by_key))
    value = rng.choice(VALUES)
    for _ in range(rng.choice((0, 0, 0, 0, 1, 3, 80))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    data = json.dumps(replaced(document, path, lambda old: value)).encode()
    if rng.random() < 0.05:
        data = b"\xef\xbb\xbf" + data
    what = f"{'.'.join(map(str, path))} is {str(value)[:40]}"
    return what, _as_header(data, content) if header else data


@functools.cache
def _parsed(text: bytes) -> tuple[Any, list[list[tuple[Any, ...]]]]:
    """The document, and its places: those at one key of one kind of object together, so that each
    key is as likely as another, however many objects have it. Nothing of what is no JSON."""
    try:
        document = json.loads(text)
    except ValueError:
        return None, []
    found: dict[Any, list[tuple[Any, ...]]] = {}
    for path in places(document):
        kind = tuple(step if isinstance(step, str) else "*" for step in path)
        found.setdefault(kind[-2:] if len(kind) < 4 else kind[-3:], []).append(path)
    groups = list(found.values())  # a vocabulary is thousands of keys of one kind
    rest = [path for group in groups[MOST_GROUPS:] for path in group]
    return document, [*groups[:MOST_GROUPS], *([rest] if rest else [])]


def _as_header(data: bytes, content: bytes) -> bytes:
    size = int.from_bytes(content[:8], "little")
    return len(data).to_bytes(8, "little") + data + content[8 + size :]


def check(target: Target, what: str, tally: Tally) -> None:
    """Run the command of a target whose file is spoilt, and note what is wrong with its end."""
    start = time.monotonic()
    try:
        code, _, err = run(target.command)
    except BaseException as error:
        code, err = 4, f"escaped: {error!r}"
    for path in target.clean:
        shutil.rmtree(path, ignore_errors=True)
    tally.codes[code] += 1
    tally.by_file[target.file.name] += 1
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    problem = ""
    if code not in (0, 1, 2, 3):
        problem = f"exit {code}"
    elif "Traceback" in err:
        problem = "a traceback"
    elif code == 2 and len(errors) != 1:
        problem = f"{len(errors)} errors"
    elif code == 2 and not any(name in err for name in _names(target.file)):
        problem = "an error that does not name the file"
    elif time.monotonic() - start > 20:
        problem = f"{time.monotonic() - start:.0f} s"
    if problem:
        said = " | ".join(err.strip().splitlines()[:3])[:300]
        command = " ".join(target.command[:1])
        tally.faults.append(f"{command}, {target.file.name}, {what}: {problem}: {said}")


def _names(file: Path) -> tuple[str, ...]:
    """What an error may call a file: itself, its folder, or the artifact that a report is of."""
    of_report = (file.stem,) if file.parent.name == "reports" else ()
    return (file.name, file.parent.name, *of_report)


def fuzz(targets: Sequence[Target], cases: int, seed: int) -> Tally:
    """That many cases over the targets, the same for the same seed."""
    rng, tally = random.Random(seed), Tally()
    gc.collect()
    gc.freeze()  # the libraries' objects are not looked through again for every few cases
    contents = {target.file: target.file.read_bytes() for target in targets}
    for target in rng.choices(targets, [t.share for t in targets], k=cases):
        content = contents[target.file]
        what, data = spoilt(content, target.header, rng)
        target.file.unlink()  # files are links to the cache's
        target.file.write_bytes(data)
        try:
            check(target, what, tally)
        finally:
            target.file.unlink(missing_ok=True)
            target.file.write_bytes(content)
    return tally


# ---- the files ----

RECIPE = """name = "fuzz"
[source]
path = "{source}"
[matrix]
attention = ["original"]
resolution = ["64x64"]
bits = ["{bits}"]
[target]
deployment = "macOS15"
[compress]
{compress}
[verify]
prompts = ["a red circle"]
"""


def make_targets(folder: Path, source: Path) -> list[Target]:
    """The files to spoil, made from a checkpoint.

    Args:
        folder: an empty folder, which is filled.
        source: a small checkpoint; it is copied.
    """
    checkpoint = Path(shutil.copytree(source, folder / "model"))
    return [*_of_checkpoint(folder, checkpoint), *_of_results(folder, checkpoint)]


def _recipe(folder: Path, checkpoint: Path, bits: str = "16", compress: str = "") -> Path:
    file = folder / f"recipe_{bits}.toml"
    file.write_text(RECIPE.format(source=checkpoint, bits=bits, compress=compress))
    return file


def _of_checkpoint(folder: Path, checkpoint: Path) -> list[Target]:
    recipe = _recipe(folder, checkpoint)
    plan = ("plan", str(recipe), "--json")
    found = [Target(recipe, plan, 2.0)]
    for file in sorted(checkpoint.rglob("*")):
        if file.suffix == ".json":
            weight = 6.0 if file.name == "config.json" else 2.0
            found.append(Target(file, plan, weight))
        elif file.suffix == ".safetensors":
            found.append(Target(file, plan, 2.0, header=True))
        elif file.suffix == ".txt":
            found.append(Target(file, plan, 0.5))
    out = folder / "converted"
    options = ("--out", str(out), "--component", "text_encoder", "--jobs", "1", "--quiet")
    convert = ("convert", str(checkpoint), "--resolution", "64x64", *options)
    found.append(Target(checkpoint / "text_encoder/config.json", convert, 0.1, clean=(out,)))
    return found


def _of_results(folder: Path, checkpoint: Path) -> list[Target]:
    """Reports, a baseline, an allocation, an artifact with its packages, a bundle, a release."""
    out = folder / "out"
    made = ("run", str(_recipe(folder, checkpoint, "6")), "--out", str(out), "--quiet")
    _must(*made, "--no-release")
    (report,) = (f for f in (out / "reports").glob("*.json") if f.name != "summary.json")
    report.write_text(json.dumps(_with_all_words(json.loads(report.read_text()))))
    artifact, summary = out / report.stem, out / "reports/summary.json"
    baseline = folder / "baseline.json"
    accepted = run(["bless", str(report), "--baseline", str(baseline), "--reason", "right"])
    policy = Path(shutil.copy(Path(app.__file__).parents[1] / "verify/judge/policy.toml", folder))
    allocation = folder / "allocation.json"
    allocation.write_text(_allocation(checkpoint))
    mixed = _recipe(folder, checkpoint, "mixed-4.5", f'allocation = "{allocation}"')
    release = folder / "release"
    pack = ("pack", str(artifact), "--out", str(release), "--allow-unverified", "--quiet")
    _must(*pack)
    bundle = folder / "bundles" / artifact.name
    shutil.unpack_archive(next(release.glob("*.zip")), folder / "bundles")
    lint = ("lint", str(bundle), "--json")
    recheck = ("recheck", str(report), "--policy", str(policy), "--quiet")
    found = [
        Target(report, recheck, 6.0),
        Target(report, ("bless", str(report), "--baseline", str(folder / "b"), "--reason", "x")),
        Target(summary, ("recheck", str(summary), "--policy", str(policy))),
        Target(policy, recheck, 1.5),
        Target(allocation, ("plan", str(mixed), "--json"), 1.5),
        Target(artifact / "manifest.json", ("inspect", str(artifact), "--json"), 0.3),
        Target(artifact / "manifest.json", pack, 0.5),
        Target(
            artifact / "Unet.mlpackage/Manifest.json", ("inspect", str(artifact), "--json"), 0.3
        ),
        Target(bundle / "Unet.mlmodelc/metadata.json", lint, 1.0),
        Target(bundle / "VAEEncoder.mlmodelc/metadata.json", lint, 0.5),
        Target(bundle / "manifest.json", lint, 1.0),
        Target(bundle / "vocab.json", lint, 0.3),
        Target(release / "manifest.json", ("card", str(release), "--quiet"), 2.0),
        Target(release / "manifest.json", ("lint", str(release), "--json"), 0.2),
        Target(release / "SHA256SUMS", ("lint", str(release), "--json"), 0.3),
        *_of_downloads(folder, checkpoint),
    ]
    if accepted[0] == 0:
        found.append(Target(baseline, ("diff", str(baseline), str(report), "--json"), 2.0))
    return found


def _with_all_words(report: dict[str, Any]) -> dict[str, Any]:
    """A report with every kind of word that evidence has, and a size that is not the artifact's."""
    report["effort"] = "standard"
    report["evidence"] = evidence("standard", report["resolution"])
    report["evidence"]["unet"].append("t=999 1024x1024 of another_1024x1024")
    next(c for c in report["checks"] if c["metrics"])["size"] = SMALL
    return report


def _allocation(checkpoint: Path) -> str:
    """Widths for mixed-4.5 as they are dealt without measuring."""
    opened, bits = open_checkpoint(checkpoint), Bits("mixed-4.5")
    components: dict[str, dict[str, Allotted]] = {}
    for name in ("text_encoder", "text_encoder_2", "unet"):
        tensors = opened.component_tensors(name)
        weights = component_weights(name, tensors, Compress())
        widths = provisional(options(weights, "macOS15"), budget(weights, bits), name, bits)
        components[name] = {t: Allotted(tensors[t].shape, w, 1.0, 1e-6) for t, w in widths.items()}
    return Allocation(bits, dict.fromkeys(components, 4.5), components).text()


def _of_downloads(folder: Path, checkpoint: Path) -> list[Target]:
    copy = folder / "downloaded"
    download = ("download", str(checkpoint), "--out", str(copy), "--quiet")
    _must(*download)
    return [Target(copy / ".sdxl-coreml.json", download, 0.3)]


def _must(*arguments: str) -> None:
    code, _, err = run(arguments)
    assert code in (0, 1), err


def main() -> None:
    """As many cases as are asked for, on a checkpoint made for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    from tests.support.checkpoints import make_checkpoint

    with tempfile.TemporaryDirectory(prefix="sdxl-coreml-fuzz-") as name:
        folder = Path(name)
        make_checkpoint(folder / "source", **SHAPE)
        (folder / "work").mkdir()
        targets = make_targets(folder / "work", folder / "source")
        start = time.monotonic()
        tally = fuzz(targets, options.cases, options.seed)
        seconds = time.monotonic() - start
    print(f"{options.cases} cases in {seconds:.0f} s: exits {dict(sorted(tally.codes.items()))}")
    print(f"by file: {dict(tally.by_file.most_common())}")
    print(f"{len(tally.faults)} faults", *tally.faults[:60], sep="\n")
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
