"""Commands that copy: pull (out of a store), upload (into a store)."""

from __future__ import annotations

import argparse
from pathlib import Path

from expunge_controller.cli.parser import DONE, Command, add_cluster, add_digest, add_file, add_store
from expunge_controller.cli.show import open_shown
from expunge_controller.text import put, say


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=True)
    add_store(parser)
    add_cluster(parser)
    add_digest(parser)
    parser.add_argument("--trial", metavar="NAME", help="which trial's, where there is a sweep")
    parser.add_argument("--to", metavar="DIR", required=True, help="a new or empty directory")
    parser.add_argument("--full", action="store_true", help="the merged model: an adapter alone does not forget")


def _pull(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.pull import pull

    opened = open_shown(arguments)
    for line in pull(opened.store, opened.plan, arguments.trial, Path(arguments.to), arguments.full):
        say(line)
    for line in opened.remarks(arguments.trial):
        say(f"note: {line}")
    return DONE


def _upload_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="JSON Lines, or a model or adapter directory")
    add_store(parser)


def _upload(arguments: argparse.Namespace) -> int:
    from expunge_controller.client.opening import open_store_at
    from expunge_controller.client.upload import upload

    put(upload(open_store_at(arguments.store), Path(arguments.path)))
    return DONE


COMMANDS = (
    Command(
        "pull",
        "copy the merged adapter (or with --full the merged model) out",
        "expunge pull experiment.yaml --to adapter/",
        _pull_arguments,
        _pull,
    ),
    Command(
        "upload",
        "put a data file or a model directory into the store, and print its address",
        "expunge upload forget.jsonl --store s3://bucket/prefix",
        _upload_arguments,
        _upload,
    ),
)
