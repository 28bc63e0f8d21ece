"""The command `sdxl-coreml`: the commands of the folders, and the one boundary for errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from convert import __version__
from convert.commands import register as register_convert
from convert.errors import UserError
from convert.interrupts import deferred_interrupt
from convert.terminal import Terminal
from release.commands import register as register_release
from verify.commands import register as register_verify
from verify.generation_commands import register as register_generation
from verify.regression_commands import register as register_regression

if TYPE_CHECKING:
    from convert.download import Snapshot
    from convert.plan import Plan

DEBUG = "SDXL_COREML_DEBUG"
INTERRUPTED = "interrupted; run the same command again to go on"
ISSUES = "please open an issue with the traceback that SDXL_COREML_DEBUG=1 shows"

app = typer.Typer(
    name="sdxl-coreml",
    help="Turn any SDXL checkpoint into Core ML models, and prove that they are right.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
register_convert(app)
register_verify(app)
register_release(app)
register_generation(app)
register_regression(app)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
    if version:
        print(f"sdxl-coreml {__version__}")
        raise typer.Exit


def calibrate(plan: Plan, source: Snapshot, out: Path, terminal: Terminal) -> Plan:
    """What the converting commands measure mixed bits with; PyTorch is loaded only then."""
    with deferred_interrupt():
        from verify.calibration import calibrate as measure
    with terminal.working("Calibrating") as say:
        return measure(plan, source, out, progress=terminal, say=say)


def main() -> None:
    """Run the command line and exit with its code (see the README, "Exit codes")."""
    _silence_libraries()
    try:
        code = app(standalone_mode=False, obj=calibrate)
        if code == 130:  # how typer ends on Ctrl-C
            code = _fail(INTERRUPTED, code)
    except UserError as error:
        code = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(INTERRUPTED, 130)
    except BrokenPipeError:
        sys.stdout = None  # whoever read it has gone
        code = 0
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, in click's words
            context = getattr(error, "ctx", None)
            hint = f"Try `{context.command_path} --help`." if context else ""
            code = _fail(f"{error.format_message()}\n{hint}".rstrip(), 2)
        else:
            code = _fail(f"{type(error).__name__}: {error}\nA mistake of ours: {ISSUES}.", 4)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> int:
    if os.environ.get(DEBUG) and sys.exc_info()[0]:
        raise
    print(f"error: {text}", file=sys.stderr)
    return code


def _silence_libraries() -> None:
    """Libraries speak of their own affairs; what concerns the user is said by us."""
    import logging
    import warnings

    if os.environ.get(DEBUG):
        return
    warnings.simplefilter("ignore")
    for name in ("coremltools", "diffusers", "transformers", "huggingface_hub", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


if __name__ == "__main__":
    main()
