"""The error that the user must correct."""

from __future__ import annotations


class ExperimentError(Exception):
    """An error in the user's input.

    ``problems`` contains all problems that were found.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
