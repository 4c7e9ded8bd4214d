"""Processes that share tasks: `--jobs N`.

A small model gains next to nothing from a second core, so several trainings at once, each on its
share of the cores, end sooner than one after another on all of them.

A process ends with the one that started it, however that ends, so that none goes on writing into a
folder whose lock is gone.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

from recipes.cores import usable_cores

Start = Callable[[], Callable[[Any], None]]
"""Called once in each process; returns what does a task there."""
READY = "ready"
KILLED = -9
"""Exit code of a process that the system has killed."""
PATIENCE = 30
"""Seconds that a process has to end after its last task."""


def shared_out(start: Start, tasks: Sequence[Any], jobs: int, what: str) -> None:
    """Do tasks that do not depend on each other, in several processes.

    Args:
        start: Prepares a process; it is pickled.
        tasks: What is done, in this order as far as possible; pickled.
        jobs: Number of processes; each has its share of the threads.
        what: Names the tasks beside the bar of progress, the only one that is shown.

    Raises:
        MemoryError: The system has killed a process.
        ChildProcessError: A process has ended otherwise; the message names its task.
        Exception: What a task has raised; the other tasks are given up then. One that cannot be
            sent from process to process becomes a ValueError, an OSError or a RuntimeError.
    """
    jobs = min(jobs, len(tasks))
    left, done = deque(tasks), tqdm(total=len(tasks), desc=f"{what} ({jobs} jobs)")
    at: dict[Any, Any] = {}
    with ExitStack() as stack:
        stack.callback(done.close)
        with _environment(jobs):
            processes = [stack.enter_context(_process(start)) for _ in range(jobs)]
        channels = dict(processes)
        while channels:
            for channel in _answering(channels):
                with _told(channels[channel], at.get(channel)):
                    answer = channel.recv()
                if isinstance(answer, Exception):
                    raise answer
                done.update(answer != READY)
                if left:
                    at[channel] = left.popleft()
                    with _told(channels[channel], at[channel]):
                        channel.send(at[channel])
                else:
                    del channels[channel]


def _answering(channels: Mapping[Connection, BaseProcess]) -> list[Connection]:
    """The channels that have something to say, or whose process has ended; waits for the first."""
    ended = {process.sentinel: channel for channel, process in channels.items()}
    found = wait([*channels, *ended])
    return list(dict.fromkeys(ended.get(one, one) for one in found))  # type: ignore[call-overload]


@contextmanager
def _told(process: BaseProcess, task: Any) -> Iterator[None]:
    """Turn a channel whose other side is gone into an error that says how its process ended."""
    try:
        yield
    except (EOFError, ConnectionError):  # a reset, if it has not read what was sent
        process.join()
        doing = "began" if task is None else f"did {_words(task)}"
        if process.exitcode == KILLED:
            raise MemoryError(
                f"the system has killed the process that {doing}: choose fewer --jobs"
            ) from None
        raise ChildProcessError(
            f"the process that {doing} has ended by {_end(process.exitcode or 0)}: the same "
            "command goes on; with --jobs 1 it says more"
        ) from None


def _words(task: Any) -> str:
    return " ".join(map(str, task)) if isinstance(task, tuple) else str(task)


def _end(status: int) -> str:
    """How a process ended, in words."""
    known = {-one.value: one.name for one in signal.Signals}
    return f"the signal {known.get(status, -status)}" if status < 0 else f"exit status {status}"


@contextmanager
def _environment(jobs: int) -> Iterator[None]:
    """What new processes find: their share of the threads, and no bars of their own."""
    threads = max(1, usable_cores() // jobs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(int(given), threads) if given.isdecimal() else threads
    values = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _process(start: Start) -> Iterator[tuple[Any, BaseProcess]]:
    """A process and the channel to it; it ends with the block."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads that are gone
    own, other = context.Pipe()
    process = context.Process(target=_serve, args=(other, start), daemon=True)
    process.start()
    other.close()  # else its end would not be noticed
    try:
        yield own, process
        own.close()  # it has no more to do and ends by itself, with nothing of the system's left
        process.join(PATIENCE)
    finally:
        process.terminate()
        process.join()
        own.close()


def _serve(channel: Connection, start: Start) -> None:
    """Do tasks until the other side has no more, or is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do = start()
        channel.send(READY)
        while True:
            do(channel.recv())
            channel.send(None)
    except (EOFError, KeyboardInterrupt):
        return
    except Exception as error:  # noqa: BLE001  # the other side raises it
        error.add_note(traceback.format_exc())
        channel.send(_sendable(error))


def _sendable(error: Exception) -> Exception:
    """The error, or its words if it does not outlive pickling, as many a library's do not."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # noqa: BLE001  # whatever its constructor raises
        kind = next((one for one in (ValueError, OSError) if isinstance(error, one)), RuntimeError)
        told = kind(f"{type(error).__name__}: {error}")
        for note in error.__notes__:
            told.add_note(note)
        return told


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
