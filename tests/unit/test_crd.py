"""The custom resource's definition follows from the experiment's own types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from expunge_controller.experiment.crd import resource_definition, spec_schema
from expunge_controller.experiment.schema import Spec

CHART = Path(__file__).parents[2] / "charts" / "expunge"


def test_the_chart_has_the_definition_of_today() -> None:
    assert yaml.safe_load((CHART / "files" / "crd.yaml").read_text()) == resource_definition(), "run `make crd`"


def test_every_field_of_spec_is_described() -> None:
    schema = spec_schema()
    assert set(schema["properties"]) == set(Spec.model_fields)
    assert list(_undescribed(schema, "spec")) == []


def _undescribed(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        if not field.get("description"):
            yield f"{path}.{name}"
        yield from _undescribed(field, f"{path}.{name}")
    for below in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(below, dict):
            yield from _undescribed(below, f"{path}.*")


def test_what_a_preset_says_is_not_hidden_by_defaults() -> None:
    specialists = spec_schema()["properties"]["specialists"]["additionalProperties"]
    assert "learning_rate" in specialists["properties"]
    assert list(_defaults(specialists)) == []


def test_null_is_kept_where_it_says_something() -> None:
    memorize = spec_schema()["properties"]["memorize"]["properties"]
    assert memorize["stop_at"]["nullable"]
    assert "nullable" not in memorize["architecture"]


def _defaults(node: Any) -> Iterator[Any]:
    if isinstance(node, dict):
        if "default" in node and "type" in node:
            yield node
        for below in node.values():
            yield from _defaults(below)
