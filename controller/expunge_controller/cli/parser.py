"""The parts that commands share: declaration, options, exit codes.

The module loads nothing heavy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from expunge_controller.execution.backends import DEFAULT, backend, names
from expunge_controller.execution.options import Where

if TYPE_CHECKING:
    from expunge_controller.client.opening import Request

DONE, FAILED, BAD_INPUT, NO_ANSWER, STOPPED = 0, 1, 2, 3, 130
"""Exit codes: done, a step failed, wrong input, a store or cluster without an answer, stopped by the user."""


@dataclass(frozen=True)
class Command:
    """A verb of ``expunge``: its help, its arguments and its action."""

    name: str
    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """The action. Returns the exit code."""


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the nearest known word."""

    words: tuple[str, ...] = ()
    """Words that the user may have meant."""

    def error(self, message: str) -> Any:
        from expunge_jobs.core.errors import suggestion

        word = message.partition("invalid choice: '")[2].partition("'")[0]
        hint = suggestion(word, list(self.words)) if word else ""
        self.exit(BAD_INPUT, f"error: {message}{hint}\n{self.format_usage()}")


def add_file(parser: argparse.ArgumentParser, on_cluster: bool) -> None:
    """Add ``FILE`` and ``--set``.

    With ``on_cluster``, ``FILE`` may also be an Experiment of a cluster.
    """
    what = "the experiment file" + (", or experiment/NAME: what a cluster's operator runs" if on_cluster else "")
    parser.add_argument("file", metavar="FILE", help=what)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="override a field below spec")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add ``--store``."""
    said = "where artifacts lie (default: $EXPUNGE_STORE or ./.expunge)"
    parser.add_argument("--store", metavar="URI", help=said)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """Add ``--executor``, ``--context`` and ``--namespace``.

    These options say where the experiment runs.
    """
    parser.add_argument(
        "--executor",
        choices=names(),
        default=os.environ.get("EXPUNGE_EXECUTOR") or DEFAULT,
        help=f"what runs the steps (default: $EXPUNGE_EXECUTOR or {DEFAULT})",
    )
    add_cluster(parser)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add ``--context`` and ``--namespace``."""
    parser.add_argument("--context", metavar="NAME", help="of the kubeconfig (default: its current one)")
    add_namespace(parser)


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """Add ``--namespace``."""
    parser.add_argument("--namespace", metavar="NAME", help="where the Jobs belong (default: the context's)")


def add_backend_options(parser: argparse.ArgumentParser, *backends: str) -> None:
    """Add the options that these backends declare."""
    for option in dict.fromkeys(o for name in backends for o in backend(name).OPTIONS):
        parser.add_argument(option.flag, metavar=option.metavar, help=option.help)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def where_of(arguments: argparse.Namespace) -> Where:
    """Return where steps run, from the options and $EXPUNGE_STORE."""
    given = vars(arguments)
    options = {o.name: given.get(o.name) for name in names() for o in backend(name).OPTIONS}
    return Where(
        store=given.get("store") or os.environ.get("EXPUNGE_STORE") or "",
        context=given.get("context"),
        namespace=given.get("namespace"),
        options=options,
    )


def add_digest(parser: argparse.ArgumentParser) -> None:
    """Add the option for an earlier generation of an experiment."""
    parser.add_argument(
        "--digest",
        default="",
        metavar="START",
        help="an earlier generation of this file, with the data and the versions of that day",
    )


def request_of(arguments: argparse.Namespace) -> Request:
    """Return which experiment the user names, and where it runs."""
    from expunge_controller.client.opening import Request

    return Request(
        file=arguments.file,
        overrides=tuple(arguments.set),
        backend=getattr(arguments, "executor", DEFAULT),
        where=where_of(arguments),
        digest=getattr(arguments, "digest", ""),
    )


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("allowed: 1 or more")
    return value
