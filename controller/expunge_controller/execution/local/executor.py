"""An executor that runs steps as processes of this machine.

Each step is a process group of its own and ends with the runner.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import multiprocessing.connection
import os
import queue
import shutil
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from expunge_jobs import forkserver
from expunge_jobs.artifacts.attempts import LOG, Attempt, End
from expunge_jobs.core.errors import LESS_MEMORY, ExitCode
from expunge_jobs.store import NotFound, Store, StoreError

from expunge_controller.execution.executor import Ended, Start
from expunge_controller.execution.local.locks import Locks
from expunge_controller.execution.local.machine import cores, gpus, machine_memory, threads_of
from expunge_controller.execution.local.memory import estimated_memory
from expunge_controller.execution.local.observe import newest
from expunge_controller.execution.step_log import Progress
from expunge_controller.experiment.scheduling import ResourcesByKind, bytes_of
from expunge_controller.planning.plan import Step

# A fork server is safe with torch on Linux only; therefore other systems use `spawn`.
# `spawn` has the same interface and repeats the imports at each start.
_CONTEXT: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    _CONTEXT.set_forkserver_preload(["expunge_jobs.forkserver"])
_LOST = 255
"""Exit code that multiprocessing reports for a process whose fork server is gone."""


@dataclass
class _Running:
    step: Step
    attempt: Attempt
    process: BaseProcess
    alive: int
    """The runner's end of a pipe.

    The step ends itself when this end closes, in whatever way the runner ends.
    """
    log: Path
    work: Path
    threads: int
    memory: int
    gpu: str | None


class LocalExecutor:
    """An executor that fills the machine's cores, memory and GPUs with steps."""

    detached = False

    def __init__(
        self, store: Store, specialists: int, resources: ResourcesByKind, parallel: int, threads: int | None = None
    ) -> None:
        self.store, self.specialists, self.resources, self.parallel = store, specialists, resources, parallel
        self.locks = Locks(store)
        self.locks.tidy()
        self._cores, self._memory, self._gpus = threads or cores(), machine_memory(), gpus()
        self._here: dict[str, _Running] = {}
        self._ended: queue.SimpleQueue[str] = queue.SimpleQueue()

    def start(self, step: Step) -> Start:
        threads = threads_of(step.kind, self.specialists, self._cores)
        asked = getattr(self.resources, step.kind).memory
        memory = bytes_of(asked) if asked else estimated_memory(step.task, self.store)
        gpu = self._free_gpu(step)
        if not self._room(threads, memory) or (self._gpus and gpu is None and step.kind != "merge"):
            return "no room"
        lock = self.locks.take(step.key)
        if lock is None:
            return "elsewhere"
        try:
            self._here[step.key] = self._spawn(step, lock, threads, memory, gpu)
        finally:
            os.close(lock)  # the step's own copy of the descriptor holds the lock now
        return "started"

    def adopt(self, step: Step) -> bool:
        return False  # a step of another runner ends with that runner

    def next_retry_in(self) -> float:
        return math.inf

    def active_keys(self) -> set[str]:
        return set(self._here)

    def running(self) -> dict[str, Progress]:
        return {key: newest(r.log, "progress") for key, r in self._here.items()}

    def wait(self, seconds: float) -> list[Ended]:
        keys: list[str] = []
        with contextlib.suppress(queue.Empty):
            keys.append(self._ended.get(timeout=seconds))
            while True:
                keys.append(self._ended.get_nowait())
        return [self._outcome(self._here.pop(k)) for k in keys if k in self._here]

    def problem(self) -> str:
        return ""

    def cancel(self) -> None:
        pass

    def failure_recorded(self, step: Step) -> None:
        pass

    def stop(self, grace: float) -> None:
        self._signal(signal.SIGTERM)
        until = time.monotonic() + grace
        while self._here and time.monotonic() < until:
            self.wait(max(0.0, min(0.1, until - time.monotonic())))
        self._signal(signal.SIGKILL)
        while self._here:
            self.wait(0.1)

    def _room(self, threads: int, memory: int) -> bool:
        if not self._here:
            return True  # a step larger than the machine runs alone
        busy = sum(r.threads for r in self._here.values())
        used = sum(r.memory for r in self._here.values())
        return len(self._here) < self.parallel and busy + threads <= self._cores and used + memory <= self._memory

    def _free_gpu(self, step: Step) -> str | None:
        if step.kind == "merge":
            return None
        taken = {r.gpu for r in self._here.values()}
        return next((g for g in self._gpus if g not in taken), None)

    def _spawn(self, step: Step, lock: int, threads: int, memory: int, gpu: str | None) -> _Running:
        attempt = Attempt(self.store, step.ref, uuid.uuid4().hex)
        work = self.locks.work(step.key)
        shutil.rmtree(work, ignore_errors=True)  # left by a killed attempt, which the lock proves to be gone
        try:
            work.mkdir(mode=0o700, parents=True)
            local = self.store.local_path(f"{attempt.folder}/{LOG}")
            log = local if local is not None else work / LOG
            log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            output = log.open("wb")
        except OSError as error:
            raise StoreError(f"{work.parent.parent} is not writable ({error.strerror}): use another --store") from None
        environment = dict(os.environ) | {
            "EXPUNGE_TASK": step.task.to_json(),
            "EXPUNGE_STORE": self.store.uri,
            "EXPUNGE_ATTEMPT": attempt.id,
            "EXPUNGE_THREADS": str(threads),
            "EXPUNGE_DIE_WITH_STDIN": "1",
            "TMPDIR": str(work),
        }
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpu or ""
        alive, ours = os.pipe()
        with output:
            process = _CONTEXT.Process(
                target=forkserver.child,
                args=(environment, DupFd(output.fileno()), DupFd(lock), DupFd(alive)),
                daemon=False,
            )
            _start(process)
        os.close(alive)
        running = _Running(step, attempt, process, ours, log, work, threads, memory, gpu)
        threading.Thread(target=self._await, args=(running,), daemon=True).start()
        return running

    def _await(self, running: _Running) -> None:
        # join() also reads the exit code, which only the runner's own thread may do; therefore wait for the sentinel.
        multiprocessing.connection.wait([running.process.sentinel])
        self._ended.put(running.step.key)

    def _signal(self, number: signal.Signals) -> None:
        for running in self._here.values():
            _signal_group(running.process.pid or 0, number)

    def _outcome(self, running: _Running) -> Ended:
        running.process.join()
        os.close(running.alive)
        code = running.process.exitcode or 0
        if code == _LOST:
            _signal_group(running.process.pid or 0, signal.SIGKILL)
        try:
            reason = self._reason(running, code)
            if self.store.local_path("log") is None and running.log.exists():
                self.store.put_file(f"{running.attempt.folder}/{LOG}", running.log)
        except StoreError as error:
            reason = str(error)
        shutil.rmtree(running.work, ignore_errors=True)
        final = code in (ExitCode.BAD_TASK, ExitCode.DAMAGED_INPUT)
        return Ended(running.step.key, ok=False, reason=reason, final=final)  # the runner reads the store

    def _reason(self, running: _Running, code: int) -> str:
        if code == ExitCode.DONE:
            return ""
        if code < 0:
            reason = killed_reason(-code, running.step.kind)
            running.attempt.end(reason, signal=signal.Signals(-code).name)
            return reason
        try:
            data, _ = self.store.get(f"{running.attempt.folder}/end.json")
            return End.model_validate_json(data).reason
        except NotFound:
            reason = str(newest(running.log, "failed").get("reason") or f"ended with exit code {code} and no word why")
            running.attempt.end(reason, exit_code=code)  # raises if the store is full, which the step could not report
            return reason


def _start(process: BaseProcess) -> None:
    """Start a step's process from the preloaded fork server.

    The first start creates the fork server.
    """
    os.environ["EXPUNGE_PRELOAD"] = "1"
    try:
        process.start()
    finally:
        del os.environ["EXPUNGE_PRELOAD"]


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)  # a process that just started has no group of its own yet


def killed_reason(number: int, kind: str) -> str:
    """Return the reason why a signal ended a step, and the setting to lower."""
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        less = LESS_MEMORY.get(kind, "take a smaller model")
        return (
            f"killed by SIGKILL, from outside or because memory ran out: if it was memory, {less}, or lower --parallel"
        )
    return f"killed by {name}"
