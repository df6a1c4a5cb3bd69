"""Fixtures of the job tests: one tokenizer and one taught model for all of them.

A GPU, where there is one, is seen by ``ON_A_GPU`` alone: the others compare with what plain code computes on the CPU.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.runtime.context import StepContext

from tests.jobs import tiny_models as tiny

ON_A_GPU = ("test_resume",)

torch.set_num_threads(1)
if torch.cuda.is_available():  # as a step sets it: test_resume.py asks a GPU for the same bits
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


@pytest.fixture(scope="module", autouse=True)
def _gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hidden before any other fixture of a module, and from processes begun here."""
    if request.module.__name__ in ON_A_GPU or not torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session")
def words() -> Any:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, words: Any) -> Path:
    """A model directory; the model knows the forget and retain rows about half."""
    folder = tmp_path_factory.mktemp("base")
    made = tiny.model("olmo", vocab=len(words), spread=0.05)
    tiny.teach(made, words, [*tiny.FORGET, *tiny.RETAIN])
    made.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(base_folder: Path) -> Any:
    from expunge_jobs.modeling.loading import load_base

    return load_base(base_folder, "checkpoint")[0]


@pytest.fixture
def base(loaded: Any) -> Any:
    """The model of ``base_folder``, the test's own."""
    return copy.deepcopy(loaded)


@pytest.fixture
def work(tmp_path: Path) -> StepContext:
    return tiny.work(tmp_path)
