"""The command `sdxl-coreml`: the table of its commands, and the one boundary for errors.

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
    from convert.process.interrupts import (
        Terminated,
        deferred_interrupt,
        ignore_interrupts,
        orderly_ends,
        require_uninterrupted,
    )
except KeyboardInterrupt:
    if sys.stderr is not None:
        print(f"error: {INTERRUPTED}", file=sys.stderr)
    import signal

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # see `Interrupted`
    raise SystemExit(130) from None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typer import Typer

DEBUG = "SDXL_COREML_DEBUG"
QUIET = {  # what libraries read when they are imported, and worker processes inherit
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
ISSUES = "please open an issue with the traceback that SDXL_COREML_DEBUG=1 shows"


def main() -> None:
    """Run the command line and exit with its code (see the README, "Exit codes")."""
    try:
        with deferred_interrupt():
            from sdxl_coreml.streams import standard_streams
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
            from convert.process.libraries import silence_libraries

            if not os.environ.get(DEBUG):
                silence_libraries()
                for name, value in QUIET.items():
                    os.environ.setdefault(name, value)
            app = application()
        try:
            code = app(standalone_mode=False)
        except Exception:
            require_uninterrupted()
            raise
        if code == 130:  # how typer ends on Ctrl-C
            return _fail(INTERRUPTED, code)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, 130)
    except Terminated as end:
        return _fail(f"ended by {end.signal}; {AGAIN}", int(end.code or 0))
    except Exception as error:
        if hasattr(error, "format_message"):  # wrong usage, in click's words
            from convert.recipe.errors import CLIP_SKIP, is_clip_skip

            context = getattr(error, "ctx", None)
            hint = f"Try `{context.command_path} --help`." if context else ""
            if is_clip_skip(getattr(error, "option_name", "")):
                hint = f"{CLIP_SKIP}."
            return _fail(f"{error.format_message()}\n{hint}".rstrip(), 2)
        if not isinstance(error, UserError):
            from convert.process.environment import blame

            error = blame(error, os.environ) or error
        if isinstance(error, UserError):
            return _fail(str(error), error.exit_code)
        if type(error).__name__ == "Abort":  # typer's, where input was asked for and none came
            return _fail(INTERRUPTED, 130)
        return _fail(f"{type(error).__name__}: {error}\nA mistake of ours: {ISSUES}.", 4)


def application() -> Typer:
    """The command line with all its commands."""
    import typer

    from sdxl_coreml.commands import (
        bisect,
        checkpoints,
        compile,
        convert,
        inspect,
        pictures,
        publish,
        recipes,
        release,
        results,
        run,
        verify,
    )

    app = typer.Typer(
        name="sdxl-coreml",
        help="Turn any SDXL checkpoint into Core ML models, and prove that they are right.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (
        *(checkpoints.toy, checkpoints.download, run.plan, convert.convert),
        *(recipes.recipes, recipes.schema),
        *(verify.verify, inspect.inspect, inspect.doctor),
        *(run.run, compile.compile, release.pack, release.lint, release.card, publish.publish),
        *(pictures.generate, pictures.record),
        *(results.recheck, results.bless, results.diff, bisect.bisect),
    ):
        app.command()(command)

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            print(f"sdxl-coreml {__version__}")
            raise typer.Exit

    return app


def _fail(text: str, code: int) -> int:
    if os.environ.get(DEBUG) and sys.exc_info()[0]:
        raise
    if sys.stderr is not None:
        print(f"error: {text}", file=sys.stderr)
    return code
