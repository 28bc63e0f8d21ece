"""Kept things are true of the code that made them: every file has its part, none is forgotten."""

from __future__ import annotations

import ast
import fnmatch
import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from convert.process import code
from convert.process.code import OUTSIDE, PARTS, CodePart, code_digest, files

ROOT = Path(__file__).parents[3]
FOLDERS = ("convert", "verify", "release", "recipes", "sdxl_coreml")
# Where the work of each part begins, and where it ends although an import leads on.
ENTRIES: dict[CodePart, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "convert": (("convert.package.native", "convert.run.packages"), ("convert.peer.engine",)),
    "apple": (("convert.peer.engine", "convert.run.packages"), ("convert.package.native",)),
    # the checks for the libraries' versions; the same for what is recorded
    "calibrate": (("verify.reference.calibration",), ("verify.judge.checks",)),
    "precision": (("verify.reference.vae_precision",), ("verify.judge.checks",)),
    "record": (("verify.reference.kept",), ("verify.judge.checks",)),
    "measure": (("verify.batch",), ()),
    "judge": (("verify.reports.recheck", "verify.judge.policy"), ()),
    # Whether a report still counts decides on an archive, not on its bytes; figures are beside it.
    "release": (("release.pack.pack",), ("verify.reports.figures", "verify.judge.policy")),
}


def product() -> dict[str, str]:
    """Module → path of every file of ours that is installed."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return {n.removesuffix(".py").removesuffix("/__init__").replace("/", "."): n for n in names}


MODULES = product()


def is_silent(path: str) -> bool:
    """Whether a file says what its room is for, and nothing else."""
    return all(isinstance(node, ast.Expr) for node in ast.parse((ROOT / path).read_text()).body)


SILENT = {path for path in MODULES.values() if is_silent(path)}


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Our modules that some code imports, wherever it does, but not for types alone."""
    for node in nodes:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        for name in names:
            # Importing a module runs the packages that it is in.
            parts = name.split(".")
            yield from {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & MODULES.keys()
        yield from imported(ast.iter_child_nodes(node))


def reached(entries: Iterable[str], outside: Iterable[str]) -> set[str]:
    """The files that some modules depend on; what is outside is neither counted nor followed."""
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        path = MODULES[waiting.pop()]
        if path not in seen and path not in outside:
            seen.add(path)
            waiting += imported([ast.parse((ROOT / path).read_text("utf-8"))])
    return seen


def test_every_file_of_ours_is_in_a_part_or_outside_of_all() -> None:
    parts = {part: set(files(patterns)) for part, patterns in PARTS.items()}
    outside = set(files(OUTSIDE))
    known = outside.union(*parts.values())
    forgotten = sorted(set(MODULES.values()) - known - SILENT)
    assert not forgotten, f"name them in convert/process/code.py: {forgotten}"
    assert sorted(known - set(MODULES.values())) == []
    for part, found in parts.items():
        assert not found & outside, part


@pytest.mark.parametrize("part", list(PARTS))
def test_a_part_has_every_file_that_its_work_depends_on(part: CodePart) -> None:
    entries, beyond = ENTRIES[part]
    outside = set(files(OUTSIDE)) | {MODULES[name] for name in beyond}
    # A verdict has two digests: what measures calls what judges, which judges its numbers.
    parts: tuple[CodePart, ...] = ("measure", "judge") if part in ("measure", "judge") else (part,)
    mine = set(files(tuple(pattern for name in parts for pattern in PARTS[name])))
    needed = reached(entries, outside)
    forgotten = needed - mine - SILENT
    assert not forgotten, f"{part} depends on {sorted(forgotten)}"


@pytest.mark.parametrize("part", list(PARTS))
def test_a_digest_is_of_its_own_files_alone(
    part: CodePart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MODULES.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.setattr(code, "ROOT", tmp_path)
    before = code_digest.__wrapped__(part)
    for name in MODULES.values():
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"\n")
        is_mine = any(fnmatch.fnmatch(name, pattern) for pattern in PARTS[part])
        assert (code_digest.__wrapped__(part) != before) == is_mine, name
        (tmp_path / name).write_bytes(content)


RECIPE = """
name = "base"
source.path = "base"
matrix = { attention = ["split_einsum"], resolution = ["64x64"] }
verify = { levels = ["structure"] }
"""
Installed = Callable[..., int]


@pytest.fixture
def installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Installed:
    """Runs the command line of a copy of our code, after a change of one line in it."""
    tree = tmp_path / "installed"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def ours() -> list[str]:
        return [n for n in sys.modules if n.split(".")[0] in FOLDERS]

    def run(*arguments: object, change: tuple[str, str, str] | None = None) -> int:
        if change is not None:
            name, old, new = change
            text = (tree / name).read_text("utf-8")
            assert text.count(old) == 1, name
            (tree / name).write_text(text.replace(old, new), "utf-8")
        with monkeypatch.context() as patch:
            for module in ours():
                patch.delitem(sys.modules, module)
            patch.syspath_prepend(str(tree))
            patch.setattr(sys, "dont_write_bytecode", True)
            patch.setattr(sys, "argv", ["sdxl-coreml", *map(str, arguments)])
            try:
                application = importlib.import_module("sdxl_coreml.app")
                assert Path(str(application.__file__)).parents[1] == tree
                with pytest.raises(SystemExit) as stopped:
                    application.main()
            finally:
                for module in ours():
                    del sys.modules[module]
        capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    return run


def stamps(folder: Path) -> Mapping[str, Any]:
    """What a run has made and keeps: packages, weights, artifacts, archives, by inode and time."""
    kept = [*folder.glob(".cache/packages/*/**/*"), *folder.glob(".cache/weights/*/*")]
    kept += [*folder.glob("base_*/**/*"), *folder.glob("release/*.zip")]
    found = {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in kept if p.is_file()}
    return {name: stamp for name, stamp in found.items() if not name.endswith("/manifest.json")}


@pytest.mark.usefixtures("one_thread")
def test_a_changed_check_is_asked_again_and_a_changed_word_remakes_nothing(
    installed: Installed, shapes: Mapping[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    out = tmp_path / "out"
    arguments = ["run", tmp_path / "recipe.toml", "--source", shapes["base"], "--out", out]
    assert installed(*arguments) == 0
    (report,) = out.glob("reports/base_*.json")
    made, judged = stamps(out), report.stat().st_mtime_ns

    word = (
        "sdxl_coreml/commands/run.py",
        "Do everything a recipe asks for",
        "Do all that a recipe asks",
    )
    assert installed(*arguments, change=word) == 0
    assert (stamps(out), report.stat().st_mtime_ns) == (made, judged)

    source = (ROOT / "verify" / "levels" / "structure.py").read_text("utf-8")
    line = next(t for t in source.splitlines() if "no description of" in t)
    check = ("verify/levels/structure.py", line, line.replace("if silent", "if not silent"))
    assert check[1] != check[2]
    assert installed(*arguments, change=check) == 1
    document = json.loads(report.read_text())
    assert {c["case"] for c in document["checks"] if c["verdict"] == "fail"} == {"descriptions"}
    unreleased = {name: s for name, s in made.items() if "/release/" not in name}
    assert {n: s for n, s in stamps(out).items() if "/release/" not in n} == unreleased
