"""Work in processes forked from this one: a step that ends, or an engine that is timed when it is its turn.

An engine that waits is stopped, so that no thread pool of it spins on a core on which another one is timed. Fork before
this process computes anything itself: the threads of a library do not come along.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SAMPLE_S = 0.05
ANSWER_S = 300
_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1


class Failure(Exception):  # noqa: N818 - an answer
    """What does not work, in one line."""


@dataclass(frozen=True)
class Sample:
    """A turn of an engine, in milliseconds a call.

    Attributes
    ----------
    ms : by the clock.
    cpu_ms : of the processor, all threads together.
    """

    ms: float
    cpu_ms: float


class _Process:
    """A forked process that answers; what it prints goes to ``log``."""

    def __init__(self, work: Callable[[Connection], None], log: Path) -> None:
        self._log = log
        self._here, there = _FORK.Pipe()
        self._process = _FORK.Process(target=_run, args=(work, there, log))
        self._process.start()
        there.close()

    def ask(self) -> None:
        """Ask for one more answer; of a process that has ended, the answer says so."""
        with suppress(BrokenPipeError):
            self._here.send(True)

    def answer(self, limit_s: float) -> Any:
        """What it answers within so many seconds."""
        if not self._here.poll(limit_s):
            raise Failure(f"no answer in {limit_s:.0f} s")
        try:
            problem, value = self._here.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            lines = self._log.read_text("utf-8", errors="replace").strip().splitlines() or ["it printed nothing"]
            raise Failure(f"ended with code {self._process.exitcode}: {lines[-1][:200]}") from None
        if problem:
            raise Failure(problem)
        return value

    def signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self._process.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.join()
        self._here.close()


def apart(work: Callable[[], Any], log: Path, limit_s: float) -> Any:
    """What ``work`` returns in a process of its own, which then ends."""
    process = _Process(lambda there: there.send((None, work())), log)
    try:
        return process.answer(limit_s)
    finally:
        process.close()


class Engine:
    """A loaded engine in a process of its own, on some cores, stopped while it is not its turn.

    Parameters
    ----------
    load
        Makes, in that process, the call that is timed.
    check
        Turns what the first call returns into ``facts``.
    """

    def __init__(
        self,
        load: Callable[[], Callable[[], Any]],
        check: Callable[[Any], Any],
        cores: Collection[int],
        log: Path,
        limit_s: float,
    ) -> None:
        self._process = _Process(lambda there: _serve(load, check, cores, there), log)
        try:
            self.facts = self._process.answer(limit_s)
        except BaseException:
            self.close()
            raise
        self._process.signal(signal.SIGSTOP)

    def sample(self) -> Sample:
        """Time it for about a twentieth of a second, after one call that warms the caches."""
        self._process.signal(signal.SIGCONT)
        try:
            self._process.ask()
            found: Sample = self._process.answer(ANSWER_S)
        finally:
            self._process.signal(signal.SIGSTOP)
        return found

    def close(self) -> None:
        """End the process."""
        self._process.close()


def _run(work: Callable[[Connection], None], there: Connection, log: Path) -> None:
    # A stopped process would outlive this benchmark if that is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("ab") as stream:
        for own in (1, 2):
            os.dup2(stream.fileno(), own)
    try:
        work(there)
    except BaseException as problem:
        traceback.print_exc()
        text = " ".join(str(problem).split())
        there.send((f"{type(problem).__name__}: {text}"[:200], None))


def _serve(
    load: Callable[[], Callable[[], Any]], check: Callable[[Any], Any], cores: Collection[int], there: Connection
) -> None:
    os.sched_setaffinity(0, cores)  # which the threads that it starts inherit
    call = load()
    facts = check(call())
    for _ in range(2):
        call()
    gc.collect()
    gc.freeze()
    gc.disable()
    there.send((None, facts))
    while there.recv():
        call()
        busy, began, count = time.process_time(), time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < SAMPLE_S:
            call()
            count += 1
        took = time.perf_counter() - began
        there.send((None, Sample(took / count * 1e3, (time.process_time() - busy) / count * 1e3)))
