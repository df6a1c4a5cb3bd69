"""One step, from its task to its manifest.

The task and every setting come from environment variables (see ``__main__``).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import tempfile
import traceback
import uuid
import warnings
from importlib.metadata import version
from pathlib import Path

from expunge_jobs.artifacts.attempts import Attempt, count_disruptions
from expunge_jobs.artifacts.cache import ModelCache
from expunge_jobs.artifacts.damage import find_damaged, mark_damaged
from expunge_jobs.artifacts.manifests import read_manifest
from expunge_jobs.core.errors import LESS_MEMORY, BadTask, DamagedInput, ExitCode, LimitExceeded, Preempted, StepError
from expunge_jobs.runtime import distributed, events, limits, shutdown
from expunge_jobs.runtime.context import CHECKPOINT_SECONDS, StepContext
from expunge_jobs.runtime.distributed import rank
from expunge_jobs.runtime.events import emit
from expunge_jobs.runtime.log_upload import LogParts
from expunge_jobs.store import AWAY, open_store
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.tasks import Task, parse_task

WITHOUT_TORCH = ("stage", "report")
"""Kinds of step that compute nothing."""
MOST_DISRUPTIONS = 10
"""Largest number of consecutive attempts of one Job that may be ended from outside without leaving a checkpoint."""


def run_step(threads: int) -> int:
    """Run the step that the environment names, and return its exit code."""
    attempt: Attempt | None = None
    error: StepError
    kind = ""
    with contextlib.ExitStack() as until_the_end:
        try:
            task = parse_task(os.environ.get("EXPUNGE_TASK", ""))
            kind = task.kind
            _limit(kind)
            store = open_store(os.environ.get("EXPUNGE_STORE", ""), AWAY, should_stop=shutdown.requested)
            ref = ArtifactRef(kind=task.kind, key=task.key())
            if rank() == 0 and read_manifest(store, ref) is not None:
                emit("done", note="already there")
                return ExitCode.DONE
            job = os.environ.get("EXPUNGE_JOB", "")
            before = count_disruptions(store, ref, job) if job else 0
            attempt = Attempt(store, ref, os.environ.get("EXPUNGE_ATTEMPT") or uuid.uuid4().hex)
            if rank() == 0:
                attempt.begin(socket.gethostname(), os.getpid(), job)
                if seconds := os.environ.get("EXPUNGE_LOG_SECONDS"):
                    _keep_log(attempt, float(seconds), until_the_end)
                emit("start", kind=task.kind, key=ref.key, attempt=attempt.id)
            else:
                events.silent = True
            if before >= MOST_DISRUPTIONS and rank() == 0:
                raise LimitExceeded(f"Interrupted {before} times without progress. Check what evicts its pods.")
            won = _try(task, attempt, threads)
            emit("done", **({} if won else {"note": "another attempt was first"}))
            return ExitCode.DONE
        except shutdown.Terminated:
            error = _stopped()
        except StepError as raised:
            error = raised
        except MemoryError:
            error = _out_of_memory(kind)
        except Exception as raised:
            if os.environ.get("EXPUNGE_DEBUG") == "1":
                raise
            error = _unforeseen(raised, kind)
        shutdown.ignore()
        events.silent = False
        emit("failed", reason=str(error), exit_code=int(error.exit_code))
        if attempt is not None:
            try:
                if isinstance(error, DamagedInput):
                    for found in (error, *find_damaged(store, task.needs())):  # mark all: one retry then suffices
                        mark_damaged(store, found)
                if rank() == 0:
                    attempt.end(str(error), exit_code=int(error.exit_code))
                elif not isinstance(error, Preempted):
                    attempt.say_end(str(error), exit_code=int(error.exit_code))
            except StepError as second:
                emit("notice", text=f"the attempt's end could not be recorded: {second}")
        return error.exit_code


def _keep_log(attempt: Attempt, seconds: float, until_the_end: contextlib.ExitStack) -> None:
    events.listeners.append(until_the_end.enter_context(LogParts(attempt, seconds)).take)


def _try(task: Task, attempt: Attempt, threads: int) -> bool:
    """Make and publish the artifact; return whether this attempt was first.

    Only rank 0 of a worker group publishes. The other ranks return True.
    """
    with tempfile.TemporaryDirectory(prefix="expunge-") as folder:
        out, scratch = Path(folder, "out"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        seconds = float(os.environ.get("EXPUNGE_CHECKPOINT_SECONDS") or CHECKPOINT_SECONDS)
        place = os.environ.get("EXPUNGE_MODEL_CACHE")
        cache = ModelCache(Path(place), lambda text: emit("notice", text=text), shutdown.check) if place else None
        context = StepContext(attempt.store, out, scratch, threads, attempt, seconds, cache)
        try:
            figures, versions, device = _run(task, context, threads)
            if not context.group.main:
                return True
            emit("publish")
            return attempt.publish(task, out, figures, versions, device, threads, context.group.size)
        except StepError:
            raise
        except BaseException:
            # Terminated may interrupt an import and leave a library's module half loaded.
            # Any error may therefore stand for Terminated here.
            if shutdown.requested():
                raise _stopped() from None
            raise


def _limit(kind: str) -> None:
    """Set the step's own deadline and disk limit.

    A step that the cluster kills gives no reason and is retried. Therefore the step ends itself and gives the reason.
    """
    if deadline := os.environ.get("EXPUNGE_DEADLINE"):
        shutdown.exceed_after(float(deadline), f"took longer than {deadline} s: raise resources.{kind}.deadline")
    if most := os.environ.get("EXPUNGE_DISK"):
        limits.watch(Path(tempfile.gettempdir()), int(most), f"raise resources.{kind}.disk")


def _stopped() -> StepError:
    return LimitExceeded(why) if (why := shutdown.limit_reason()) else Preempted("stopped by SIGTERM")


def _run(task: Task, context: StepContext, threads: int) -> tuple[dict[str, object], dict[str, str], str]:
    # Libraries warn about their own future changes, on which the user cannot act; therefore ignore warnings.
    warnings.filterwarnings("ignore")
    device = "cpu"
    libraries = ["expunge"]
    if task.kind not in WITHOUT_TORCH:
        device = prepare_torch(threads)
        context.group = distributed.join()
        libraries += ["torch", "transformers", "peft", "accelerate", "tokenizers"]
    program = importlib.import_module(f"expunge_jobs.steps.{task.kind}")
    figures = program.run(task, context)
    context.group.leave()
    versions = {n: version(n) for n in libraries}
    versions["python"] = sys.version.split()[0]
    return figures, versions, device


def prepare_torch(threads: int) -> str:
    """Configure torch and return the name of the compute device."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not torch.cuda.is_available():
        return "cpu"
    if rank() >= torch.cuda.device_count():
        raise BadTask(f"its processes are more than the GPUs that can be seen: {torch.cuda.device_count()}")
    torch.cuda.set_device(rank())
    return torch.cuda.get_device_name()


def _out_of_memory(kind: str) -> StepError:
    less = f"{LESS_MEMORY[kind]}, or " if kind in LESS_MEMORY else ""
    return StepError(f"out of memory: {less}give the step more memory")


def _unforeseen(raised: Exception, kind: str) -> StepError:
    """Return the ``StepError`` for an unexpected error, without its message.

    The message may quote a row. EXPUNGE_DEBUG=1 shows the whole error.
    """
    if "out of memory" in str(raised).lower() or type(raised).__name__ == "OutOfMemoryError":
        return _out_of_memory(kind)
    frame = traceback.extract_tb(raised.__traceback__)[-1]
    where = f"{Path(frame.filename).name}:{frame.lineno}"
    return StepError(f"unforeseen {type(raised).__name__} at {where}; EXPUNGE_DEBUG=1 shows it whole")
