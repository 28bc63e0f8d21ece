"""Worker processes for work that one Python process cannot do in parallel: building graphs.

Unlike the standard library's pools this one notices a worker that was killed (for memory, say),
ends at once when it is interrupted, and hears of progress while a task runs.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.resource_tracker import ensure_running
from pathlib import Path
from typing import Any

from convert.errors import CannotExecute, UserError
from convert.process.interrupts import without_interrupts
from convert.process.libraries import are_libraries_silent, silence_libraries
from convert.process.progress import Advance

Task = Callable[[Any, Advance], Any]


def run_tasks(
    start: Callable[[], Task], items: Sequence[Any], count: int, advance: Advance
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, result) for each item as it is finished, worked on by `count` processes.

    Args:
        start: called once in each process, returns the function that does a task; both it and the
            items must be picklable.
        items: what is handed to that function, one at a time, with a function for its progress.
        advance: gets the progress of all tasks.

    Raises:
        UserError: as the task raised it.
        CannotExecute: a process was killed, at whatever moment.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and our threads
    waiting = list(reversed(items))
    workers: dict[Connection, _Worker] = {}
    try:
        for _ in range(min(count, len(items))):
            worker = _Worker(context, waiting.pop())
            workers[worker.pipe] = worker
        for worker in workers.values():  # now, that all have been started and get ready at once
            worker.send(start)
            worker.send(worker.item)
        busy = dict(workers)
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                kind, value = worker.receive()
                if kind == "progress":
                    advance(value)
                elif kind == "error":
                    raise pickle.loads(value)
                else:
                    del busy[pipe]
                    yield worker.item, value
                    if waiting:
                        busy[pipe] = worker
                        worker.item = waiting.pop()
                        worker.send(worker.item)
    except BaseException:
        for worker in workers.values():
            worker.process.terminate()
        raise
    finally:
        for worker in workers.values():
            worker.pipe.close()  # what ends an idle worker
            worker.process.join()


class _Worker:
    """A process that was started, our end of the pipe to it, and the item it works on."""

    def __init__(self, context: SpawnContext, item: Any) -> None:
        self.item = item
        self.pipe, theirs = context.Pipe()
        # Only the pipe travels with the start: what is larger than a pipe holds would wait for ever
        # for a process that has died, because `start` keeps the reading end open itself.
        arguments = (theirs, are_libraries_silent())
        self.process = context.Process(target=_work, args=arguments, daemon=True)
        ensure_running()  # here, because it unblocks what the next line blocks
        with without_interrupts(), _importable_main():
            self.process.start()
        theirs.close()

    def send(self, value: Any) -> None:
        try:
            self.pipe.send(value)
        except ConnectionError:
            raise self._ended() from None

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise self._ended() from None

    def _ended(self) -> CannotExecute:
        self.process.join()
        code = self.process.exitcode
        return CannotExecute(
            f"the process that made it ended with code {code}",
            where=self.item,
            hint="Likely for lack of memory: run it again with --jobs 1."
            if code is not None and code < 0
            else "Run it again with --jobs 1, and with SDXL_COREML_DEBUG=1 to see why.",
        )


@contextmanager
def _importable_main() -> Iterator[None]:
    """Hide a main module that a spawned process could not import, as one read from standard input.

    Tasks live in modules; only a script's own functions need the script.
    """
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or Path(file).is_file():
        yield
        return
    main.__file__ = None
    try:
        yield
    finally:
        main.__file__ = file


# ---- in the worker ----


def _work(pipe: Connection, silent: bool) -> None:
    if silent:
        silence_libraries()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, ConnectionError):  # nothing more to do, or nobody to do it for
        _serve(pipe)


def _serve(pipe: Connection) -> None:
    task: Task | None = None
    while True:
        try:
            task = task or pipe.recv()()
            item = pipe.recv()
            pipe.send(("result", task(item, lambda count: pipe.send(("progress", count)))))
        except (EOFError, ConnectionError):
            raise
        except BaseException as error:
            pipe.send(("error", pickle.dumps(_sendable(error))))


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers, and a graph takes minutes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sendable(error: BaseException) -> BaseException:
    if isinstance(error, UserError | OSError):
        return error
    return CannotExecute(f"{type(error).__name__}: {error}", hint="A mistake of ours.")
