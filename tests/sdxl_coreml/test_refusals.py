"""What cannot be done is refused before a file is fetched or hashed, or a model loaded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from convert.checkpoint.checkpoint import Checkpoint
from convert.errors import InputError
from convert.values import Resolution
from verify.question import Evidence, Question
from verify.reference import recording as recordings
from verify.reference.recording import Recording, case_names, record
from verify.run import verify

Run = Callable[..., tuple[int, str, str]]
PROBED = "a probe compares components"
ALONE = "one package makes no pictures"


def never(*_: object, **__: object) -> None:
    raise AssertionError("too late: something was fetched, hashed or loaded")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be fetched, hashed, loaded or run."""
    for place in (
        "convert.source.download.download",
        "convert.files.cache.digest_file",
        "verify.golden.digest_file",
        "verify.golden.load_tensors",
        "verify.run.digest_file",
        "verify.levels.folder.digest_file",
        "verify.artifact.artifact.load_program",
        "verify.levels.subject.load_program",
        "verify.sampling.pipeline.load_program",
        "verify.sampling.pipeline.open_network",
        "verify.reference.reference.Reference.__enter__",
        "release.pack.bundle.digest_file",
        "release.publish.publish.digest_file",
        "release.publish.sending.digest_file",
    ):
        monkeypatch.setattr(place, never)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("verify ART --source SRC --probe --level generation", PROBED),
        ("verify ART --source SRC --probe --level sanity --level structure", PROBED),
        ("verify ART --golden SRC --probe", PROBED),
        ("verify ART/Unet.mlpackage --source SRC --level sanity", ALONE),
        ("verify ART --source SRC --level generatoin", "unknown level `generatoin`"),
        ("verify ART --source SRC --component uent", "no component `uent`"),
        ("verify ART --source SRC --runtime torhc", "unknown runtime `torhc`"),
        ("verify ART --source SRC --device tpu", "no device `tpu`"),
        ("verify ART --golden SRC --timestep 999", "timesteps are asked for"),
        ("verify ART --source SRC --level structure --timestep 999", "timesteps are asked for"),
        ("verify ART --source SRC --policy OUT/none.toml", "none.toml: missing"),
        ("verify ART --source SRC --baseline OUT/none.json", "none.json"),
        ("verify ART --source SRC --json ART", "is a folder; a file is expected"),
        ("verify ART --source SRC --html ART/manifest.json/page.html", "is a file; a folder is"),
        ("bisect ART --source SRC --component uent", "no component `uent`"),
        ("bisect ART --source SRC --case t=501", "no recorded run `t=501`"),
        ("bisect ART --source SRC --component unet --case prompt", "no recorded run `prompt`"),
        ("bisect ART --source SRC --out FULL", "exists and is not empty"),
        ("bisect ART --source SRC --device tpu", "no device `tpu`"),
        ("bisect OUT/none --source SRC", "no such file or folder"),
        ("record SRC --resolution 64x64 --out FULL", "exists and is not empty"),
        ("record SRC --resolution 64x64 --out OUT/g --scheduler eulr", "unknown scheduler `eulr`"),
        ("record SRC --resolution 64x64 --out OUT/g --device tpu", "no device `tpu`"),
        ("generate ART cat --out OUT/a.png --scheduler eulr", "unknown scheduler `eulr`"),
        ("generate ART cat --out OUT/a.png --image OUT/none.png", "no such image"),
        ("generate ART cat --out OUT/a.png --image ART/manifest.json", "not readable as an image"),
        ("generate ART cat --out OUT/a.png --image PNG --strength 0.01", "leave nothing to do"),
        ("generate ART cat --out ART/manifest.json/a.png", "is a file; a folder is expected"),
        ("convert SRC --out OUT/o --component uent", "unknown component `uent`"),
        ("convert SRC --out OUT/o --engine apple", "Apple's converter is not installed"),
        ("convert SRC --out OUT/o --engine apple --component vae_decoder --bits 6", "16-bit"),
        ("convert SRC --out FULL", "which no run has made"),
        ("convert SRC --out ART/manifest.json", "is a file; a folder is expected"),
        ("run toy --source SRC --out FULL", "which no run has made"),
        ("run toy --source SRC --out OUT/o --only none", "matches none of the artifacts"),
        ("run toy --source SRC --out OUT/o --split much", "`much`"),
        ("plan toy --source SRC --only none", "matches none of the artifacts"),
        ("pack ART --out OUT/r --source SRC --split much --allow-unverified", "`much`"),
        ("pack ART --out OUT/r --source SRC", "was not verified"),
        ("pack ART --out FULL --source SRC --allow-unverified", "which no `pack` has made"),
        ("publish OUT/none --repo bad", "`bad` is not a Hub repository"),
        ("publish OUT/none --repo a/b", "is no release folder, and holds no artifact"),
        ("publish ART --repo a/b", "not published, because verification did not pass"),
        ("publish ART --repo a/b --split much", "`much`"),
    ],
)
def test_the_command_line_refuses_at_once(
    line: str,
    problem: str,
    command: Run,
    base_artifact: Path,
    base: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "python_coreml_stable_diffusion", None)
    full = tmp_path / "full"
    for folder in (full, full / "unet" / "divergence"):
        folder.mkdir(parents=True)
        (folder / "thesis.tex").write_text("precious")
    Image.new("RGB", (64, 96)).save(tmp_path / "start.png")
    places = {
        "PNG": tmp_path / "start.png",
        "ART": base_artifact,
        "SRC": base.path,
        "OUT": tmp_path / "out",
        "FULL": full,
    }
    words = []
    for word in line.split():
        for name, path in places.items():
            if word == name or word.startswith(f"{name}/"):
                word = str(path) + word.removeprefix(name)
        words.append(word)
    code, out, err = command(*words)
    assert problem in err, err
    assert (code in (1, 2), out) == (True, "")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("idle")
def test_verification_refuses_what_does_not_fit(
    base: Checkpoint,
    base_artifact: Path,
    recording: Recording,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was recorded for another size, known from the manifests and headers alone."""
    from verify.mil import load_program

    monkeypatch.setattr(
        "verify.levels.subject.load_program", load_program
    )  # graphs without their weights
    other = Recording(Resolution(64, 64), recording.cases)
    with pytest.raises(InputError, match="the recording is for 64x64, the artifact 64x96"):
        verify(base_artifact, Evidence(base, recording=other))
    with pytest.raises(InputError, match=r"pictures need text_encoder, .*, too"):
        verify(base_artifact, base, Question(levels=["sanity"], components=["unet"]))
    with pytest.raises(InputError, match="no pictures were recorded"):
        verify(base_artifact, Evidence(base, traces=()), Question(levels=["structure", "sanity"]))


@pytest.mark.usefixtures("idle")
def test_a_size_that_the_vae_cannot_make_is_refused_before_a_text_encoder_runs(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = base.part("vae_decoder")
    deeper = {**vae.config, "block_out_channels": [16, 16, 32, 32, 32]}  # 16 pixels per latent
    for blocks in ("down_block_types", "up_block_types"):
        deeper[blocks] = vae.config[blocks][:1] * 5
    source = replace(base, parts={**base.parts, vae.name: replace(vae, config=deeper)})
    monkeypatch.setattr(recordings, "token_ids", never)
    with pytest.raises(InputError, match="64x72: width and height must be multiples of 16"):
        record(source, base.components, resolution=Resolution(64, 72))


def test_the_names_of_recorded_runs_are_known_before(recording: Recording) -> None:
    for component, cases in recording.cases.items():
        assert case_names(component) == tuple(case.name for case in cases)


def test_clip_skip_as_an_option_is_explained(command: Run, tmp_path: Path) -> None:
    code, _, err = command("generate", tmp_path, "a cat", "--out", "p.png", "--clip-skip", "2")
    assert code == 2
    assert "No such option" in err
    assert "SDXL always has what model cards call clip skip 2" in err
    _, _, err = command("generate", tmp_path, "a cat", "--out", "p.png", "--clipping", "2")
    assert "clip skip" not in err


def test_a_model_with_states_is_refused_by_every_command(
    command: Run, base_artifact: Path, base: Checkpoint, tmp_path: Path
) -> None:
    """As a package, and among an artifact's."""
    from tests.support.programs import stateful

    artifact = tmp_path / base_artifact.name
    shutil.copytree(base_artifact, artifact)
    shutil.rmtree(artifact / "Unet.mlpackage")
    alone = stateful(tmp_path / "Alone.mlpackage")
    shutil.copytree(alone, artifact / "Unet.mlpackage")
    (artifact / "manifest.json").unlink()
    source = ("--source", base.path)
    out = tmp_path / "out"
    for model in (alone, artifact):
        for line in (
            ("inspect", model),
            ("verify", model, *source, "--level", "structure"),
            ("verify", model, *source, "--level", "weights", "--level", "graph"),
            ("compile", model, "--out", out, "--engine", "native"),
        ):
            code, _, err = command(*line)
            assert (code, "has the state 'cache'" in err) == (4, True), (line, err)
    assert command("bisect", artifact / "Unet.mlpackage", *source)[0] == 4
    assert not list(out.glob("*/Unet.mlmodelc"))
    assert not (out / "Alone.mlmodelc").exists()
