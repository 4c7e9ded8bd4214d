"""Processes that share tasks: `--jobs N`.

A small model gains next to nothing from a second core, so several trainings at once, each on its
share of the cores, end sooner than one after another on all of them.

A process ends with the one that started it, however that ends, so that none goes on writing into a
folder whose lock is gone.
"""

import multiprocessing
import os
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tqdm import tqdm

Start = Callable[[], Callable[[Any], None]]
"""Called once in each process; returns what does a task there."""
READY = "ready"
KILLED = -9
"""Exit code of a process that the system has killed."""


def shared_out(start: Start, tasks: Sequence[Any], jobs: int, what: str) -> None:
    """Do tasks that do not depend on each other, in several processes.

    Args:
        start: Prepares a process; it is pickled.
        tasks: What is done, in this order as far as possible; pickled.
        jobs: Number of processes; each has its share of the threads.
        what: Names the tasks beside the bar of progress, the only one that is shown.

    Raises:
        MemoryError: The system has killed a process.
        Exception: What a task has raised; the other tasks are given up then.
    """
    jobs = min(jobs, len(tasks))
    left, done = deque(tasks), tqdm(total=len(tasks), desc=f"{what} ({jobs} jobs)")
    with ExitStack() as stack:
        stack.callback(done.close)
        with _environment(jobs):
            processes = [stack.enter_context(_process(start)) for _ in range(jobs)]
        channels = dict(processes)
        while channels:
            for channel in _answering(channels):
                answer = _answer(channel, channels[channel])
                if answer is None:
                    done.update()
                elif answer != READY:
                    raise answer
                if left:
                    channel.send(left.popleft())
                else:
                    del channels[channel]


def _answering(channels: Mapping[Connection, BaseProcess]) -> list[Connection]:
    """The channels that have something to say, or whose process has ended; waits for the first."""
    ended = {process.sentinel: channel for channel, process in channels.items()}
    found = wait([*channels, *ended])
    return list(dict.fromkeys(ended.get(one, one) for one in found))  # type: ignore[call-overload]


def _answer(channel: Connection, process: BaseProcess) -> Any:
    try:
        return channel.recv()
    except EOFError:
        process.join()
        if process.exitcode == KILLED:
            raise MemoryError("the system has killed a process: choose fewer --jobs") from None
        raise RuntimeError(f"a process has ended with exit status {process.exitcode}") from None


@contextmanager
def _environment(jobs: int) -> Iterator[None]:
    """What new processes find: their share of the threads, and no bars of their own."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
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
        channel.send(error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
