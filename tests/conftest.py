"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from convert.toy import write_toy

if TYPE_CHECKING:
    from convert.checkpoint.checkpoint import Checkpoint
    from tests.support.people import Made, User
    from verify.judge.checks import Results
    from verify.mil import Program
    from verify.reference.recording import Recording
    from verify.sampling.sampling import Trace


# What a shell, a CI or a person may have set, and what changes what our commands say or ask.
SURROUNDINGS = re.compile(
    r"(?i)(all|http|https|no)_proxy|HF_.+|HUGGING.+|(NO|FORCE)_COLOR|CLICOLOR.*|TTY_.+|COLUMNS|LINES"
    r"|TERM.*|LANG.*|LC_.+|PYTHON(UTF8|IOENCODING|COERCECLOCALE|WARNINGS)|SDXL_COREML_.+|TZ"
)


def pytest_configure(config: pytest.Config) -> None:
    """Tests see the same surroundings wherever they run; what a test is about it sets itself."""
    for name in filter(SURROUNDINGS.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ["PYTHONUTF8"] = "1"  # for the processes that tests start
    os.umask(0o022)


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy checkpoint; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("toy") / "toy"
    write_toy(folder)
    return folder


class _Shapes(Mapping[str, Path]):
    """The checkpoints of `checkpoints.SHAPES`, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        from tests.support.checkpoints import SHAPES

        self._folder, self._arguments = folder, SHAPES

    def __getitem__(self, name: str) -> Path:
        from tests.support.checkpoints import make_checkpoint

        path = self._folder / name
        return path if path.exists() else make_checkpoint(path, **self._arguments[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Tiny SDXL checkpoints by the names of `checkpoints.SHAPES`; tests copy before they change."""
    return _Shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole single file of a tiny SDXL with CLIP's vocabulary, as model sites offer SDXL."""
    from tests.support.people import released

    return released(tmp_path_factory.mktemp("released"))


@pytest.fixture(scope="session")
def plain(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What `convert` makes of that file as it is, at 64x64."""
    from tests.support.people import ALL, made_in, run_command

    out = tmp_path_factory.mktemp("plain") / "out"
    chosen = [word for name in ALL for word in ("--component", name)]
    assert run_command("convert", released, "--out", out, "--resolution", "64x64", *chosen) == 0
    return made_in(out / "released_original_16-bit_64x64")


@pytest.fixture(scope="session")
def few_steps(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `run` leaves of that file as a model for few steps, at 64x64, with its release."""
    from tests.support.people import FEW_STEPS, run_command

    folder = tmp_path_factory.mktemp("few_steps")
    (folder / "recipe.toml").write_text(FEW_STEPS.format(file=released))
    assert run_command("run", folder / "recipe.toml", "--out", folder / "out") == 0
    return folder / "out"


@pytest.fixture
def user(command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> User:
    """Somebody at a command line."""
    from tests.support.people import User

    return User(command, tmp_path)


@pytest.fixture(scope="session")
def base(shapes: Mapping[str, Path]) -> Checkpoint:
    """The checkpoint of the shape `base`, opened."""
    from convert.opening.door import open_checkpoint

    return open_checkpoint(shapes["base"])


@pytest.fixture(scope="session")
def base_artifact(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished artifact of `base`, split_einsum at 64x96."""
    from convert.plan.plan import make_plan
    from convert.recipe.recipe import parse_recipe
    from convert.run.run import run
    from convert.source.download import Snapshot

    recipe = (
        'name = "base"\nsource.path = "base"\n'
        'matrix = { attention = ["split_einsum"], resolution = ["64x96"] }\n'
    )
    plan = make_plan(parse_recipe(recipe, where="test"), base)
    out = tmp_path_factory.mktemp("artifacts") / "out"
    return run(plan, Snapshot(base.path, None, None, ()), out)[0].path


@pytest.fixture
def artifact(base_artifact: Path, tmp_path: Path) -> Path:
    """A copy of `base_artifact` that the test may spoil."""
    return Path(shutil.copytree(base_artifact, tmp_path / "artifact"))


@pytest.fixture(scope="session")
def recording(one_thread: None, base: Checkpoint) -> Recording:
    """All components of `base` at 64x96, with PyTorch float16 where a package computes in it."""
    from convert.values import Resolution
    from verify.reference.recording import record

    half = [name for name in base.components if not name.startswith("vae")]
    return record(base, base.components, resolution=Resolution(64, 96), fp16=half)


@pytest.fixture(scope="session")
def good(base: Checkpoint, base_artifact: Path, recording: Recording) -> Results:
    """What verifying `base_artifact` gives."""
    from verify.question import Evidence, Question
    from verify.run import verify

    return verify(base_artifact, Evidence(base, recording=recording), Question(runtime="torch"))


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Threads cost tiny tensors more than they save, and test runs share the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def traces(one_thread: None, base: Checkpoint) -> tuple[Trace, ...]:
    """Whole runs of `base` at 64x96, text-to-image and image-to-image, with ancestral noise."""
    from convert.recipe.sections import Verify
    from convert.values import Resolution
    from verify.sampling.sampling import kinds_of, settings_for, trace_all

    asked = Verify(prompts=("the horse",), steps=5, guidance=5.0, scheduler="euler_a")
    return trace_all(base, settings_for(asked, kinds_of(base.components)), Resolution(64, 96))


@pytest.fixture(scope="session")
def same_program() -> Callable[[Program, Program], None]:
    """Asserts that two programs are the same, op by op: names, types, inputs, constants, places."""
    from tests.support.programs import assert_same

    return assert_same


@pytest.fixture(scope="session")
def passing_report(base_artifact: Path) -> dict[str, object]:
    """A report of `base_artifact` with one check, as short as `verify` would never write it."""
    import json

    from verify.judge.policy import load_policy

    manifest = json.loads((base_artifact / "manifest.json").read_text())
    check = {
        "level": "conversion", "component": "unet", "case": "t=999 cond", "output": "noise_pred",
        "metrics": {"snr_db": 55.123, "finite": True}, "gate": "snr_db >= 35", "verdict": "pass",
        "message": "",
    }  # fmt: skip
    return {
        "schema": 1, "verdict": "pass", "artifact": manifest["artifact"], "source": "base",
        "resolution": "64x96", "runtime": "torch", "scope": "proves the program",
        "policy": "1", "versions": {}, "checks": [check], "fingerprint": manifest["fingerprint"],
        "code": load_policy().made_by,
    }  # fmt: skip


@pytest.fixture(scope="session")
def base_bundle(
    base_artifact: Path,
    passing_report: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The bundle of `base_artifact`."""
    from release.pack.bundle import make_bundle

    folder = tmp_path_factory.mktemp("bundles") / base_artifact.name
    folder.mkdir()
    make_bundle(base_artifact, folder, report=passing_report)
    return folder


@pytest.fixture(scope="session")
def verified(
    base_artifact: Path,
    passing_report: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """An output folder with `base_artifact` and its report, as a run leaves it before the release.

    The report has one generation with an image, as contract and schema have it.
    """
    import json
    import os

    from PIL import Image

    out = tmp_path_factory.mktemp("verified") / "out"
    shutil.copytree(base_artifact, out / base_artifact.name, copy_function=os.link)
    (out / "reports" / "images").mkdir(parents=True)
    images = {
        kind: f"images/{digit * 16}.png" for kind, digit in (("reference", "a"), ("candidate", "b"))
    }
    for number, file in enumerate(images.values()):
        Image.new("RGB", (64, 96), (40, 90 * number, 160)).save(out / "reports" / file)
    generation = {
        "case": "euler_a text-to-image 1", "kind": "text-to-image",
        "prompt": "a `toy` | with <b>bold</b> marks", "negative_prompt": "blurry",
        "scheduler": "euler_a", "steps": 4, "guidance": 7.0, "strength": None,
        "resolution": "64x96", "images": {**images, "start": None}, "trajectory": [],
        "latents_cosine": 0.9999, "psnr_db": 41.26, "ssim": 0.99,
    }  # fmt: skip
    report = {**passing_report, "generations": [generation]}
    (out / "reports" / f"{base_artifact.name}.json").write_text(json.dumps(report))
    return out


@pytest.fixture(scope="session")
def base_release(verified: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of `verified`, with a card that copies a source's."""
    from release.build import build_release, find_artifacts
    from release.card.source_card import SourceCard

    folder = tmp_path_factory.mktemp("releases") / "release"
    source = SourceCard("# Base\n\nA base model.", {"license": "openrail++"})
    build_release(find_artifacts(verified), folder, reports=verified / "reports", source=source)
    return folder


@pytest.fixture
def bundle(base_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `base_bundle` that the test may spoil."""
    return Path(shutil.copytree(base_bundle, tmp_path / base_bundle.name))


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process: exit code, stdout, stderr."""

    import sys

    from sdxl_coreml import app

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sdxl-coreml", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            app.main()
        out, err = capfd.readouterr()
        assert isinstance(stopped.value.code, int)
        return stopped.value.code, out, err

    return call


@pytest.fixture
def default_signals() -> Iterator[None]:
    """A terminal's handlers for the test and its children, whoever started it (nohup, some CI)."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
