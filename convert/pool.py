"""Worker processes for work that one Python process cannot do in parallel: building graphs.

Unlike the standard library's pools this one notices a worker that was killed (for memory, say),
ends at once when it is interrupted, and hears of progress while a task runs.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from convert.errors import CannotExecute, UserError
from convert.progress import Advance

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
        CannotExecute: a process was killed.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy torch's and our threads
    waiting = list(reversed(items))
    workers: dict[Connection, Any] = {}
    busy: dict[Connection, Any] = {}
    try:
        for _ in range(min(count, len(items))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(start, theirs), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            busy[ours] = waiting.pop()
            ours.send(busy[ours])
        while busy:
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                try:
                    kind, value = pipe.recv()
                except EOFError:
                    raise _killed(workers[pipe], busy[pipe]) from None
                if kind == "progress":
                    advance(value)
                elif kind == "error":
                    raise pickle.loads(value)
                else:
                    yield busy.pop(pipe), value
                    if waiting:
                        busy[pipe] = waiting.pop()
                        pipe.send(busy[pipe])
    finally:
        for pipe, process in workers.items():
            pipe.close()  # an idle worker ends by itself
            if pipe in busy:
                process.terminate()
            process.join()


def _work(start: Callable[[], Task], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    task = None
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            task = task or start()
            pipe.send(("result", task(item, lambda count: pipe.send(("progress", count)))))
        except BaseException as error:
            pipe.send(("error", pickle.dumps(_sendable(error))))


def _sendable(error: BaseException) -> BaseException:
    if isinstance(error, UserError | OSError):
        return error
    return CannotExecute(f"{type(error).__name__}: {error}", hint="A mistake of ours.")


def _killed(process: Any, item: Any) -> CannotExecute:
    process.join()
    return CannotExecute(
        f"the process that made it ended with code {process.exitcode}",
        where=item,
        hint="Likely for lack of memory: run it again with --jobs 1.",
    )
