"""The Experiment as a custom resource.

The module converts ``Spec``'s own schema to the shape that an API server requires.
``python -m expunge_controller.experiment.crd`` prints the definition as YAML. `make crd` writes it into the chart.

Some problems are beyond a schema: an unknown objective, a missing input. The operator reports such a problem in a
condition, in the words of the command.
"""

from __future__ import annotations

from typing import Any

from expunge_jobs import plugins
from expunge_jobs.inputs.hub import NAME_PATTERN, REVISION_PATTERN

from expunge_controller.experiment.presets import PRESETS
from expunge_controller.experiment.resource import GROUP, KIND, PLURAL, VERSION
from expunge_controller.experiment.schema import RESERVED, Finetune, Spec

Schema = dict[str, Any]
MOST = 64
"""Maximum number of specialists, baselines, swept fields and the like. API servers run rules only on bounded values."""
LONGEST = 256
_FREE: Schema = {"x-kubernetes-preserve-unknown-fields": True}
"""A value of more than one type. These schemas cannot express such a value; therefore the operator checks it."""


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


def _filled(name: str) -> str:
    return f"has(self.{name}) && size(self.{name}) > 0"


def _rank(name: str) -> str:
    tune = f"self.specialists[{name}]"
    return f"(has({tune}.rank) ? {tune}.rank : {Finetune.model_fields['rank'].default})"


def _own_factor_methods() -> list[str]:
    """Return our merge methods that act on A and B.

    For methods of other distributions, the operator reports a method that does not fit.
    """
    own = [n for n in plugins.names("merge_methods") if plugins.is_own("merge_methods", n)]
    return [n for n in own if plugins.load("merge_methods", n).ACTS_ON == "factors"]


_RULES: dict[tuple[str, ...], list[Schema]] = {
    (): [
        _rule("has(self.model) || has(self.memorize)", "neither model nor memorize: say which model is to forget"),
        _rule(
            "!has(self.memorize) || has(self.memorize.architecture) != has(self.model)",
            "memorize starts from spec.model or from memorize.architecture: give one of the two",
        ),
        _rule(
            "!has(self.merge) || (has(self.specialists) && size(self.specialists) >= 2)",
            "a merge needs two or more specialists",
        ),
        _rule(
            f"!({_filled('specialists')}) || has(self.merge)",
            "specialists are there to be merged: give merge, or make them baselines",
        ),
        _rule(
            f"({_filled('specialists')}) || ({_filled('baselines')})",
            "nothing to do: give specialists and merge, or baselines",
        ),
        _rule(
            "!has(self.specialists) || !has(self.baselines) || self.specialists.all(n, !(n in self.baselines))",
            "a name is a specialist's and a baseline's: each model has a name of its own",
        ),
        _rule(
            "!has(self.merge) || !has(self.merge.weights) || !has(self.specialists) || "
            "self.merge.weights.all(n, n in self.specialists)",
            "merge.weights names no specialist",
        ),
    ],
    ("kubernetes", "volumes"): [
        _rule("self.all(v, self.exists_one(w, w.mount == v.mount))", "two volumes are mounted at one place"),
        _rule("size(self.filter(v, has(v.cache) && v.cache)) <= 1", "two volumes are the cache: one at most"),
    ],
    ("kubernetes", "volumes", "*"): [
        _rule("has(self.claim) != has(self.size)", "a volume is a claim, or has a size: give one of the two"),
        _rule(
            "!has(self.cache) || !self.cache || (has(self.claim) && !(has(self.read_only) && self.read_only))",
            "a cache is to outlive its pod, and to be written: give a claim that is not read_only",
        ),
    ],
}
"""Pydantic's checks of several fields together, in the API server's rule language, by the path below spec."""
_RULES |= {
    (group,): [
        _rule(
            f"self.all(n, !(n in {list(RESERVED)}))",
            f"{' and '.join(RESERVED)} name other models of the table: choose another name",
        ),
    ]
    for group in ("specialists", "baselines")
}


_RULES[()] += [
    _rule(
        f"!has(self.{group}) || self.{group}.all(n, !has(self.{group}[n].preset) || self.{group}[n].preset in {list(PRESETS)} "
        f"|| (has(self.presets) && self.{group}[n].preset in self.presets))",
        f"{group}: an unknown preset; see `expunge list presets`",
    )
    for group in ("specialists", "baselines")
]
_RULES[()].append(
    _rule(
        "!has(self.specialists) || "
        f"(has(self.merge) && has(self.merge.method) && !(self.merge.method in {_own_factor_methods()})) || "
        "self.specialists.all(a, has(self.specialists[a].adapter) || self.specialists.all(b, "
        f"has(self.specialists[b].adapter) || {_rank('a')} == {_rank('b')}))",
        "specialists of different rank cannot be merged on A and B",
    )
)


_HUB_ADDRESS = _rule(
    f"!self.startsWith('hf://') || self.matches('^hf://{NAME_PATTERN}(@{REVISION_PATTERN})?$')",
    "not a hub model; allowed: hf://org/name@revision",
)
_ADDRESSES = (("model",), ("reference", "model"), ("specialists", "*", "adapter"), ("baselines", "*", "adapter"))
_RULES |= {path: [_HUB_ADDRESS] for path in _ADDRESSES}


def resource_definition() -> Schema:
    """Return the CustomResourceDefinition."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # Experiments must outlive the operator; therefore keep the definition when the chart is uninstalled.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "plural": PLURAL,
                "singular": "experiment",
                "kind": KIND,
                "listKind": "ExperimentList",
                "shortNames": ["exp"],
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        *(
                            {"name": name.capitalize(), "type": "string", "jsonPath": f".status.{name}"}
                            for name in ("phase", "trials", "steps", "best")
                        ),
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
                    ],
                    "schema": {"openAPIV3Schema": _resource_schema()},
                }
            ],
        },
    }


def _resource_schema() -> Schema:
    return {
        "type": "object",
        "description": "Makes a model forget a set of documents and keep the rest: specialised fine-tunes, their merge, and an "
        "evaluation of each.",
        "required": ["spec"],
        "x-kubernetes-validations": [
            _rule("size(self.metadata.name) <= 63", "metadata.name is longer than 63 characters"),
        ],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(),
            "status": _status_schema(),
        },
    }


def spec_schema() -> Schema:
    """Return ``spec`` as a structural schema.

    The schema has no references and no unions. A field has a type unless several types are allowed.
    """
    whole = Spec.model_json_schema(by_alias=True)
    return _Converter(whole.get("$defs", {})).convert(whole, (), defaults=True)


class _Converter:
    def __init__(self, definitions: dict[str, Schema]) -> None:
        self.definitions = definitions

    def convert(self, node: Schema, path: tuple[str, ...], defaults: bool) -> Schema:
        """Convert the schema of a field to a structural schema.

        With ``defaults``, the API server writes default values out. Below a preset, defaults would hide the preset's
        own fields; therefore the schema omits defaults there.
        """
        node = self._resolved(node)
        said = (
            {"description": " ".join(node["description"].split()).replace("``", "`")} if "description" in node else {}
        )
        if path[-1:] == ("objective",) or path[-1:] == ("targets",):
            return said | _FREE
        options = [self._resolved(o) for o in node.get("anyOf") or node.get("oneOf") or []]
        real = [o for o in options if o.get("type") != "null"]
        if len(real) > 1 and all(o.get("type") == "object" for o in real):
            return said | self._either(real, path)
        if len(real) > 1:
            return said | _FREE
        if real:
            out = self.convert(real[0], path, defaults)
            # The API server drops null from a field that is not nullable.
            # Null differs from absence where there is a default; therefore mark such a field.
            nullable = {"nullable": True} if node.get("default") is not None else {}
        else:
            out, nullable = self._plain(node, path, defaults), {}
        out |= said | nullable
        if defaults and node.get("default") not in (None, [], {}) and out.get("type") != "object":
            out["default"] = node["default"]
        return out

    def _plain(self, node: Schema, path: tuple[str, ...], defaults: bool) -> Schema:
        kind = node.get("type")
        if kind is None:
            return dict(_FREE)
        out: Schema = {"type": kind}
        if kind == "object":
            out |= self._object(node, path, defaults)
        elif kind == "array":
            out |= {"items": self.convert(node.get("items", {}), (*path, "*"), defaults=False), "maxItems": 1024}
            out |= {"minItems": node["minItems"]} if "minItems" in node else {}
            out |= {"maxItems": 16} if path[-1:] == ("volumes",) else {}
        elif kind == "string":
            out |= {k: node[k] for k in ("minLength", "maxLength", "pattern", "enum") if k in node}
            out |= {"maxLength": LONGEST} if path[-1:] in (("mount",), ("claim",)) else {}
            out |= {"enum": [node["const"]]} if "const" in node else {}
            out |= {"maxLength": 40} if path[-1:] == ("preset",) else {}  # rules compare it
        for bound, name, exclusive in (
            ("ge", "minimum", False),
            ("gt", "minimum", True),
            ("le", "maximum", False),
            ("lt", "maximum", True),
        ):
            value = node.get(bound)
            if value is not None and abs(value) < 2**62:
                out |= {name: value} | ({f"exclusive{name.capitalize()}": True} if exclusive else {})
        rules = [*out.get("x-kubernetes-validations", []), *_RULES.get(path, [])]
        return out | ({"x-kubernetes-validations": rules} if rules else {})

    def _object(self, node: Schema, path: tuple[str, ...], defaults: bool) -> Schema:
        fields = node.get("properties")
        if fields:
            known = {n: self.convert(f, (*path, n), defaults) for n, f in fields.items()}
            out: Schema = {"properties": known}
            if path == ("merge",):  # a method's own parameters stand beside ``method``
                del known["parameters"]
                out |= _FREE
            return out | ({"required": node["required"]} if node.get("required") else {})
        by_pattern = node.get("patternProperties", {})
        values = next(iter(by_pattern.values()), node.get("additionalProperties"))
        if not isinstance(values, dict):
            return dict(_FREE)
        keys = [
            _rule(f"self.all(k, k.matches(r'{pattern}'))", f"a key has to match {pattern}") for pattern in by_pattern
        ]
        out = {"additionalProperties": self.convert(values, (*path, "*"), defaults=False), "maxProperties": MOST}
        return out | ({"x-kubernetes-validations": keys} if keys else {})

    def _either(self, options: list[Schema], path: tuple[str, ...]) -> Schema:
        """Convert a union of object kinds to one object schema.

        The schema has the fields of all kinds. Rules keep the kinds apart.
        """
        fields: Schema = {}
        for option in options:
            fields |= {n: self.convert(f, (*path, n), defaults=False) for n, f in option["properties"].items()}
        tags = [next(iter(o["properties"])) for o in options if len(o["properties"]) == 1]
        typed = [n for n, field in fields.items() if "type" in field]  # a rule cannot see an untyped field
        rules = [
            _rule(f"!has(self.{t}) || !({' || '.join(f'has(self.{n})' for n in typed if n != t)})", f"{t} stands alone")
            for t in tags
        ]
        return {"type": "object", "properties": fields, "x-kubernetes-validations": rules}

    def _resolved(self, node: Schema) -> Schema:
        if "$ref" in node:
            return self.definitions[node["$ref"].rsplit("/", 1)[-1]] | {k: v for k, v in node.items() if k != "$ref"}
        return node


def _status_schema() -> Schema:
    text, whole = {"type": "string"}, {"type": "integer"}
    condition = {
        "type": "object",
        "required": ["type", "status", "reason", "message", "lastTransitionTime"],
        "properties": {
            "type": text,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": text,
            "message": text,
            "lastTransitionTime": {"type": "string", "format": "date-time"},
            "observedGeneration": whole,
        },
    }
    return {
        "type": "object",
        "properties": {
            "observedGeneration": whole,
            "phase": {
                **text,
                "description": "Pending, Running, Suspended, Complete, Failed, Cancelled, Invalid or Held.",
            },
            "trials": {**text, "description": "Whose every model is evaluated, of all."},
            "steps": {**text, "description": "Done, of all."},
            "best": {
                **text,
                "description": "The model of the highest task aggregate (of the merges, where there are any).",
            },
            "store": {**text, "description": "Where this namespace's artifacts lie."},
            "digest": {**text, "description": "Of this generation: its record and failures lie below it in the store."},
            "image": {**text, "description": "The jobs image that this generation began with, and keeps."},
            "retried": {**text, "description": "The last value of the annotation expunge.dev/retry that was followed."},
            "counts": {"type": "object", "additionalProperties": whole, "description": "Steps by their state."},
            "reasons": {
                "type": "array",
                "description": "Why steps are not done: at most ten reasons.",
                "items": {"type": "object", "properties": {"step": text, "reason": text, "count": whole}},
            },
            "conditions": {
                "type": "array",
                "items": condition,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        },
    }


if __name__ == "__main__":
    import sys

    import yaml

    sys.stdout.write("# Made by `make crd` from controller/expunge_controller/experiment/schema.py.\n")
    yaml.safe_dump(resource_definition(), sys.stdout, sort_keys=False, width=120)
