"""The command line: results on stdout, one clear error and its exit code, no noise."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdxl_coreml import app

Run = Callable[..., tuple[int, str, str]]
COMMANDS = [
    "toy", "download", "plan", "convert", "run", "verify", "inspect", "recipes", "schema", "doctor",
    "recheck", "bless", "diff", "bisect", "compile", "pack", "lint", "card", "publish",
]  # fmt: skip
HEAVY = {"torch", "coremltools", "diffusers", "transformers", "numpy", "pydantic"}


@pytest.fixture(scope="module")
def artifact(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("convert") / "out"
    options = ["--out", out, "--attention", "split_einsum", "--resolution", "64x96", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "sdxl_coreml", "convert", toy, *map(str, options)], check=True
    )
    return out / "toy_split-einsum_16-bit_64x96"


def test_help_loads_nothing_heavy() -> None:
    load = "import sys; from sdxl_coreml.app import application; application()"
    code = f"{load}; print({HEAVY!r} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_version_and_bare_call(command: Run) -> None:
    assert command("--version")[:2] == (0, f"sdxl-coreml {app.__version__}\n")
    assert command()[0] == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(command: Run, name: str) -> None:
    code, out, _ = command(name, "--help")
    assert code == 0
    assert f"Example: sdxl-coreml {name}" in out


def test_plan_needs_no_weights_and_speaks_json(command: Run, toy: Path, tmp_path: Path) -> None:
    headers = Path(shutil.copytree(toy, tmp_path / "headers"))
    for file in headers.rglob("*.safetensors"):
        size = file.stat().st_size
        header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
        os.truncate(file, header)
        os.truncate(file, size)  # all weights are now a hole
    code, out, _ = command("plan", "toy", "--source", headers, "--json")
    plan = json.loads(out)
    assert code == 0
    assert [a["artifact"] for a in plan["artifacts"]] == [
        "toy_original_16-bit_128x128",
        "toy_original_16-bit_128x192",
        "toy_split-einsum_16-bit_128x128",
        "toy_split-einsum_16-bit_128x192",
    ]
    assert len(plan["packages"]) == 10
    assert plan["weight_bytes"] == sum(f["bytes"] for f in plan["weight_files"])


def test_a_recipes_name_is_the_recipe_where_a_folder_is_called_so(
    command: Run, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as after `sdxl-coreml toy toy`
    (tmp_path / "toy").symlink_to(toy)
    code, out, err = command("plan", "toy", "--source", "toy", "--json")
    assert code == 0, err
    assert len(json.loads(out)["artifacts"]) == 4
    code, _, err = command("plan", "./toy", "--source", "toy")  # a path, and no name
    assert code == 2
    assert "is a folder, not a recipe" in err


def plan_in(answer: tuple[int, str, str]) -> dict[str, Any]:
    """The plan that a command gave, but for the room that happened to be free."""
    code, out, err = answer
    assert (code, err) == (0, "")
    return {**json.loads(out), "free_bytes": None}


def test_dry_run_is_the_plan(command: Run, toy: Path, tmp_path: Path) -> None:
    arguments = ["--source", toy, "--json"]
    planned = plan_in(command("plan", "toy", *arguments))
    assert set(planned["verify"]) == {"quick", "standard", "thorough"}
    assert planned == plan_in(
        command("run", "toy", "--dry-run", "--out", tmp_path / "out", *arguments)
    )
    assert not (tmp_path / "out").exists()


def test_convert_leaves_an_artifact_and_says_so(command: Run, artifact: Path, toy: Path) -> None:
    options = ["--attention", "split_einsum", "--resolution", "64x96", "--json"]
    code, out, _ = command("convert", toy, "--out", artifact.parent, *options)
    (made,) = json.loads(out)["artifacts"]
    assert code == 0
    assert made == {"artifact": artifact.name, "path": str(artifact), "fresh": False}


def test_inspect_reads_an_artifact_and_a_package(command: Run, artifact: Path) -> None:
    code, out, _ = command("inspect", artifact, "--json")
    assert code == 0
    assert [m["component"] for m in json.loads(out)["models"]] == [
        "text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder",
    ]  # fmt: skip
    code, out, _ = command("inspect", artifact / "Unet.mlpackage")
    assert code == 0
    assert "split_einsum" in out


def test_run_verifies_and_reports_and_a_second_run_does_nothing(
    command: Run, toy: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'name = "r"\n[source]\npath = "elsewhere"\n'
        '[matrix]\nattention = ["original"]\nresolution = ["64x64"]\n'
    )
    out = tmp_path / "out"
    code, text, err = command("run", recipe, "--source", toy, "--out", out)
    assert code == 0, err
    assert "pass: 1 of 1 artifacts passed" in text
    assert "Warning" not in err
    names = {str(p.relative_to(out)) for p in (out / "reports").iterdir()}
    assert names == {
        "reports/r_original_16-bit_64x64.json", "reports/r_original_16-bit_64x64.html",
        "reports/summary.json", "reports/summary.md", "reports/index.html",
    }  # fmt: skip
    assert 'href="r_original_16-bit_64x64.html"' in (out / "reports/index.html").read_text()
    page = (out / "reports/r_original_16-bit_64x64.html").read_text()
    assert 'href="index.html"' in page
    assert f"{out}/r_original_16-bit_64x64 --source {toy} --recipe {recipe}" in page
    summary = json.loads((out / "reports" / "summary.json").read_text())
    assert summary["verdict"] == "pass"
    manifest = out / "r_original_16-bit_64x64" / "manifest.json"
    assert json.loads(manifest.read_text())["verdict"] == "pass"
    released = {p.name for p in (out / "release").iterdir()} - {"images"}
    archive = "r_original_16-bit_64x64.zip"
    assert released == {archive, "SHA256SUMS", "manifest.json", "README.md"}
    assert command("lint", out / "release")[0] == 0
    places = ("r_*/**/*", f"release/{archive}")
    before = {p: p.stat().st_mtime_ns for place in places for p in out.glob(place)}
    code, _, _ = command("run", recipe, "--source", toy, "--out", out, "--quiet")
    assert code == 0
    assert {p: p.stat().st_mtime_ns for place in places for p in out.glob(place)} == before


def test_verify_writes_every_report(
    command: Run, artifact: Path, toy: Path, tmp_path: Path
) -> None:
    files = {n: tmp_path / f"r.{n}" for n in ("json", "junit", "markdown", "html")}
    options = [part for n, file in files.items() for part in (f"--{n}", file)]
    package = artifact / "TextEncoder.mlpackage"
    code, out, _ = command("verify", package, "--source", toy, *options)
    assert code == 0
    assert "pass:" in out
    assert json.loads(files["json"].read_text())["verdict"] == "pass"
    assert files["junit"].read_text().startswith("<?xml")
    assert "text_encoder" in files["markdown"].read_text()
    page = files["html"].read_text()
    assert f"<title>Passed: {json.loads(files['json'].read_text())['artifact']}</title>" in page
    assert f"sdxl-coreml verify {package} --source {toy} --json {files['json']}" in page


def test_a_wrong_model_fails_with_exit_code_1(
    command: Run, artifact: Path, toy: Path, tmp_path: Path
) -> None:
    package = Path(shutil.copytree(artifact / "TextEncoder2.mlpackage", tmp_path / "t.mlpackage"))
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = bytes(4096)
    weights.write_bytes(data)
    code, out, _ = command("verify", package, "--source", toy, "--json", "-")
    assert code == 1
    failed = [c for c in json.loads(out)["checks"] if c["verdict"] == "fail"]
    assert {c["component"] for c in failed} == {"text_encoder_2"}


def test_doctor_and_recipes_and_schema_speak_json(command: Run) -> None:
    assert json.loads(command("doctor", "--json")[1])["findings"]
    assert "toy" in json.loads(command("recipes", "--json")[1])["recipes"]
    assert json.loads(command("schema")[1])["type"] == "object"
    assert command("recipes", "toy")[1].startswith("#")


BAD: list[tuple[str, list[str], str]] = [
    ("no such command", ["convret"], "No such command"),
    ("missing option", ["convert", "{toy}"], "Missing option '--out'"),
    ("no such checkpoint", ["convert", "no/such/folder", "--out", "{out}"], "no such folder"),
    (
        "attention misspelt",
        ["convert", "{toy}", "--out", "{out}", "--attention", "split_einsm"],
        "did you mean `split_einsum`?",
    ),
    (
        "resolution the network cannot do",
        ["convert", "{toy}", "--out", "{out}", "--resolution", "100x100"],
        "multiple of 8",
    ),
    (
        "unknown engine",
        ["convert", "{toy}", "--out", "{out}", "--engine", "magic"],
        "unknown engine `magic`",
    ),
    (
        "unknown component",
        ["convert", "{toy}", "--out", "{out}", "--component", "uent"],
        "did you mean `unet`?",
    ),
    (
        "unknown target",
        ["convert", "{toy}", "--out", "{out}", "--deployment-target", "macOS13"],
        "macOS14",
    ),
    ("output is a file", ["convert", "{toy}", "--out", "{file}"], "is a file"),
    ("output holds something", ["convert", "{toy}", "--out", "{full}"], "which no run has made"),
    ("no such recipe", ["run", "none.toml", "--out", "{out}"], "none.toml"),
    ("recipe with unknown key", ["plan", "{recipe}"], "did you mean `resolution`?"),
    ("only matches nothing", ["plan", "toy", "--source", "{toy}", "--only", "x*"], "matches none"),
    ("verify nothing", ["verify", "none", "--source", "{toy}"], "no such file or folder"),
    ("verify a folder of something", ["verify", "{full}", "--source", "{toy}"], ""),
    ("inspect nothing", ["inspect", "none"], "no such package or folder"),
    ("toy into something", ["toy", "{full}"], "not empty"),
    ("download by URL", ["download", "http://127.0.0.1:1/c", "--out", "{out}"], "cannot be"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "says"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_error_and_leaves_nothing(
    command: Run, toy: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    places = {
        "toy": toy,
        "out": tmp_path / "out",
        "file": tmp_path / "file",
        "full": tmp_path / "full",
        "recipe": tmp_path / "recipe.toml",
    }
    places["file"].touch()
    places["full"].mkdir()
    (places["full"] / "mine").touch()
    places["recipe"].write_text('name="r"\n[source]\npath="t"\n[matrix]\nresolutoin=["64x64"]\n')
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(*(a.format(**places) for a in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mistake_of_ours_is_no_traceback(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("sdxl_coreml.doctor.diagnose", fail)
    code, _, err = command("doctor")
    assert code == 4
    assert "RuntimeError: boom" in err
    assert "SDXL_COREML_DEBUG=1" in err


def test_an_interrupted_run_says_so_and_leaves_nothing_half_done(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "sdxl_coreml", "run", "toy", "--source", toy, "--out", out],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever started the tests with Ctrl-C ignored (nohup, a job in the background) has passed
        # that on; the child is to have what a terminal gives.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (out / ".cache").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not list((out / ".cache" / "tmp").glob("*-*"))


def test_results_are_accepted_compared_and_bisected(
    command: Run, artifact: Path, toy: Path, tmp_path: Path
) -> None:
    report, baseline = tmp_path / "report.json", tmp_path / "baseline.json"
    verify = ("verify", artifact, "--source", toy, "--component", "text_encoder", "--quiet")
    assert command(*verify, "--json", report)[0] == 0
    accept = ("bless", report, "--baseline", baseline, "--reason")
    assert command(*accept, "")[0] == 2
    assert command(*accept, "a test")[0] == 0
    code, out, _ = command(*verify, "--baseline", baseline, "--json", "-")
    assert (code, json.loads(out)["diff"]["verdict"]) == (0, "pass")
    assert command("diff", baseline, report)[0] == 0

    loose = tmp_path / "loose.toml"
    built_in = Path(app.__file__).parents[1] / "verify" / "judge" / "policy.toml"
    loose.write_text(built_in.read_text().replace("at_least = 40.0", "at_least = 30.0"))
    code, out, _ = command(*verify, "--baseline", baseline, "--policy", loose)
    assert code == 1
    assert "snr_db >= 30" in out

    code, out, _ = command("bisect", artifact, "--source", toy, "--component", "text_encoder")
    assert code == 0
    assert "nothing diverges" in out
