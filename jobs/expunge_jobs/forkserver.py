"""The module from which the local executor forks steps.

Importing torch and transformers takes ten seconds, and an experiment has many steps.
The executor's ``multiprocessing`` fork server therefore imports this module once.
Each step is a fork of that warm process and does the work of ``python -m expunge_jobs``.
The import touches no GPU and starts no thread; therefore a fork is safe.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

if os.environ.get("EXPUNGE_PRELOAD") == "1":
    warnings.filterwarnings("ignore")
    # A thread that spins takes the core from the thread that it waits for; therefore wait passively
    # (docs/decisions/0002).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.olmo.modeling_olmo  # noqa: F401
    from rouge_score import rouge_scorer  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig  # noqa: F401

    from expunge_jobs import store  # noqa: F401
    from expunge_jobs.artifacts import attempts  # noqa: F401
    from expunge_jobs.steps import (
        evaluate,  # noqa: F401
        finetune,  # noqa: F401
        memorize,  # noqa: F401
        merge,  # noqa: F401
    )


def child(environment: dict[str, str], output: Any, lock: Any, alive: Any) -> None:
    """Turn this forked process into a step.

    The step gets its own process group, writes its output to its log, and holds the lock until the end.
    ``output``, ``lock`` and ``alive`` are ``multiprocessing.reduction.DupFd``. ``alive`` ends when the runner ends.
    """
    os.setpgid(0, 0)
    try:
        log, runner, held = output.detach(), alive.detach(), lock.detach()
    except (OSError, EOFError):
        os._exit(1)  # the runner that hands these over has died; therefore nothing is left to run
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(runner, 0)
    os.set_inheritable(held, True)
    os.environ.clear()
    os.environ.update(environment)
    from expunge_jobs.__main__ import main

    sys.exit(main())
