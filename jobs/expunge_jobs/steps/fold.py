"""The program that writes a model with its adapters folded in.

Usage: ``python -m expunge_jobs.steps.fold STORE MODELREF DIR``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from expunge_jobs.core.errors import ExitCode, StepError
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ModelRef


def main(store: str, model: str, to: str) -> int:
    """Fold the adapters in, save the model and return the exit code.

    Each adapter is folded in float32 and rounded once to the base's dtype.
    """
    from expunge_jobs.modeling.loading import load_model

    try:
        with tempfile.TemporaryDirectory(prefix="expunge-export-") as scratch:
            context = StepContext(open_store(store), Path(to), Path(scratch))
            merged, tokenizer = load_model(ModelRef.model_validate_json(model), context, "checkpoint")
            merged.save_pretrained(to)
            tokenizer.save_pretrained(to)
    except (StepError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
