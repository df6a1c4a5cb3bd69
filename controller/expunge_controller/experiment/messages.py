"""Messages for users, made from pydantic's errors.

A message has the location, the value found, the allowed values and the nearest right word.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from expunge_jobs.core.errors import suggestion
from expunge_jobs.tasks.settings import NestedErrors
from pydantic import BaseModel, ValidationError

from expunge_controller.experiment.document import Document, KeyPath, dotted_path

MOST_PROBLEMS = 100
"""Maximum number of a document's problems that are put into words."""


def problems_of(error: ValidationError, document: Document, model: type[BaseModel], place: bool = True) -> list[str]:
    """Return one line for each error.

    A line has the location, the value found, the allowed values and the nearest right word. Without ``place``, the
    location is the path alone.
    """
    out: list[str] = []
    for path, text in itertools.islice(_flatten(error, (), model), MOST_PROBLEMS):
        clean = _real_path(path, document.raw)
        out.append(document.at(clean, text) if place else f"{dotted_path(clean)}: {text}")
    return list(dict.fromkeys(out))


def _flatten(error: ValidationError, prefix: KeyPath, model: type[BaseModel] | None) -> Iterator[tuple[KeyPath, str]]:
    for item in error.errors(include_url=False):
        path = (*prefix, *item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, NestedErrors):
            for part in cause.parts:
                if isinstance(part.error, ValidationError):
                    yield from _flatten(part.error, (*path, *part.path), part.model)
                else:
                    yield (*path, *part.path), str(part.error)
            continue
        yield path, _words(item, model)


def _words(item: Any, model: type[BaseModel] | None) -> str:
    kind, found, context = item["type"], item.get("input"), item.get("ctx", {})
    name = str(item["loc"][-1]) if item["loc"] else ""
    if kind == "extra_forbidden":
        allowed = _fields_at(model, item["loc"][:-1]) if model else []
        if name in allowed:  # of another member of the union
            return f"'{name}' cannot stand beside the other fields here; allowed: one of {', '.join(allowed)}"
        said = f"; allowed: {', '.join(allowed)}{suggestion(name, allowed)}" if allowed else ""
        return f"unknown field '{name}'{said}"
    if kind == "missing":
        return "missing"
    if kind == "value_error":
        return str(context.get("error", item["msg"]))
    if kind == "literal_error":
        allowed = [w.strip("'") for w in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]
        return f"found {_found(found)}; allowed: {', '.join(allowed)}{suggestion(str(found), allowed)}"
    if kind == "string_pattern_mismatch":
        if "Ki|Mi" in str(context.get("pattern")):
            return f"found {_found(found)}; allowed: a quantity as 512Mi or 16Gi"
        if r"\x00" in str(context.get("pattern")):
            return f"found {_found(found)}; allowed: an address without control characters"
        return f"found {_found(found)}; allowed: small letters, digits and dashes, a letter or digit at both ends"
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a mapping", str(item["msg"]))
    message = message.replace("Input should be", "allowed:")
    return f"found {_found(found)}; {message[0].lower()}{message[1:]}"


def _found(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value)
    return repr(text if len(text) <= 60 else text[:57] + "...") if isinstance(value, str) else text


def _real_path(path: KeyPath, raw: Any) -> KeyPath:
    """Return the path without the parts that pydantic adds.

    pydantic adds tags and types of unions. A walk of the document finds the real parts.
    """
    out: list[str | int] = []
    here = raw
    for number, part in enumerate(path):
        last = number == len(path) - 1
        if isinstance(here, dict) and part in here:
            out.append(part)
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            out.append(part)
            here = here[part]
        elif last and isinstance(here, dict) and part not in _UNION_PARTS:
            out.append(part)
    return tuple(out)


_UNION_PARTS = ("finetune", "existing", "retain_only", "number", "word", "Rest", "[key]")


_FIELD_KEYS = {"properties", "additionalProperties", "patternProperties"}


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True)


def _fields_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the fields that are allowed at a path.

    A walk of the models' JSON schema finds the fields.
    """
    schema = _schema(model)
    definitions = schema.get("$defs", {})

    def resolve(node: Any) -> list[Any]:
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        options = node.get("anyOf") or node.get("oneOf")
        return [r for o in options for r in resolve(o)] if options else [node]

    nodes = resolve(schema)
    for part in path:
        below = []
        for node in nodes:
            if part in node.get("properties", {}):
                below += resolve(node["properties"][part])
            # The key may be any (additionalProperties), or must match a pattern (patternProperties).
            by_key = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
            below += [r for n in by_key if isinstance(n, dict) for r in resolve(n)]
        # A part that leads to no fields is pydantic's own tag of a union; therefore list every member's fields.
        nodes = below if any(_FIELD_KEYS & n.keys() for n in below) else nodes
    return list(dict.fromkeys(name for node in nodes for name in node.get("properties", {})))
