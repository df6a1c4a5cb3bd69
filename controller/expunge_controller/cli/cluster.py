"""Commands that concern a cluster but no run: doctor, render."""

from __future__ import annotations

import argparse
from pathlib import Path

from expunge_controller.cli.parser import (
    DONE,
    FAILED,
    Command,
    add_backend_options,
    add_cluster,
    add_file,
    add_namespace,
    add_store,
    where_of,
)
from expunge_controller.execution.kubernetes.backend import Backend
from expunge_controller.text import put


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    add_store(parser)
    add_cluster(parser)
    add_backend_options(parser, "kubernetes")


def _doctor(arguments: argparse.Namespace) -> int:
    from expunge_controller.cli.tables import aligned
    from expunge_controller.client.doctor import examine

    place = Backend(where_of(arguments))
    rows, well = [], True
    for check in examine(place.cluster, place.site(place.cluster.namespace)):
        rows.append([check.state, check.what, check.words])
        well = well and check.state != "FAIL"
    put(aligned(["", "WHAT", "FOUND"], rows))
    return DONE if well else FAILED


def _render_arguments(parser: argparse.ArgumentParser) -> None:
    add_file(parser, on_cluster=False)
    add_store(parser)
    add_namespace(parser)
    add_backend_options(parser, "kubernetes")


def _render(arguments: argparse.Namespace) -> int:
    import yaml

    from expunge_controller.client.render import render

    place = Backend(where_of(arguments))
    jobs = render(Path(arguments.file), arguments.set, place.site(arguments.namespace or "default"))
    print("# In the values of env, $$ stands for $: Kubernetes expands $(NAME) there.")
    print(yaml.safe_dump_all(jobs, sort_keys=False, width=120), end="")
    return DONE


COMMANDS = (
    Command(
        "doctor",
        "say what is missing to run on this cluster",
        "expunge doctor --store s3://bucket/prefix --image registry/expunge-jobs:0.1.0 --secret store",
        _doctor_arguments,
        _doctor,
    ),
    Command(
        "render",
        "show the Jobs of a cluster as YAML; apply nothing, ask nobody",
        "expunge render experiment.yaml --store s3://bucket/prefix --image registry/expunge-jobs:0.1.0",
        _render_arguments,
        _render,
    ),
)
