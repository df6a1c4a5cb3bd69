"""The entry point that runs one step.

The program reads the task, fetches its inputs, runs its job program, uploads the artifact and marks the step done.
Environment variables carry the whole configuration:

    EXPUNGE_TASK                the task as JSON
    EXPUNGE_STORE               URI of the store
    EXPUNGE_ATTEMPT             name of this attempt; random if absent
    EXPUNGE_THREADS             number of threads; the number of CPUs if absent
    EXPUNGE_PROCESSES           number of processes that do the step together, each with its own GPU
    EXPUNGE_CHECKPOINT_SECONDS  training time that a kill may cost
    EXPUNGE_LOG_SECONDS         keep the log in the store, with a new part at this interval
    EXPUNGE_JOB                 uid of the Job whose attempts are counted
    EXPUNGE_MODEL_CACHE         a folder that outlives the step
    EXPUNGE_DEADLINE            limit of the step's time, in seconds
    EXPUNGE_DISK                limit of the bytes below TMPDIR
    EXPUNGE_DIE_WITH_STDIN      1: end when stdin ends, because the runner is gone
    EXPUNGE_DEBUG               1: raise unexpected errors with their traceback

A step that reaches its deadline or disk limit ends for good. A step that only receives SIGTERM may be retried.
"""

from __future__ import annotations

import os
import signal
import sys

from expunge_jobs.runtime import shutdown
from expunge_jobs.runtime.distributed import launched


def main() -> int:
    """Run the step and return its exit code (see ``errors.ExitCode``)."""
    # Pid 1 of a container ignores an unhandled SIGTERM, and imports take seconds; therefore install the handler first.
    signal.signal(signal.SIGTERM, shutdown.on_term)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("EXPUNGE_DIE_WITH_STDIN") == "1":
        _die_with_stdin()
    threads = os.environ.setdefault("EXPUNGE_THREADS", str(os.cpu_count() or 1))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see forkserver.py
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        if os.environ.get("EXPUNGE_PROCESSES", "1") != "1" and not launched():
            from expunge_jobs.runtime.launch import launch

            return launch(int(os.environ["EXPUNGE_PROCESSES"]))
        from expunge_jobs.step_runner import run_step

        return run_step(int(threads))
    except shutdown.Terminated:  # outside the step itself, so there is nothing to clean up
        return 143


def _die_with_stdin() -> None:
    import threading

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
