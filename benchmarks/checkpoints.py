"""What checkpoints cost training: the quickstart's memorize step (weights and optimizer of a whole model, the largest
state that the package writes), with a checkpoint every second or so against none; and what that makes of the default
interval.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.artifacts.attempts import Attempt, checkpoints_of
from expunge_jobs.runtime.checkpoints import Checkpoints
from expunge_jobs.runtime.context import CHECKPOINT_SECONDS, StepContext
from expunge_jobs.steps import memorize
from expunge_jobs.store import open_store
from expunge_jobs.tasks.references import ArtifactRef
from expunge_jobs.tasks.tasks import MemorizeTask

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
ROUNDS, EPOCHS, EACH, NEVER = 3, 4, 1.0, 1e9


def train(seconds_between: float) -> tuple[float, int]:
    """Seconds of one training, and the checkpoints that it wrote."""
    plan = resolve(load_experiment(QUICKSTART, [f"memorize.epochs={EPOCHS}"])).plan
    task = next(s.task for s in plan.steps if s.kind == "memorize")
    assert isinstance(task, MemorizeTask)
    written = 0
    write = Checkpoints._write

    def counted(*words: object) -> None:
        nonlocal written
        write(*words)  # type: ignore[arg-type]
        written += 1

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("out", "scratch"):
            (folder / part).mkdir()
        store, ref = open_store(str(folder / "store")), ArtifactRef(kind=task.kind, key=task.key())
        work = StepContext(store, folder / "out", folder / "scratch", 1, Attempt(store, ref, "one"), seconds_between)
        work.progress = lambda *words, **figures: None  # type: ignore[method-assign]
        Checkpoints._write = counted  # type: ignore[method-assign]
        start = time.perf_counter()
        memorize.run(task, work)
        spent = time.perf_counter() - start
        Checkpoints._write = write  # type: ignore[method-assign]
        assert bool(checkpoints_of(store, ref)) == bool(written)
    return spent, written


def main() -> None:
    import torch

    torch.set_num_threads(1)
    train(NEVER)
    pairs = [(train(EACH), train(NEVER)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for (a, _), (b, _) in pairs)
    one = statistics.median((a - b) / n for (a, n), (b, _) in pairs)
    count = statistics.median(n for (_, n), _ in pairs)
    print(f"with {count:.0f} checkpoints, one every {EACH:.0f} s or so, against none: ratio {ratio:.3f}")
    print(
        f"a checkpoint costs {one:.3f} s: {one / CHECKPOINT_SECONDS:.3%} of training at the default interval of "
        f"{CHECKPOINT_SECONDS:.0f} s (aim: under 2 %)"
    )


if __name__ == "__main__":
    main()
