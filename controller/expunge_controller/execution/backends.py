"""Where steps can run. A backend is one file: ``execution/<name>/backend.py`` with a class ``Backend``.

Finding the names and options of backends loads nothing of them: their files import inside functions.
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
    """Steps on one kind of place. Making one looks at nothing yet."""

    OPTIONS: ClassVar[tuple[Option, ...]]
    """Beside those of ``Where``."""
    STAGES: ClassVar[bool]
    """Whether steps copy a model of the hub into the store first, since each has a disk of its own."""
    DETACHES: ClassVar[bool]
    """Whether steps go on without their runner."""

    def __init__(self, where: Where) -> None: ...

    def executor(self, store: Store, resolved: Resolved, spec: Spec, parallel: int) -> Executor:
        """Return what runs the steps of a plan.

        Raises:
            ExperimentError: something that steps need is missing here.
            ApiError: a cluster refuses, or does not answer.
        """
        ...

    def observe(self, store: Store, steps: list[Step]) -> dict[str, str]:
        """Return how far each step is that runs now, whoever started it, in words by key. Raises ApiError."""
        ...

    def follow(self, store: Store, step: Step) -> Iterator[str]:
        """Return lines of a step's log as they come, until nothing runs it any more."""
        ...

    def cancel(self, resolved: Resolved) -> int:
        """End what goes on without its runner; how many steps that were. Raises ApiError."""
        ...


@cache
def names() -> tuple[str, ...]:
    """The backends that there are, the default first."""
    package = importlib.import_module("expunge_controller.execution")
    found = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.ispkg)
    return (DEFAULT, *(n for n in found if n != DEFAULT))


@cache
def backend(name: str) -> type[Backend]:
    """The backend of one of these ``names``."""
    found: type[Backend] = importlib.import_module(f"expunge_controller.execution.{name}.backend").Backend
    return found
