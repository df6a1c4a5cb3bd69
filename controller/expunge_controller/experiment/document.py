"""An experiment file as YAML: reading, overrides, lines of problems."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from expunge_controller.errors import ExperimentError

MAX_NODES = 20_000
"""Maximum number of nodes. No experiment has more, and a walk is short. Aliases of aliases exceed the bound."""


KeyPath = tuple[str | int, ...]
_ADDRESS_FIELDS = ("forget", "retain", "probe", "members", "nonmembers", "mmlu")


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads numbers as kubectl does.

    ``1e-4`` is a number, although YAML 1.1 requires a dot.
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Document:
    """A YAML mapping and the location of each value.

    A location is a line (``12``) or an override (``--set``).
    """

    file: str
    raw: dict[str, Any]
    lines: dict[KeyPath, str] = field(default_factory=dict)

    def at(self, path: KeyPath, text: str) -> str:
        """Return ``FILE:LINE: spec.merge.density: TEXT``.

        A value without a line takes the line of the nearest value above that has one.
        """
        where = self.file
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                line = self.lines[path[:end]]
                where = line if line.startswith("--") else f"{self.file}:{line}"
                break
        dotted = dotted_path(path)
        return f"{where}: {dotted}: {text}" if dotted else f"{where}: {text}"

    def with_values(self, values: dict[str, Any]) -> Document:
        """Return the document of one trial, without the sweep.

        ``values`` are keyed by path below spec.
        """
        raw = dict(self.raw)
        raw["spec"] = {k: v for k, v in self.raw["spec"].items() if k != "sweep"}
        for path, value in values.items():
            try:
                for part in swept_fields(path):
                    _set(raw, ("spec", *part.split(".")), value)
            except TypeError as error:
                said = (
                    f"'{error}' has a plain value in the file: nothing below it can be swept; write it out as a mapping"
                )
                raise ExperimentError([self.at(("spec", "sweep", path), said)]) from None
        _absolute(raw, Path(os.path.abspath(self.file)).parent)
        return Document(self.file, raw, self.lines)


def swept_fields(path: str) -> list[str]:
    """Return the fields below spec that a key of ``sweep`` sets together.

    ``seed & data.seed`` gives both fields each value of the list.
    """
    return [part.strip() for part in path.split("&")]


def read_document(path: Path, overrides: list[str]) -> Document:
    """Read a file's YAML and apply overrides.

    Relative addresses become absolute. Addresses in the file are relative to the file's folder. Addresses in overrides
    are relative to the working directory.

    Raises:
        ExperimentError: not there, not readable, not YAML, not one mapping, or too large to be an experiment.
    """
    file = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExperimentError([f"{file}: no such file"]) from None
    except IsADirectoryError:
        raise ExperimentError([f"{file}: is a folder; allowed: an experiment file"]) from None
    except UnicodeDecodeError:
        raise ExperimentError([f"{file}: not UTF-8 text"]) from None
    except OSError as error:
        raise ExperimentError([f"{file}: not readable ({error.strerror})"]) from None
    raw, lines = _parse(text, file)
    _absolute(raw, Path(os.path.abspath(path)).parent)
    for override in overrides:
        _override(raw, lines, override)
    _absolute(raw, Path.cwd())
    document = Document(file, raw, lines)
    if broken := list(_broken_texts(raw)):
        said = "half of a surrogate pair (\\ud800 to \\udfff by itself), which is no text"
        raise ExperimentError([document.at(path, said) for path in broken])
    return document


def _broken_texts(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Yield the places of texts that cannot be written as UTF-8."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _broken_texts(key, (*path, str(key).encode(errors="replace").decode()))
            yield from _broken_texts(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _broken_texts(inner, path)
    elif isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        yield path


def _parse(text: str, file: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ExperimentError([f"{file}:{line}: not YAML: {error.problem}"]) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ExperimentError(
            [f"{file}: not YAML: {str(error).splitlines()[0] if str(error) else 'too deep'}"]
        ) from None
    if node is None:
        raise ExperimentError([f"{file}: empty; allowed: an experiment (apiVersion, kind, metadata, spec)"])
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise ExperimentError([f"{file}:1: found {found}; allowed: an experiment (apiVersion, kind, metadata, spec)"])
    lines: dict[KeyPath, str] = {}
    problems: list[str] = []
    for count, (path, line, problem) in enumerate(_walk(node)):
        if count > MAX_NODES:
            raise ExperimentError(
                [f"{file}: more than {MAX_NODES} values (aliases repeat what they name): no experiment"]
            )
        lines[path] = str(line)
        if problem:
            problems.append(f"{file}:{line}: {dotted_path(path)}: {problem}")
    if problems:
        raise ExperimentError(problems)
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ExperimentError([f"{file}: not YAML: {str(error).splitlines()[0]}"]) from None
    # Aliases give shared objects, but an override must change one place alone; therefore copy.
    return copy.deepcopy(_unshare(raw)), lines


def _walk(node: yaml.Node, path: KeyPath = ()) -> Iterator[tuple[KeyPath, int, str]]:
    if len(path) > 50:
        yield path, node.start_mark.line + 1, "deeper than any experiment"
        return
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            problem = "the same key twice" if name in seen else ""
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key that is no text"
            seen.add(name)
            yield (*path, name), key.start_mark.line + 1, problem
            yield from _walk(value, (*path, name))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield (*path, number), value.start_mark.line + 1, ""
            yield from _walk(value, (*path, number))


def _unshare(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _unshare(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_unshare(v) for v in value]
    return value


def _override(raw: dict[str, Any], lines: dict[KeyPath, str], text: str) -> None:
    name, separator, value = text.partition("=")
    keys = name.strip().removeprefix("spec.").split(".")
    if not separator or not all(keys):
        raise ExperimentError([f"--set {text}: allowed: path=value, as merge.density=0.5 or data.forget=rows.jsonl"])
    if keys[0] == "sweep" and len(keys) > 1:
        keys = ["sweep", ".".join(keys[1:])]
    try:
        parsed = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise ExperimentError([f"--set {text}: the value is not YAML"]) from None
    try:
        _set(raw, ("spec", *keys), parsed)
    except TypeError:
        raise ExperimentError([f"--set {text}: there is no '{name}': something above it is a plain value"]) from None
    place: KeyPath = ("spec", *keys)
    for known in [k for k in lines if k[: len(place)] == place]:
        del lines[known]
    lines[place] = f"--set {name}"


def _set(raw: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Set a value, and copy every mapping on the path.

    Other documents may share the mappings.
    """
    here = raw
    for key in keys[:-1]:
        below = here.get(key)
        if below is not None and not isinstance(below, dict):
            raise TypeError(key)
        here[key] = dict(below or {})
        here = here[key]
    here[keys[-1]] = value


def _absolute(raw: dict[str, Any], folder: Path) -> None:
    """Replace plain paths by absolute ``file://`` addresses, in place."""
    spec = raw.get("spec")
    if not isinstance(spec, dict):
        return

    def fix(holder: Any, key: str) -> None:
        value = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            holder[key] = f"file://{os.path.normpath(folder / Path(value).expanduser())}"

    fix(spec, "model")
    fix(spec.get("reference"), "model")
    for name in _ADDRESS_FIELDS:
        fix(spec.get("data"), name)
    for group in ("specialists", "baselines"):
        models = spec.get(group)
        for model in models.values() if isinstance(models, dict) else ():
            fix(model, "adapter")


def dotted_path(path: KeyPath) -> str:
    """Return a path in the form ``spec.sweep.seed[2]``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out
