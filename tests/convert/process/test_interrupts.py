"""Ctrl-C, SIGTERM and SIGHUP: one line and the exit code of the signal, at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from convert.process.interrupts import (
    Interrupted,
    Terminated,
    deferred_interrupt,
    orderly_ends,
    require_uninterrupted,
    without_interrupts,
)

SIGNALS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated, signal.SIGHUP: Terminated}


pytestmark = pytest.mark.usefixtures("default_signals")


@pytest.mark.parametrize(("number", "expected"), SIGNALS.items())
def test_a_signal_is_held_back_until_the_block_has_ended(
    number: signal.Signals, expected: type[BaseException]
) -> None:
    done = []

    def block() -> None:
        with orderly_ends(), deferred_interrupt():
            signal.raise_signal(number)
            done.append("inside")
        done.append("outside")

    with pytest.raises(expected):
        block()
    assert done == ["inside"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_ignored_signal_stays_ignored() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # nohup, a job in the background
    with orderly_ends(), deferred_interrupt():
        for number in SIGNALS:
            signal.raise_signal(number)


def test_ctrl_c_is_kept_from_a_process_from_its_first_moment() -> None:
    code = "import signal; signal.raise_signal(signal.SIGINT); print(signal.sigpending())"
    with without_interrupts():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "SIGINT" in found.stdout
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def interrupted(number: int, module: str) -> subprocess.CompletedProcess[str]:
    """A command that is sent a signal while `module` is imported."""
    code = f"""
        import builtins, os, sys

        sys.argv = ["sdxl-coreml", "recipes"]
        original = builtins.__import__

        def watching(name, *rest):
            if name == {module!r}:
                builtins.__import__ = original
                os.kill(os.getpid(), {number})
            return original(name, *rest)

        builtins.__import__ = watching
        from sdxl_coreml import app
        app.main()
        """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("convert.process.interrupts", signal.SIGINT),  # before any handler of ours
        ("sdxl_coreml.streams", signal.SIGINT),
        ("typer", signal.SIGINT),
        ("sdxl_coreml.commands", signal.SIGINT),
        ("sdxl_coreml.commands", signal.SIGTERM),
        ("sdxl_coreml.commands", signal.SIGHUP),
        ("convert.recipe.builtin", signal.SIGINT),  # by the command itself
    ],
)
def test_a_signal_among_the_imports_is_one_line(module: str, number: signal.Signals) -> None:
    found = interrupted(number, module)
    assert found.returncode == 128 + number, found.stderr
    (line,) = found.stderr.splitlines()
    says = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert line == f"error: {says}; run the same command again to go on"
    assert found.stdout == ""


def test_ctrl_c_after_the_last_word_changes_nothing() -> None:
    """Python's own end takes a while with big libraries loaded."""
    code = """
        import os, signal, sys

        from sdxl_coreml import app

        class Late:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGINT)

        late = Late()
        sys.argv = ["sdxl-coreml", "--version"]
        app.main()
        """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("sdxl-coreml ")


class Dropping:
    """Python drops what is raised here, and goes on."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "expected"), SIGNALS.items())
def test_a_signal_that_python_drops_comes_again(
    number: signal.Signals, expected: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    def block() -> None:
        with orderly_ends():
            Dropping(number)
            time.sleep(5)

    with pytest.raises(expected):
        block()
    assert capfd.readouterr().err == ""


def test_the_exit_code_is_ours_whatever_ctrl_c_has_ended(tmp_path: Path) -> None:
    """Python kills itself by SIGINT at its end if Ctrl-C has once ended code given as text."""
    code = """
        import signal, sys

        from sdxl_coreml import app

        def interrupted(**options):
            exec("signal.raise_signal(signal.SIGINT)", {"signal": signal})

        sys.argv = ["sdxl-coreml", "recipes"]
        app.application = lambda: interrupted
        app.main()
        """
    (tmp_path / "program.py").write_text(textwrap.dedent(code))
    found = subprocess.run(
        [sys.executable, "-m", "program"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (found.returncode, found.stderr.count("\n")) == (130, 1)


@pytest.mark.parametrize(
    ("number", "kind"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)]
)
def test_what_a_library_has_made_an_error_of_its_own_is_raised_again(
    number: signal.Signals, kind: type[BaseException]
) -> None:
    def load() -> None:
        try:
            signal.raise_signal(number)
        except kind:
            raise OSError("cannot be read") from None

    with orderly_ends():
        require_uninterrupted()  # nothing has come yet
        with pytest.raises(OSError, match="cannot be read"):
            load()
        with pytest.raises(kind):
            require_uninterrupted()
    with orderly_ends():
        require_uninterrupted()


def test_ctrl_c_in_a_librarys_loader_is_no_error_of_the_checkpoint(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoencoderKL

    from convert.opening.door import open_checkpoint
    from verify.reference.reference import Reference

    def loader(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise OSError("Unable to load weights") from None

    monkeypatch.setattr(AutoencoderKL, "from_pretrained", loader)
    with orderly_ends(), pytest.raises(Interrupted):
        Reference(open_checkpoint(toy), "vae_decoder")
