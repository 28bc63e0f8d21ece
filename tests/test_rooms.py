"""The rooms of the house, from the ground up: who may import whom.

A module may import from its own room and from the rooms that stand above it in this table, and
never the other way; a room is a folder, or a module that lies directly in its hall. So there is no
circle, and whoever reads a room needs to know only what stands above it here. Imports for type
checkers alone (`if TYPE_CHECKING:`) tie nothing together and do not count.

A new room gets a line here, as high up as its imports allow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = """
convert.errors         what is wrong, where, and what to do
convert.values         attention, resolution, bits, targets: the words of recipes
convert.units          sizes and times as people read them
convert.process        the process we run in: its code, libraries, memory, signals, progress
convert                the version, and what scripts need
convert.files          files: JSON with types, Git LFS pointers, complete or not at all, the cache
convert.components     the one table: component → part, file name, inputs, outputs
convert.source         Hub repo or folder → a checkpoint on this disk
convert.tokenizer      CLIP's tokenizer, as transformers and as the apps read it
convert.known          SDXL's configs and CLIP's vocabulary, as data
convert.checkpoint     what a checkpoint is: configs, tensors by reference
convert.lora           LoRAs and kin, merged into a checkpoint's tensors as they are read
convert.embedding      textual inversions: rows of the token embeddings, and the words for them
convert.opening        whatever a checkpoint comes as → a Checkpoint
convert.toy            the embedded checkpoint, random ones, and their training
convert.recipe         TOML → typed recipe
convert.weights        how each weight is stored: palettes, integers, weight.bin
convert.networks       the networks of SDXL in MIL
convert.plan           recipe × checkpoint → jobs, and what they take
convert.package        network + weights → .mlpackage
convert.peer           Apple's converter, for comparison
convert.run            jobs → artifacts, in worker processes
verify                 what scripts need
verify.mil             an ML Program as data
verify.artifact        what was shipped, told without judging
verify.weights         weights beside the checkpoint's, element by element
verify.equivalence     whether two programs are one network at two sizes
verify.operations      what each of MIL's operations computes, with PyTorch
verify.runtime         what runs a program: the evaluator, Core ML
verify.judge           measures, gates, the policy
verify.reports         results kept, summed up, judged again, compared
verify.page            reports as HTML
verify.reference       PyTorch's side, on recorded inputs
verify.bisect          the first op that diverges
verify.sampling        whole runs: diffusers' pipelines around any networks
verify.golden          what the reference did, kept for machines without it
verify.question        what is asked, and what there is to compare with
verify.levels          structure, graph, conversion, compression, generation, sanity
verify.proof           what has to be shown of a run, once for all that share it, and kept
verify.run             one artifact
verify.batch           all artifacts of a run
release                what scripts need
release.compile        .mlpackage → .mlmodelc
release.pack           artifact → bundle → archive
release.card           the model card
release.build          a release from what passed
release.lint           what the apps make of a bundle
release.publish        to the Hub
sdxl_coreml            the command line: the only one that prints, exits or reads the environment
sdxl_coreml.commands   one file for each noun
sdxl_coreml.app        the table of commands, the boundary for errors
sdxl_coreml.__main__   python -m sdxl_coreml
bench                  measurements; imported by nobody
bench.proof            a whole run, converted and proven, measured
bench.sources          what checkpoints come as, measured
"""
LARGEST = 15  # modules in a room; more of them want a second room

ORDER = {line.split()[0]: number for number, line in enumerate(ROOMS.strip().splitlines())}


def test_a_room_imports_only_from_rooms_below() -> None:
    upward = [
        f"{module} imports {other}: {room_of(module)} stands below {room_of(other)}"
        for module, others in imports().items()
        for other in sorted(others)
        if ORDER[room_of(module)] < ORDER[room_of(other)]
    ]
    assert not upward, "\n".join(upward)


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_every_room_is_in_the_table_and_no_other() -> None:
    assert {room_of(module) for module in modules()} == set(ORDER)


def test_rooms_are_small() -> None:
    sizes: dict[str, int] = {}
    for module, file in modules().items():
        if file.name != "__init__.py":
            sizes[room_of(module)] = sizes.get(room_of(module), 0) + 1
    assert not {room: size for room, size in sizes.items() if size > LARGEST}


def test_the_reader_of_imports_sees_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "low.py").write_text("def late():\n    from high import thing\n")
    assert list(imported(tmp_path / "low.py", {"high", "low"})) == ["high"]
    (tmp_path / "low.py").write_text("if TYPE_CHECKING:\n    from high import Thing\n")
    assert not list(imported(tmp_path / "low.py", {"high", "low"}))


# What only the command line may do, and the modules below it that must do one of it themselves.
COMMAND_LINE_ONLY = {
    "input", "print", "exit", "quit", "SystemExit",
    "os._exit", "os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv", "os.unsetenv",
    "sys.argv", "sys.exit", "sys.stdin", "sys.stdout", "sys.stderr",
}  # fmt: skip
EXCEPTIONS = {
    (
        "convert.process.interrupts",
        "SystemExit",
    ),  # a signal ends a process with the shell's exit code
    ("convert.run.pool", "os._exit"),  # a worker, whose parent was killed
    ("verify.operations.compression", "input"),  # an operand, as MIL calls it
    ("convert.toy.train", "sys.stdout"),  # a program of its own, which trains for hours
}


def test_only_the_command_line_prints_exits_and_reads_the_environment() -> None:
    found = {
        (module, name)
        for module, file in modules().items()
        if module.split(".")[0] not in ("sdxl_coreml", "bench")
        for name in used(file) & COMMAND_LINE_ONLY
    }
    assert found == EXCEPTIONS


def test_the_reader_of_names_sees_what_is_used(tmp_path: Path) -> None:
    file = tmp_path / "low.py"
    file.write_text("import os as o\nfrom sys import exit as end\nprint(o.environ['A'])\nend()\n")
    assert used(file) & COMMAND_LINE_ONLY == {"print", "os.environ", "sys.exit"}


def used(file: Path) -> set[str]:
    """The names that a file uses; those of modules that it imports as `module.name`."""
    tree = ast.parse(file.read_text("utf-8"))
    modules, found = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{modules.get(node.value.id)}.{node.attr}")
    return found


def test_a_public_type_has_a_name_of_its_own() -> None:
    places: dict[str, list[str]] = {}
    for module, file in modules().items():
        if module.split(".")[0] != "bench":
            for name in (n for n in types_of(file) if not n.startswith("_")):  # seen elsewhere
                places.setdefault(name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_reader_of_types_sees_classes_and_aliases(tmp_path: Path) -> None:
    file = tmp_path / "low.py"
    file.write_text("LIMIT = 3\nText = str\nclass One:\n    class Two: ...\n")
    assert sorted(types_of(file)) == ["One", "Text", "Two"]


def types_of(file: Path) -> Iterator[str]:
    """The names of classes, and of what a module calls as if it were one: `Shape = tuple[…]`."""
    tree = ast.parse(file.read_text("utf-8"))
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name


@cache
def modules() -> dict[str, Path]:
    """Every module of the product, by its dotted name."""
    found = {}
    for hall in dict.fromkeys(room.split(".")[0] for room in ORDER):
        for file in (ROOT / hall).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(module: str) -> str:
    """The longest name in the table that the module's own name begins with."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in ORDER), module)


@cache
def imports() -> dict[str, set[str]]:
    """What each module imports of the product, wherever in the module it does."""
    known = modules()
    return {name: set(imported(file, set(known))) - {name} for name, file in known.items()}


def imported(file: Path, known: set[str]) -> Iterator[str]:
    """The modules among `known` that a file imports at run time."""
    tree = ast.parse(file.read_text("utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known:
                    yield full
                elif node.module in known:
                    yield node.module
