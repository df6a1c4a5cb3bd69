"""The command ``expunge``.

The command finds the verb, runs the verb and reports errors in words. Data goes to stdout, messages go to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys

from expunge_controller.cli import cluster, files, run, show
from expunge_controller.cli.parser import BAD_INPUT, DONE, NO_ANSWER, STOPPED, Command, Parser
from expunge_controller.execution.backends import names
from expunge_controller.text import say

COMMANDS: tuple[Command, ...] = (*run.COMMANDS, *show.COMMANDS, *files.COMMANDS, *cluster.COMMANDS)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (see ``parser``)."""
    from expunge_jobs.core.errors import StepError
    from expunge_jobs.store import Unavailable

    arguments = parse(argv)
    # Import after parsing; therefore --help does not load these modules.
    from expunge_controller.errors import ExperimentError
    from expunge_controller.kube_client.client import ApiError

    try:
        command: Command = arguments.command
        return command.run(arguments)
    except ExperimentError as error:
        for problem in error.problems:
            say(f"error: {problem}")
        return BAD_INPUT
    except StepError as error:
        say(f"error: {error}")
        return NO_ANSWER if isinstance(error, Unavailable) else BAD_INPUT
    except ApiError as error:
        say(f"error: the cluster: {error}")
        return NO_ANSWER if error.passing else BAD_INPUT
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the words of one command.

    Raises:
        SystemExit: 0 after --help and --version, 2 with an error message.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse rejects an optional word after an option, as in `logs FILE --store URI STEP`; therefore take STEP here.
    if rest and getattr(arguments, "step", "") is None and not rest[0].startswith("-"):
        arguments.step = rest.pop(0)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    allowed = names()
    if getattr(arguments, "executor", allowed[0]) not in allowed:  # argparse does not check a default
        parser.error(f"EXPUNGE_EXECUTOR is '{arguments.executor}'; allowed: {', '.join(allowed)}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    Parser.words = (*(c.name for c in COMMANDS), *show.LISTS)
    parser = Parser(
        prog="expunge",
        description="Make a language model forget a set of documents and keep the rest.",
        epilog="example: expunge run examples/quickstart.yaml",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=Parser)
    for command in COMMANDS:
        made = verbs.add_parser(
            command.name, help=command.help, description=f"{command.help}.", epilog=f"example: {command.example}"
        )
        command.add_arguments(made)
        made.set_defaults(command=command)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"expunge {version('expunge')}")
        parser.exit(0)
