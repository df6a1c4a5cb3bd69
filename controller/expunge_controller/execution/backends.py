"""Backends: the places where steps can run.

A backend is one file, ``execution/<name>/backend.py``, with a class ``Backend``.
A backend file imports its dependencies inside functions.
Therefore reading the names and options of the backends loads no executor.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Protocol

from expunge_controller.execution.options import Option, Where

if TYPE_CHECKING:
    from expunge_jobs.store import Store

    from expunge_controller.execution.executor import Executor
    from expunge_controller.experiment.schema import Spec
    from expunge_controller.planning.plan import Step
    from expunge_controller.planning.resolve import Resolved

DEFAULT = "local"


class Backend(Protocol):
    """A place where steps can run.

    The constructor contacts no cluster and reads no file.
    """

    OPTIONS: ClassVar[tuple[Option, ...]]
    """The options that the backend accepts in addition to the fields of ``Where``."""
    STAGES: ClassVar[bool]
    """Whether the plan first copies hub models into the store.

    A backend needs this where each step has a disk of its own.
    """
    DETACHES: ClassVar[bool]
    """Whether steps continue after their runner has ended."""

    def __init__(self, where: Where) -> None: ...

    def executor(self, store: Store, resolved: Resolved, spec: Spec, parallel: int) -> Executor:
        """Return the executor for the steps of a plan.

        Raises:
            ExperimentError: something that steps need is missing here.
            ApiError: a cluster refuses, or does not answer.
        """
        ...

    def observe(self, store: Store, steps: list[Step]) -> dict[str, str]:
        """Return the progress of each running step, in words, by key.

        The result includes steps that other runners have started.

        Raises:
            ApiError: a cluster refuses, or does not answer.
        """
        ...

    def follow(self, store: Store, step: Step) -> Iterator[str]:
        """Yield a step's log lines as they appear, until the step stops running."""
        ...

    def connect(self) -> None:
        """Find the place where steps run.

        Raises:
            ExperimentError: it is not named, or nothing says how to reach it.
        """
        ...

    def cancel(self, resolved: Resolved) -> int:
        """End a detached run and return the number of steps ended.

        Raises:
            ApiError: a cluster refuses, or does not answer.
        """
        ...


@cache
def names() -> tuple[str, ...]:
    """Return the names of all backends, the default first."""
    package = importlib.import_module("expunge_controller.execution")
    found = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg)
    return (DEFAULT, *(n for n in found if n != DEFAULT))


@cache
def backend(name: str) -> type[Backend]:
    """Return the backend class for one of ``names()``."""
    found: type[Backend] = importlib.import_module(f"expunge_controller.execution.{name}.backend").Backend
    return found
