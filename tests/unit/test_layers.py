"""The direction of imports: every module of both packages has a floor, arrows run down only, and in no circle.

Imports inside functions, for type checkers alone and through importlib count like any others: they are as much in a
reader's way.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"expunge_jobs": ROOT / "jobs", "expunge_controller": ROOT / "controller"}

FLOORS: dict[str, list[str]] = {
    "expunge_jobs": [
        "core",
        "store objectives merge_methods metrics",
        "plugins",
        "tasks",
        "artifacts",
        "inputs",
        "data",
        "results",
        "runtime",
        "modeling",
        "training analysis",
        "steps",
        "step_runner",
        "__main__",
        "forkserver",
    ],
    "expunge_controller": [
        "text errors",
        "experiment kube_client",
        "planning",
        "execution",
        "client",
        "operator cli",
        "serve __main__",
    ],
}
"""From the ground up; the rooms of a floor do not import each other. A room is a module, or a folder with all that is
in it.
"""

DYNAMIC: dict[tuple[str, str], str] = {
    ("expunge_jobs.step_runner", "expunge_jobs.steps.{}"): (
        "steps.stage steps.memorize steps.finetune steps.merge steps.evaluate steps.report"
    ),
    ("expunge_jobs.plugins", "expunge_jobs.{}"): "objectives merge_methods metrics",
    ("expunge_jobs.plugins", "expunge_jobs.{}.{}"): "objectives merge_methods metrics",
    ("expunge_jobs.store.opening", "expunge_jobs.store.schemes.{}"): "store.schemes.file store.schemes.s3",
    ("expunge_jobs.inputs.builtin", "expunge_jobs.inputs.builtin.{}"): "inputs.builtin.people",
    ("expunge_controller.execution.backends", "expunge_controller.execution"): "execution",
    ("expunge_controller.execution.backends", "expunge_controller.execution.{}.backend"): (
        "execution.local.backend execution.kubernetes.backend"
    ),
    ("expunge_controller.execution.local.executor", "expunge_jobs.forkserver"): "forkserver",
    ("expunge_controller.client.pull", "expunge_jobs.steps.fold"): "steps.fold",
}
"""What a module's name in a string stands for, wherever one is made for importlib, ``-m`` or a fork server."""


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of both packages by its name."""
    out = {}
    for package, folder in PACKAGES.items():
        for file in sorted((folder / package).rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return out


@functools.cache
def arrows(name: str) -> frozenset[str]:
    """The modules of both packages that a module imports, in whatever way."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative imports hide where they lead"
            found |= {n if (n := f"{node.module}.{a.name}") in modules() else str(node.module) for a in node.names}
        elif text := dynamic(node):
            package = text.split(".")[0]
            assert (name, text) in DYNAMIC, f"{name} names the module {text}: say in DYNAMIC what it may be"
            found |= {f"{package}.{n}" for n in DYNAMIC[name, text].split()}
    return frozenset(n for n in found if n in modules() and n != name)


def dynamic(node: ast.AST) -> str:
    """The pattern of a module's name that a string is, with {} for what it is formatted with; empty for any other
    node.
    """
    if isinstance(node, ast.JoinedStr):
        text = "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)  # type: ignore[misc]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    else:
        return ""
    return text if re.fullmatch(r"expunge_(jobs|controller)(\.(\w+|\{\}))+", text) else ""


def room(name: str) -> str:
    """The room of a module: what stands first below its package; empty for the package itself."""
    return (name.split(".") + [""])[1]


def floor(name: str) -> int:
    """The number of a module's floor, from the ground up."""
    package = name.split(".")[0]
    if name == package:
        return -1
    found = [n for n, rooms in enumerate(FLOORS[package]) if room(name) in rooms.split()]
    assert len(found) == 1, f"{name} has {len(found)} floors in FLOORS; each module has one"
    return found[0]


def test_every_module_has_a_floor_and_every_room_is_there() -> None:
    for name in modules():
        floor(name)
    for package, floors in FLOORS.items():
        named = " ".join(floors).split()
        assert sorted(named) == sorted({room(n) for n in modules() if n.split(".")[0] == package} - {""})


def test_arrows_run_down() -> None:
    up = set()
    for name in modules():
        for other in arrows(name):
            same = name.split(".")[0] == other.split(".")[0]
            if same and room(name) != room(other) and floor(name) <= floor(other):
                up.add((name, other))
    assert not up, "arrows that run up, or to a room beside"


def test_the_jobs_never_import_the_controller() -> None:
    assert not [
        n for n in modules() if n.startswith("expunge_jobs") for o in arrows(n) if o.startswith("expunge_controller")
    ]


def circles() -> Iterator[list[str]]:
    """Groups of modules each of which leads to all others (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows(name)):
            if other not in index:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                yield sorted(group)

    for name in modules():
        if name not in index:
            yield from visit(name)


def test_there_is_no_circle() -> None:
    assert list(circles()) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import_module(f'expunge_jobs.{kind}')", "expunge_jobs.{}"),
        ("run(['-m', 'expunge_jobs.steps.fold'])", "expunge_jobs.steps.fold"),
        ("'expunge_jobs is a package'", ""),
    ],
)
def test_a_module_s_name_in_a_string_is_seen(code: str, found: str) -> None:
    assert [text for node in ast.walk(ast.parse(code)) if (text := dynamic(node))] == ([found] if found else [])
