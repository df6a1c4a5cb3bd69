"""Steps forked from a warm process: importing torch and transformers takes ten seconds, and an experiment has many steps.

The local executor's ``multiprocessing`` fork server imports this module once; each step is then a fork of it that does
what ``python -m expunge_jobs`` does. Importing touches no GPU and starts no thread, so that a fork is safe.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

if os.environ.get("EXPUNGE_PRELOAD") == "1":
    warnings.filterwarnings("ignore")
    # Threads that spin while they wait take the core from the one they wait for (docs/decisions/0002).
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
    """Become a step: a process group of its own, output into its log, the lock held until the end.

    ``output``, ``lock`` and ``alive`` are ``multiprocessing.reduction.DupFd``; ``alive`` ends when the runner does.
    """
    os.setpgid(0, 0)
    try:
        log, runner, held = output.detach(), alive.detach(), lock.detach()
    except (OSError, EOFError):
        os._exit(1)  # the runner, which hands these over, died meanwhile: there is nobody to run for
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.dup2(runner, 0)
    os.set_inheritable(held, True)
    os.environ.clear()
    os.environ.update(environment)
    from expunge_jobs.__main__ import main

    sys.exit(main())
