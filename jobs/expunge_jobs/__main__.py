"""Runs one step: read the task, fetch its inputs, run its job program, upload, mark done.

Everything is said by environment variables: EXPUNGE_TASK (the task as JSON), EXPUNGE_STORE (URI), EXPUNGE_ATTEMPT (this
attempt's name; random if absent), EXPUNGE_THREADS, EXPUNGE_CHECKPOINT_SECONDS (training that a kill may cost) and
EXPUNGE_DIE_WITH_STDIN=1 (end when stdin ends: the runner is gone).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from expunge_jobs import stop

if TYPE_CHECKING:
    from expunge_jobs.errors import StepError
    from expunge_jobs.task import Task
    from expunge_jobs.work import Work


def main() -> int:
    """The exit code (see ``errors.ExitCode``)."""
    # First of all: as pid 1 of a container an unhandled TERM would be ignored, and imports take seconds.
    signal.signal(signal.SIGTERM, stop.on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("EXPUNGE_DIE_WITH_STDIN") == "1":
        _die_with_stdin()
    threads = os.environ.setdefault("EXPUNGE_THREADS", str(os.cpu_count() or 1))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see warm.py
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return _step(int(threads))
    except stop.Terminated:  # before or after the step itself: there is nothing to tidy
        return 143


def _die_with_stdin() -> None:
    import threading

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def _step(threads: int) -> int:
    import socket
    import tempfile
    import uuid

    from expunge_jobs.artifact import Attempt, read_manifest
    from expunge_jobs.errors import ExitCode, Preempted, StepError
    from expunge_jobs.store import open_store
    from expunge_jobs.task import ArtifactRef, parse_task
    from expunge_jobs.work import CHECKPOINT_SECONDS, Work, emit

    attempt: Attempt | None = None
    error: StepError
    try:
        task = parse_task(os.environ.get("EXPUNGE_TASK", ""))
        store = open_store(os.environ.get("EXPUNGE_STORE", ""))
        ref = ArtifactRef(kind=task.kind, key=task.key())
        if read_manifest(store, ref) is not None:
            emit("done", note="already there")
            return ExitCode.DONE
        attempt = Attempt(store, ref, os.environ.get("EXPUNGE_ATTEMPT") or uuid.uuid4().hex)
        attempt.begin(socket.gethostname(), os.getpid())
        emit("start", kind=task.kind, key=ref.key, attempt=attempt.id)
        with tempfile.TemporaryDirectory(prefix="expunge-") as folder:
            out, scratch = Path(folder, "out"), Path(folder, "scratch")
            out.mkdir()
            scratch.mkdir()
            seconds = float(os.environ.get("EXPUNGE_CHECKPOINT_SECONDS") or CHECKPOINT_SECONDS)
            work = Work(store, out, scratch, threads, attempt, seconds)
            figures, versions, device = _run(task, work, threads)
            emit("publish")
            won = attempt.publish(task, out, figures, versions, device, threads)
        emit("done", **({} if won else {"note": "another attempt was first"}))
        return ExitCode.DONE
    except stop.Terminated:
        error = Preempted("stopped by SIGTERM")
    except StepError as raised:
        error = raised
    except MemoryError:
        error = StepError("out of memory: lower batch_size, or give the step more memory")
    except Exception as raised:
        if os.environ.get("EXPUNGE_DEBUG") == "1":
            raise
        error = _unforeseen(raised)
    emit("failed", reason=str(error), exit_code=int(error.exit_code))
    if attempt is not None:
        try:
            attempt.end(str(error), exit_code=int(error.exit_code))
        except StepError as second:
            emit("notice", text=f"the attempt's end could not be recorded: {second}")
    return error.exit_code


def _run(task: Task, work: Work, threads: int) -> tuple[dict[str, object], dict[str, str], str]:
    import importlib
    import warnings
    from importlib.metadata import version

    # Libraries warn about their own future; a step's log is for what its user can act on.
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    program = importlib.import_module(f"expunge_jobs.{task.kind}")
    figures = program.run(task, work)
    versions = {n: version(n) for n in ("expunge", "torch", "transformers", "peft", "tokenizers")}
    versions["python"] = sys.version.split()[0]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return figures, versions, device


def _unforeseen(raised: Exception) -> StepError:
    """An error nobody thought of, without its message: that may quote a row. EXPUNGE_DEBUG=1 shows it whole."""
    import traceback

    from expunge_jobs.errors import StepError

    if "out of memory" in str(raised).lower() or type(raised).__name__ == "OutOfMemoryError":
        return StepError("out of memory: lower batch_size, or give the step more memory")
    frame = traceback.extract_tb(raised.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return StepError(f"unforeseen {type(raised).__name__} at {where}; EXPUNGE_DEBUG=1 shows it whole")


if __name__ == "__main__":
    sys.exit(main())
