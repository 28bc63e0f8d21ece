"""Convert the same full-size weights as a folder, a single file, a pickle, and with LoRAs merged.

python -m bench.sources                      # makes the files first: 37 GB of disk, 20 minutes
python -m bench.sources --repeat 5           # rounds, in which all take turns; medians
python -m bench.sources --peer PEER/bin/python   # coreml-diffusion as well, once
python -m bench.sources --quick              # the toy checkpoint: does the harness work?

Writes its part of bench/RESULTS.md, and leaves the rest as it is. Limits (ratios to the folder) are
those that the project holds itself to.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench.__main__ import positive
from bench.machine import describe
from bench.measure import Measured, measure
from bench.run import Measurements, Row, run_tasks
from bench.sources.files import SourceFiles, make_files
from bench.sources.peer import Peer, make_peer
from bench.table import end, put, seconds, spread, start
from bench.tasks import COMMAND, Setup, Task, choose, make_setup
from convert.errors import UserError
from convert.units import size

RESULTS = Path(__file__).parents[1] / "RESULTS.md"
PART = "sources"
STRENGTHS = 0.7, 0.4
PEER_MEMORY = 20  # GiB that the peer may take
# Sizes of pictures for the rows beside the peer: it traces networks with all that training needs,
# so that SDXL's own size takes more memory than that, of the VAE's decoder alone.
PEER_SIZES = {"vae": "512x512", "unet": "256x256"}
# What each source may take: of the folder's time, and of its anonymous memory.
LIMITS = {"single": (1.1, 1.2), "ckpt": (1.2, 1.2), "ckpt-old": (1.2, 1.2), "loras": (1.6, None)}
LORA_MEMORY = 1 << 30  # bytes
COLUMNS = (
    "", "until exit", "×", "CPU", "×", "peak memory: anonymous", "×",
    "`plan` ÷ until exit", "on disk",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What is converted."""

    path: Path
    loras: Sequence[Path] = ()
    bits: str = "16"
    component: str | None = None  # all of them if None
    base: Path | None = None  # of a file whose shapes do not tell its configs, such as the toy's

    def options(self) -> list[str]:
        """As options of `convert`, without the output folder."""
        given = [str(self.path), "--bits", self.bits]
        for path, strength in zip(self.loras, STRENGTHS, strict=False):
            given += ["--lora", f"{path}={strength}"]
        given += ["--base", str(self.base)] if self.base else []
        return given + (["--component", self.component] if self.component else [])

    def recipe(self, resolution: str) -> str:
        """The same as a recipe, for `plan`; quoted as TOML and JSON both do."""
        loras = ", ".join(
            f"{{ path = {json.dumps(str(path.resolve()))}, scale = {strength} }}"
            for path, strength in zip(self.loras, STRENGTHS, strict=False)
        )
        return (
            f'name = "bench"\n[source]\npath = {json.dumps(str(self.path.resolve()))}\n'
            + (f"base = {json.dumps(str(self.base.resolve()))}\n" if self.base else "")
            + f'loras = [{loras}]\n[matrix]\nattention = ["original"]\n'
            f'resolution = ["{resolution}"]\nbits = ["{self.bits}"]\n'
        )


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the part of the results and write it; exit code 1 if a command failed."""
    options = parse(arguments)
    is_whole = not (options.quick or options.only)
    results = options.results or (RESULTS if is_whole else options.folder / "RESULTS.md")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        setup = make_setup(options.folder, quick=options.quick, checkpoint=options.checkpoint)
        files = make_files(options.folder, setup.checkpoint, say)
        setup = replace(setup, others=files.all)
        peer = None
        if options.peer:
            peer = make_peer(options.peer, options.folder / "peer", setup.checkpoint)
        sources = make_sources(setup.checkpoint, files, setup.checkpoint if options.quick else None)
        memory = options.peer_memory << 30
        tasks = choose(make_tasks(setup, sources, files, peer, memory), options.only)
        wanted = {task.name for task in tasks}
        load = os.getloadavg()[0]
        measurements = run_tasks(
            setup, tasks, repeat=options.repeat, interval=0.05, cold=not options.quick, say=say
        )
        loads = f"load {load:.1f} before the first run: what else the machine did"
        text = section(
            measurements,
            {name: planned(setup, sources[name]) for name in sources.keys() & wanted},
            [*describe(options.folder), loads],
        )
        put(PART, text, results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130
    print(text)
    ours = (row for row in measurements.rows if not row.task.is_peer)
    return int(any(run.exit_code for row in ours for run in row.runs))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.sources", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--folder", type=Path, default=Path("out/bench"), metavar="DIR", help="works here")
    add("--checkpoint", type=Path, metavar="DIR", help="use this one (diffusers layout)")
    add("--only", action="append", default=[], metavar="NAME", help="only this row; may repeat")
    add("--quick", action="store_true", help="the toy checkpoint, page cache left alone")
    add("--repeat", type=positive, default=1, metavar="N", help="rounds; the table shows medians")
    add("--peer", type=Path, metavar="PYTHON", help="of an environment with coreml-diffusion")
    memory = "within so much memory"
    add("--peer-memory", type=positive, default=PEER_MEMORY, metavar="GIB", help=memory)
    add("--results", type=Path, metavar="FILE", help="bench/RESULTS.md, or in --folder for a part")
    return parser.parse_args(arguments)


def make_sources(checkpoint: Path, files: SourceFiles, base: Path | None) -> dict[str, Source]:
    """What is converted, by the names of the rows; `base` is of files that do not tell configs."""
    folder, single = Source(checkpoint), Source(files.single, base=base)
    return {
        "folder": folder,
        "single": single,
        "ckpt": replace(single, path=files.zipped),
        "ckpt-old": replace(single, path=files.legacy),
        "loras": replace(single, loras=files.loras),
        "folder-6": replace(folder, bits="6", component="unet"),
        "loras-6": replace(single, loras=files.loras, bits="6", component="unet"),
        "vae": replace(single, component="vae_decoder"),
        "unet": replace(single, component="unet"),
    }


TITLES = {
    "folder": "folder, all components",
    "single": "single file (.safetensors)",
    "ckpt": ".ckpt",
    "ckpt-old": ".ckpt, as PyTorch wrote before 1.6",
    "loras": "single file and two LoRAs of rank 32",
    "folder-6": "folder, UNet to 6 bits",
    "loras-6": "single file and two LoRAs, UNet to 6 bits",
    "vae": "single file, VAE decoder",
    "unet": "single file, UNet",
}


def make_tasks(
    setup: Setup, sources: dict[str, Source], files: SourceFiles, peer: Peer | None, memory: int
) -> list[Task]:
    """The rows; the peer's behind ours of the same component, and what is only for that with it."""
    out = setup.folder / "converted"
    found = []
    for name, source in sources.items():
        resolution, title = setup.resolutions[0], TITLES[name]
        if name in PEER_SIZES:
            if peer is None:
                continue
            resolution = PEER_SIZES[name]
            title = f"{title}, {resolution}"
        options = ("--attention", "original", "--resolution", resolution, "--quiet")
        command = (*COMMAND, "convert", *source.options(), "--out", str(out), *options)
        found.append(Task(name, title, command, out))
        if name in PEER_SIZES and peer is not None:
            their_out = setup.folder / "peer-converted"
            assert source.component is not None
            command = peer.command(files.single, source.component, resolution, their_out)
            title = f"coreml-diffusion: the same, within {memory >> 30} GiB"
            row = Task(f"peer-{name}", title, command, their_out, limit=memory, is_peer=True)
            found.append(replace(row, rounds=1))
    return found


def planned(setup: Setup, source: Source) -> float:
    """The seconds that `plan` says a conversion takes; of a part of it, none."""
    if source.component:
        return 0.0
    recipe = setup.folder / "sources.toml"
    recipe.write_text(source.recipe(setup.resolutions[0]), "utf-8")
    found = measure([*COMMAND, "plan", str(recipe), "--json"])
    return float(json.loads(found.stdout)["seconds"]) if not found.failure else 0.0


def section(measurements: Measurements, plans: dict[str, float], machine: Sequence[str]) -> str:
    """The part of RESULTS.md, markers included; ratios are of medians, to the row of the folder.

    The peer's are to our row of the same component.
    """
    rows = {row.task.name: row for row in measurements.rows}
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1))]
    lines += [_cells(row, rows, plans) for row in rows.values()]
    runs = max((len(row.runs) for row in rows.values()), default=0)
    cache = measurements.page_cache
    return "\n".join(
        [
            start(PART),
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            *_verdicts(rows),
            "Ratios are to the folder, converted alike; coreml-diffusion's to the row above it.",
            f"{runs} rounds, in which all rows take turns: medians, and the smallest and largest.",
            f"Page cache: {cache}. The same weights in every row, random ones, on:",
            "",
            *(f"- {fact}" for fact in machine),
            end(PART),
            "",
        ]
    )


def _cells(row: Row, rows: dict[str, Row], plans: dict[str, float]) -> tuple[str, ...]:
    if row.problem is not None or not row.runs:
        return (row.task.title, row.problem or "not run", *["–"] * (len(COLUMNS) - 2))
    name = row.task.name
    folder = rows.get("folder-6" if name.endswith("-6") else "folder")
    beside = row.task.is_peer or name in PEER_SIZES
    to = folder if folder is not row and not beside else None
    if row.task.is_peer:
        to = rows.get(name.removeprefix("peer-"))
    plan = plans.get(name, 0.0)
    return (
        row.task.title,
        spread(row, _wall, seconds),
        _ratio(row, to, _wall),
        spread(row, _cpu, seconds),
        _ratio(row, to, _cpu),
        spread(row, _anonymous, size),
        _ratio(row, to, _anonymous),
        f"{plan / median(map(_wall, row.runs)):.2f}" if plan else "–",
        size(row.disk.allocated) if row.disk else "–",
    )


def _wall(measured: Measured) -> float:
    return measured.wall


def _cpu(measured: Measured) -> float:
    return measured.cpu


def _anonymous(measured: Measured) -> float:
    return measured.peak_memory.anonymous + measured.peak_memory.shared


def _ratio(row: Row, to: Row | None, get: object) -> str:
    value = _ratio_of(row, to, get)
    return "–" if value is None else f"{value:.2f}"


def _ratio_of(row: Row | None, to: Row | None, get: object) -> float | None:
    if row is None or to is None or row.problem or to.problem or not row.runs or not to.runs:
        return None
    assert callable(get)
    return float(median(map(get, row.runs)) / median(map(get, to.runs)))


def _verdicts(rows: dict[str, Row]) -> Iterator[str]:
    """Whether packages are the same bytes, and what is over its limit."""
    alike = [n for n in ("folder", "single", "ckpt", "ckpt-old") if n in rows and rows[n].packages]
    if len(alike) > 1:
        same = all(rows[name].packages == rows[alike[0]].packages for name in alike)
        count = len(rows[alike[0]].packages)
        yield (
            f"All {count} files of the packages (weights and graphs) are the same bytes from "
            if same
            else "Packages DIFFER between "
        ) + f"{', '.join(TITLES[name].partition(',')[0] for name in alike)}."
        yield ""
    over = []
    for name, (time, memory) in LIMITS.items():
        for limit, get, what in ((time, _wall, "time"), (memory, _anonymous, "memory")):
            found = _ratio_of(rows.get(name), rows.get("folder"), get)
            if limit is not None and found is not None and found > limit:
                over.append(f"{TITLES[name]}: {found:.2f} × the folder's {what}, more than {limit}")
    loras = rows.get("loras")
    if loras and loras.runs and median(map(_anonymous, loras.runs)) > LORA_MEMORY:
        over.append(f"{TITLES['loras']}: more than {size(LORA_MEMORY)} of memory")
    yield f"Over the limits: {'; '.join(over)}." if over else "All within the project's limits."
    yield ""


if __name__ == "__main__":
    sys.exit(main())
