"""The bench measures what it says it does; only `--quick` runs here."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from bench import readme, verification
from bench.__main__ import main
from bench.cgroup import CannotLimit, memory_limit, parents
from bench.measure import Measured, Memory, measure
from bench.proof import runs
from bench.run import Disk, Measurements, Row, disk_use, run_tasks
from bench.sources import __main__ as sources
from bench.sources.peer import make_peer
from bench.table import end, kept, markdown, put, start
from bench.tasks import Setup, Task, choose, make_tasks
from convert.errors import CannotExecute, InputError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the bench measures on Linux only")

MIB = 1 << 20
ANONYMOUS = "held = b'x' * (200 << 20); import time; time.sleep(0.3)"
MAPPED = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    view = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
sum(view[i] for i in range(0, len(view), 4096))
time.sleep(0.3)
"""


def python(code: str, *arguments: str) -> Measured:
    return measure([sys.executable, "-c", code, *arguments])


def test_anonymous_memory_is_told_from_mapped_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(200 * MIB))
    nothing, anonymous, mapped = python("pass"), python(ANONYMOUS), python(MAPPED, str(file))

    def more(found: Measured) -> tuple[float, float]:
        """MiB above an idle interpreter; a file in a tmpfs counts as shared memory."""
        one, two = found.peak_memory, nothing.peak_memory
        mapped_pages = one.file + one.shared - two.file - two.shared
        return (one.anonymous - two.anonymous) / MIB, mapped_pages / MIB

    heap, pages = more(anonymous)
    assert 195 < heap < 215
    assert pages < 15
    heap, pages = more(mapped)
    assert heap < 15
    assert 195 < pages < 215
    assert mapped.peak >= 200 * MIB


def test_children_count() -> None:
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ANONYMOUS!r}])"
    assert python(code).peak_memory.anonymous > 200 * MIB
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    assert python(code).cpu > 0.5


def test_the_end_of_a_command_is_kept() -> None:
    good = measure(["sh", "-c", "echo out; echo err >&2"])
    assert (good.exit_code, good.stdout, good.stderr, good.failure) == (0, "out\n", "err\n", None)
    assert 0 < good.wall <= good.synced
    bad = measure(["sh", "-c", "echo error: no such thing >&2; echo a hint >&2; exit 3"])
    assert (bad.exit_code, bad.failure) == (3, "exit code 3: error: no such thing")
    killed = measure(["sh", "-c", "kill -TERM $$"])
    assert (killed.exit_code, killed.failure) == (-15, "killed by SIGTERM")
    with pytest.raises(CannotExecute, match="no-such-program: cannot be run"):
        measure(["no-such-program"])


def test_what_a_command_leaves_running_is_ended() -> None:
    found = measure(["sh", "-c", "sleep 60 & echo $!"])
    assert found.wall < 10
    stat = Path(f"/proc/{found.stdout.strip()}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_elsewhere_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(CannotExecute, match="Linux only"):
        measure(["true"])


def test_a_memory_limit_is_kept_or_refused() -> None:
    try:
        with memory_limit(100 * MIB) as limit:
            command = [sys.executable, "-c", "pass"]
            assert measure(command, limit=limit).failure is None
            killed = measure([sys.executable, "-c", ANONYMOUS], limit=limit)
        assert limit.folder is None or not limit.folder.exists()
    except CannotLimit as error:
        pytest.skip(f"memory limit not checked: {error.problem}")
    assert killed.exit_code == -9
    assert killed.peak < 110 * MIB
    if limit.folder is not None:
        assert killed.failure == "killed: out of memory"
        assert killed.group_peak is None or killed.group_peak <= 100 * MIB


def test_groups_are_made_where_memory_can_be_limited(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("4:memory:/box\n3:cpu:/box\n0::/slice/scope\n")
    root = tmp_path / "root"
    (root / "memory" / "box").mkdir(parents=True)
    assert parents(root, mine) == [(1, root / "memory" / "box")]

    scope = root / "slice" / "scope"
    scope.mkdir(parents=True)
    (root / "cgroup.controllers").touch()
    (scope / "cgroup.subtree_control").write_text("\n")
    (scope.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    assert (2, scope.parent) in parents(root, mine)
    assert (2, scope) not in parents(root, mine)
    assert parents(root, tmp_path / "absent") == []


def test_hard_links_count_once(tmp_path: Path) -> None:
    entry = tmp_path / ".cache" / "weights"
    entry.mkdir(parents=True)
    (entry / "weight.bin").write_bytes(b"x" * MIB)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        os.link(entry / "weight.bin", tmp_path / name / "weight.bin")
    found = disk_use(tmp_path)
    assert MIB <= found.allocated < 1.1 * MIB
    assert (found.weights, found.linked) == (MIB, 2 * MIB)
    assert (found.artifacts, found.artifact_weights) == (2, MIB)


def test_tasks_are_chosen_with_those_they_go_on_from(toy: Path, tmp_path: Path) -> None:
    tasks = make_tasks(Setup(toy, tmp_path, ["128x128"]))
    assert [t.name for t in choose(tasks, ["cp", "matrix-again"])] == [
        "cp", "matrix", "matrix-again",
    ]  # fmt: skip
    assert choose(tasks, []) == tasks
    with pytest.raises(InputError, match="unknown task `mtrix`"):
        choose(tasks, ["mtrix"])


def row(name: str, *walls: float, problem: str | None = None, is_peer: bool = False) -> Row:
    memory = Memory(anonymous=10**9, file=4 * 10**9)
    runs = [Measured(0, wall, 1.5 * wall, wall, memory.total, memory, 9, "", "") for wall in walls]
    disk = Disk(7 * 10**9, 6 * 10**9, 90 * 10**9, 6 * 10**9, 18)
    return Row(Task(name, name, (), Path(), is_peer=is_peer), runs, disk, problem)


def test_the_table_has_ratios_spreads_and_reasons() -> None:
    rows = [
        row("cp", 10, 12, 11),
        row("unet-original", 22, 22, 22),
        row("unet-original-limited", problem="not possible here"),
        row("matrix", 50, 40, 44),
        row("peer", 1100, is_peer=True),
    ]
    plan = {"weight_bytes": 6 * 10**9, "seconds": 22, "bytes": None, "unknown": 1}
    text = markdown(Measurements(rows, "dropped", plan, 0.05), ["2 cores"], source="a checkpoint")
    cells = {}
    for line in text.splitlines():
        if line.startswith("| "):
            first, *others = line.strip("| ").split(" | ")
            cells[first] = others
    assert cells["cp"][:4] == ["11.0 s (10.0 s–12.0 s)", "16.5 s (15.0 s–18.0 s)", "1.00", "–"]
    assert cells["unet-original"][2:] == ["2.00", "0.02", "22.0 s", "1.00 GB", "5.00 GB", "7.00 GB"]
    assert cells["unet-original-limited"][0] == "not possible here"
    assert cells["peer"][:4] == ["18.3 min", "27.5 min", "100.00", "1.00"]
    assert cells["weights on disk (`weight_bytes`)"] == ["6.00 GB", "6.00 GB", "1.00"]
    assert cells["until exit (`seconds`)"] == ["22.0 s", "44.0 s", "0.50"]
    assert "(`bytes`)" not in text
    assert "The 18 artifacts take 7.00 GB on disk, 1.17 × the weights of one (6.00 GB)" in text


def test_the_readme_gets_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results, page = tmp_path / "RESULTS.md", tmp_path / "README.md"
    arguments = ["--results", str(results), "--readme", str(page)]

    def text(one: str, two: str) -> str:
        parts = [f"{start(n)}\n{v}\n{end(n)}" for n, v in {"bench": one, "sources": two}.items()]
        return f"before\n{parts[0]}\nbetween\n{parts[1]}\nafter\n"

    results.write_text(text("| new \\1 |", "| newer |"))
    page.write_text(text("old", "older"))
    assert readme.main([*arguments, "--check"]) == 1
    assert page.read_text() == text("old", "older")
    assert readme.main(arguments) == 0
    assert page.read_text() == text("| new \\1 |", "| newer |")
    assert readme.main([*arguments, "--check"]) == 0
    page.write_text(f"{start('bench')}\n{end('bench')}\n")
    assert readme.main(arguments) == 2
    missing = f"README.md: has 0 parts between {start('sources')} and {end('sources')}"
    assert missing in capsys.readouterr().err


def test_each_program_writes_its_own_part(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"

    def part(name: str, text: str) -> str:
        return f"{start(name)}\n{text}\n{end(name)}\n"

    results.write_text("# Measurements\n\n" + part("bench", "a") + "\n- what it means\n")
    put("verification", part("verification", "b"), results)
    put("sources", part("sources", "c"), results)
    put("verification", part("verification", "d"), results)
    assert results.read_text().count("<!-- ") == 6
    assert "- what it means" in results.read_text()
    assert kept(results) == part("sources", "c") + "\n" + part("verification", "d")
    assert kept(tmp_path / "none") == ""


def test_sources_are_judged_beside_the_folder() -> None:
    def row(name: str, wall: float, anonymous: int, digest: str) -> Row:
        memory = Memory(anonymous=anonymous)
        runs = [Measured(0, wall, wall, wall, anonymous, memory, 9, "", "")]
        disk = Disk(1, 1, 1, 1, 1)
        return Row(Task(name, name, (), Path()), runs, disk, None, {"Unet/weight.bin": digest})

    rows = [
        row("folder", 10, 100, "a"),
        row("single", 10.9, 119, "a"),
        row("ckpt", 11, 121, "a"),
        row("loras", 16.5, 2 << 30, "b"),
    ]
    text = sources.section(Measurements(rows, "warm", None, 1), {"loras": 15.0}, ["2 cores"])
    assert "| loras | 16.5 s | 1.65 | 16.5 s | 1.65 | 2.15 GB |" in text
    assert "| 0.91 |" in text  # what `plan` says of it
    over = next(line for line in text.splitlines() if line.startswith("Over the limits: "))
    assert [part.rpartition(": ")[2] for part in over.split("; ")] == [
        "1.21 × the folder's memory, more than 1.2",
        "1.65 × the folder's time, more than 1.6",
        "more than 1.07 GB of memory.",
    ]
    assert "All 1 files of the packages (weights and graphs) are the same bytes" in text
    rows[1].packages["Unet/weight.bin"] = "c"
    text = sources.section(Measurements(rows, "warm", None, 1), {}, ["2 cores"])
    assert "Packages DIFFER between folder, single file (.safetensors), .ckpt." in text


def test_what_runs_once_runs_in_the_last_round(toy: Path, tmp_path: Path) -> None:
    tasks = [
        Task("often", "", ("sh", "-c", f"echo a >> {tmp_path / 'log'}"), tmp_path / "one"),
        Task("once", "", ("sh", "-c", f"echo b >> {tmp_path / 'log'}"), tmp_path / "two", rounds=1),
    ]
    setup = Setup(toy, tmp_path, ["128x128"])
    found = run_tasks(setup, tasks, repeat=3, interval=0.05, cold=False, say=lambda _: None)
    assert [len(row.runs) for row in found.rows] == [3, 1]
    assert (tmp_path / "log").read_text().split() == ["a", "a", "a", "b"]


def test_a_peer_that_is_not_there_is_said(toy: Path, tmp_path: Path) -> None:
    for python in (tmp_path / "none", Path(sys.executable)):
        with pytest.raises(InputError, match="coreml-diffusion is not installed there") as caught:
            make_peer(python, tmp_path / "home", toy)
        assert "pip install coreml-diffusion" in str(caught.value.hint)
    assert not (tmp_path / "home").exists()


@pytest.mark.slow
def test_every_source_is_converted(toy: Path, tmp_path: Path) -> None:
    options = ["--quick", "--folder", str(tmp_path), "--checkpoint", str(toy)]
    rows = [f"--only={name}" for name in ("folder", "ckpt-old", "loras")]
    assert sources.main([*options, *rows]) == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert len(re.findall(r"^\| .* s \| ", text, re.M)) == 3
    assert "are the same bytes from folder, .ckpt" in text


@pytest.mark.slow
def test_the_quick_bench_writes_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    assert main(["--quick", "--folder", str(folder)]) == 0
    text = (folder / "RESULTS.md").read_text()
    table = readme.block(folder / "RESULTS.md", "bench")
    rows = re.findall(r"^\| ([^|-][^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", table, re.M)
    tasks = make_tasks(Setup(folder / "toy", folder, ["128x128", "128x192"]))
    assert [title for title, *_ in rows] == [task.title for task in tasks]
    for title, *figures in rows:
        assert figures[0].endswith(" s") or ("GiB" in title and "not possible" in figures[0])
    assert "The 4 artifacts take" in text
    assert "(`weight_bytes`)" in text
    assert str(tmp_path) not in text
    assert sorted(p.name for p in folder.iterdir()) == ["RESULTS.md", "matrix.toml", "toy"]
    assert text.strip() in capsys.readouterr().out


def test_what_goes_on_from_a_failure_is_not_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    tasks = [
        Task("one", "one", ("sh", "-c", f"mkdir {out}; exit 7"), out),
        Task("two", "two", ("true",), out, after="one"),
        Task("three", "three", ("true",), tmp_path / "three"),
    ]
    lines: list[str] = []
    setup = Setup(tmp_path, tmp_path, [])
    found = run_tasks(setup, tasks, repeat=2, interval=0.05, cold=False, say=lines.append)
    assert [row.problem for row in found.rows] == [
        "exit code 7: nothing on stderr",
        "not run: it goes on from one",
        None,
    ]
    assert [len(row.runs) for row in found.rows] == [1, 0, 2]
    assert not out.exists()


def test_the_part_on_verification_is_replaced_and_kept(tmp_path: Path) -> None:
    memory = Memory(anonymous=10**9, file=5 * 10**9)
    measured = Measured(0, 100, 110, 150, memory.total, memory, 9, "", "")
    rows = [
        verification.Row("diffusers, float32", measured, {"load": 1, "timestep": 80}),
        verification.Row("evaluator", measured, {"load": 1, "timestep": 60, "snr_db": 57.123}),
    ]
    text = verification.section(rows, {"`verify --probe`": measured}, ["2 cores"], "a checkpoint")
    assert "| `verify --probe` | 100 s | 1.00 GB | 6.00 GB |" in text
    line = next(line for line in text.splitlines() if line.startswith("| evaluator"))
    assert line.strip("| ").split(" | ")[1:] == [
        "60.0 s", "0.75", "100.0 s", "1.00", "150.0 s", "1.00 GB", "6.00 GB", "57.1 dB",
    ]  # fmt: skip
    results = tmp_path / "RESULTS.md"
    results.write_text("# Measurements\n\nothers\n")
    put(verification.PART, text.replace("57.1", "50.0"), results)
    put(verification.PART, text, results)
    assert results.read_text() == f"# Measurements\n\nothers\n\n{text}"
    assert kept(results) == text


def test_the_part_on_proof_has_a_row_for_each_run() -> None:
    memory = Memory(anonymous=10**9, file=5 * 10**9)
    measured = Measured(0, 1000, 1010, 1500, memory.total, memory, 9, "", "")
    rows = [
        runs.ProofRow("from nothing", 36, 900.0, measured),
        runs.ProofRow("again", 36, None, measured),
    ]
    text = runs.section(rows, ["2 cores"], "a checkpoint")
    assert "| from nothing | 36 | 17 min | 15 min | 25 min | 1.00 GB |" in text
    assert "| again | 36 | 17 min | – | 25 min | 1.00 GB |" in text


@pytest.mark.slow
def test_a_timestep_is_the_same_from_both(toy: Path, tmp_path: Path) -> None:
    """Each in its process, as the bench does it; the toy at its own size."""
    folder = tmp_path / "verification"
    rows, checks = verification.run(toy, folder, "128x128", say=lambda _: None)
    assert [row.found.keys() >= {"load", "timestep"} for row in rows] == [True] * 5
    assert all(row.found["snr_db"] > 35 for row in rows[1:])
    assert rows[1].found["snr_db"] > rows[2].found["snr_db"]
    assert len(checks) == 2
    assert all("`verify --" in title and check.wall > 0 for title, check in checks.items())
    assert not folder.exists()
