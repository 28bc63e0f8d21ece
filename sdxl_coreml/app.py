"""The command `sdxl-coreml`: the commands of the folders, and the one boundary for errors.

Imports next to nothing before `main`: Python answers Ctrl-C with a traceback until we can.
"""

from __future__ import annotations

import sys

AGAIN = "run the same command again to go on"
INTERRUPTED = f"interrupted; {AGAIN}"

try:
    import atexit
    import os

    from convert import __version__
    from convert.interrupts import Terminated, deferred_interrupt, ignore_interrupts, orderly_ends
except KeyboardInterrupt:
    if sys.stderr is not None:
        print(f"error: {INTERRUPTED}", file=sys.stderr)
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # see `Interrupted`
    raise SystemExit(130) from None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from typer import Typer

    from convert.plan.plan import Plan
    from convert.source.download import Snapshot
    from sdxl_coreml.terminal import Terminal

DEBUG = "SDXL_COREML_DEBUG"
ISSUES = "please open an issue with the traceback that SDXL_COREML_DEBUG=1 shows"


def main() -> None:
    """Run the command line and exit with its code (see the README, "Exit codes")."""
    try:
        with deferred_interrupt():
            from convert.streams import standard_streams
        with orderly_ends(), standard_streams() as streams:
            code = _run()
            for stream in streams:
                if (lost := stream.lost()) is not None and code in (0, 1):
                    code = _fail(lost, 2)
    except KeyboardInterrupt:
        code = _fail(INTERRUPTED, 130)
    atexit.register(ignore_interrupts)
    sys.exit(code)


def _run() -> int:
    """Run the command line; what goes wrong is said here, and nowhere else."""
    try:
        with deferred_interrupt():
            from convert.errors import UserError
            from sdxl_coreml.terminal import silence_libraries

            silence_libraries()
            app = _application()
        code = app(standalone_mode=False, obj=calibrate)
        if code == 130:  # how typer ends on Ctrl-C
            return _fail(INTERRUPTED, code)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130)
    except Terminated as end:
        return _fail(f"ended by {end.signal}; {AGAIN}", int(end.code or 0))
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, in click's words
            context = getattr(error, "ctx", None)
            hint = f"Try `{context.command_path} --help`." if context else ""
            return _fail(f"{error.format_message()}\n{hint}".rstrip(), 2)
        if not isinstance(error, UserError):
            from convert.environment import blame

            error = blame(error, os.environ) or error
        if isinstance(error, UserError):
            return _fail(str(error), error.exit_code)
        if type(error).__name__ == "Abort":  # typer's, where input was asked for and none came
            return _fail(INTERRUPTED, 130)
        return _fail(f"{type(error).__name__}: {error}\nA mistake of ours: {ISSUES}.", 4)


def _application() -> Typer:
    """The command line with all its commands."""
    import typer

    from sdxl_coreml.making import register as register_convert
    from sdxl_coreml.pictures import register as register_generation
    from sdxl_coreml.regression import register as register_regression
    from sdxl_coreml.releasing import register as register_release
    from sdxl_coreml.verifying import register as register_verify

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

    return app


def calibrate(plan: Plan, source: Snapshot, out: Path, terminal: Terminal) -> Plan:
    """What the converting commands measure mixed bits with; PyTorch is loaded only then."""
    with deferred_interrupt():
        from verify.reference.calibration import calibrate as measure
    with terminal.working("Calibrating") as say:
        return measure(plan, source, out, progress=terminal, say=say)


def _fail(text: str, code: int) -> int:
    if os.environ.get(DEBUG) and sys.exc_info()[0]:
        raise
    if sys.stderr is not None:
        print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
