"""How much memory a step is taken to need where its file says nothing: the weights, as often as it holds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.errors import ExperimentError
from expunge_controller.execution.local.backend import Backend
from expunge_controller.execution.local.memory import FLOOR, estimated_memory
from expunge_controller.execution.options import Where
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.store import open_store

from tests.support.folders import model

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
WEIGHTS = 3 * 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = model(tmp_path / "m")
    for name in ("a", "b"):
        (made / f"{name}.safetensors").write_bytes(bytes(WEIGHTS // 2))
    return made


def test_it_grows_with_the_model(folder: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    assert size >= WEIGHTS
    loaded = load_experiment(QUICKSTART, [f"model={folder}", "memorize={epochs: 2}"])
    steps = {s.name: s.task for s in resolve(loaded).plan.steps}
    assert estimated_memory(steps["memorize"], store) == FLOOR + 5 * size
    assert estimated_memory(steps["finetune over"], store) == FLOOR, "the model that is memorized is not there yet"
    assert estimated_memory(steps["report"], store) == FLOOR
    given = {
        s.name: s.task for s in resolve(load_experiment(QUICKSTART, [f"model={folder}", "memorize=null"])).plan.steps
    }
    assert estimated_memory(given["finetune over"], store) == FLOOR + 2 * size
    assert estimated_memory(given["merge"], store) == FLOOR + size
    (folder / "config.json").write_text('{"dtype": "bfloat16"}')
    sets = [f"model={folder}", "memorize=null", "dtype=float32"]
    wide = {s.name: s.task for s in resolve(load_experiment(QUICKSTART, sets)).plan.steps}
    assert estimated_memory(wide["finetune over"], store) == FLOOR + 4 * size


@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_threads_that_are_none_are_refused(threads: str, tmp_path: Path) -> None:
    loaded = load_experiment(QUICKSTART)
    backend = Backend(Where(options={"threads": threads}))
    with pytest.raises(ExperimentError, match="--threads: found .* allowed: a whole number from 1"):
        backend.executor(open_store(str(tmp_path)), resolve(loaded), loaded.experiment.spec, 8)
