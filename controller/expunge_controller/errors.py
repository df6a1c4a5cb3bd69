"""The error that is the user's to mend."""

from __future__ import annotations


class ExperimentError(Exception):
    """The user's input is wrong; ``problems`` are all that were found."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
