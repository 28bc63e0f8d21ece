"""generate, record and verify --golden on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sdxl_coreml import app

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["sdxl-coreml", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            app.main()
        out, err = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out, err

    return call


def test_generate_writes_a_picture_with_its_settings(
    command: Run, base_artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "a.png"
    options = ["--steps", 2, "--seed", 3, "--scheduler", "euler_a", "--negative", "a beach"]
    code, stdout, _ = command("generate", base_artifact, "the horse", "--out", out, *options,
                              "--runtime", "torch", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(stdout)["resolution"] == "64x96"
    image = Image.open(out)
    assert image.size == (64, 96)
    text = image.text["parameters"]  # type: ignore[attr-defined]
    assert text.startswith("the horse\nNegative prompt: a beach\nSteps: 2, Sampler: euler_a, ")
    assert "Seed: 3" in text
    again = tmp_path / "again.png"
    command("generate", base_artifact, "the horse", "--out", again, *options, "-q")
    assert again.read_bytes() == out.read_bytes()


def test_generate_begins_with_an_image_of_any_size(
    command: Run, base_artifact: Path, tmp_path: Path
) -> None:
    start, out = tmp_path / "start.png", tmp_path / "a.png"
    Image.new("RGB", (200, 100), (200, 30, 40)).save(start)
    options = ["--out", out, "--image", start, "--steps", 4, "--strength", 0.5]
    code, _, err = command("generate", base_artifact, "the horse " * 90, *options)
    assert code == 0
    assert "200x100 scaled and cropped to 64x96" in err
    assert "tokens; the last" in err
    assert Image.open(out).size == (64, 96)


def test_generate_says_what_is_wrong(command: Run, artifact: Path, tmp_path: Path) -> None:
    import shutil

    out = ["--out", tmp_path / "a.png"]
    for options, says in (
        (["--out", tmp_path / "a.jpg"], "is no .png file"),
        ([*out, "--scheduler", "eular_a"], "Did you mean `euler_a`?"),
        ([*out, "--image", tmp_path / "none.png"], "no such image"),
        ([*out, "--image", artifact / "vocab.json"], "not readable as an image"),
    ):
        code, _, err = command("generate", artifact, "x", *options)
        assert (code, says in err) == (2, True), err
    shutil.rmtree(artifact / "VAEEncoder.mlpackage")
    code, _, err = command("generate", artifact, "x", *out, "--image", tmp_path / "none.png")
    assert code == 2
    assert "no VAEEncoder, which image-to-image begins with" in err


def test_a_recording_is_replayed_without_the_checkpoint(
    command: Run, base_artifact: Path, shapes: dict[str, Path], tmp_path: Path
) -> None:
    golden, report = tmp_path / "golden", tmp_path / "reports" / "r.json"
    code, stdout, _ = command(
        "record", shapes["base"], "--resolution", "64x96", "--out", golden, "--json",
        "--prompt", "the horse", "--steps", 2, "--scheduler", "dpmpp_2m_karras",
    )  # fmt: skip
    assert code == 0
    assert json.loads(stdout)["pictures"] == [
        "dpmpp_2m_karras text-to-image 1",
        "dpmpp_2m_karras image-to-image 1",
    ]
    code, _, err = command("verify", base_artifact, "--golden", golden, "--json", report,
                           "--runtime", "torch", "--level", "generation", "-q")  # fmt: skip
    assert code == 0, err
    made = json.loads(report.read_text())["generations"]
    for name in (made[1]["images"]["start"], made[0]["images"]["candidate"]):
        assert Image.open(report.parent / name).size == (64, 96)
    code, _, err = command("verify", base_artifact)
    assert code == 2
    assert "--golden" in err
