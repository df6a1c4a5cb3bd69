"""Plugins of other distributions: found without an import, named in keys, kept apart where one is broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from expunge_controller.cli.main import main
from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.results import scores
from expunge_jobs.tasks.tasks import parse_task

from tests.unit.test_metrics import twelve

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
OBJECTIVE = '''
"""Louder forgetting."""
from expunge_jobs.objectives import Needs, TermParameters
VERSION = 3
Parameters = TermParameters
def needs(parameters): return Needs(sets=("forget",))
def values(parameters, rows): raise AssertionError("no step runs here")
'''
METRIC = '''
"""Rows, counted."""
from expunge_jobs.metrics import Column
VERSION = 1
COLUMNS = (Column("rows", "count"),)
def compute(rows): return {"count": float(len(rows))}
'''
BROKEN = "import a_module_that_nobody_has\n"
Install = Callable[[str, str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution with one plugin where Python finds it, as an installer does."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def forget() -> None:
        for cached in (plugins._sources, plugins.names, plugins.load, scores.columns):
            cached.cache_clear()

    made: list[str] = []

    def install(distribution: str, family: str, name: str, code: str) -> None:
        module = f"{distribution.replace('-', '_')}_{name}"
        made.append(module)
        (site / f"{module}.py").write_text(code)
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[expunge.{family}]\n{name} = {module}\n")
        forget()

    yield install
    monkeypatch.undo()
    for module in made:
        sys.modules.pop(module, None)
    forget()


def test_a_name_is_found_without_an_import(install: Install) -> None:
    install("acme", "objectives", "louder", BROKEN)
    assert "louder" in plugins.names("objectives")
    assert "acme_louder" not in sys.modules


def test_a_key_holds_the_distribution_the_name_and_the_version(install: Install) -> None:
    install("acme-forgetting", "objectives", "louder", OBJECTIVE)
    plan = resolve(load_experiment(QUICKSTART, ["specialists.over.objective={louder: 1, nll: 1}"])).plan
    task = next(s.task for s in plan.steps if s.name == "finetune over")
    assert task.plugins == {"objectives/acme-forgetting:louder": 3, "objectives/nll": 1}
    assert parse_task(task.to_json()) == task
    with pytest.raises(BadTask, match="needs objectives/acme-forgetting:louder version 2, this code has 3"):
        parse_task(task.to_json().replace('louder":3', 'louder":2'))


def test_a_task_of_another_distribution_s_plugin_is_refused(install: Install) -> None:
    install("acme", "objectives", "louder", OBJECTIVE)
    plan = resolve(load_experiment(QUICKSTART, ["specialists.over.objective=louder"])).plan
    text = next(s.task for s in plan.steps if s.name == "finetune over").to_json()
    with pytest.raises(BadTask, match="'louder' is of the distribution acme here, not of other"):
        parse_task(text.replace("acme:louder", "other:louder"))


@pytest.mark.parametrize(("name", "owners"), [("louder", "acme and other"), ("npo", "acme and expunge")])
def test_a_name_that_two_claim_is_an_error_that_names_both(install: Install, name: str, owners: str) -> None:
    install("acme", "objectives", name, OBJECTIVE)
    if name == "louder":
        install("other", "objectives", name, OBJECTIVE)
    with pytest.raises(ExperimentError, match=f"objective '{name}' is claimed by {owners}"):
        load_experiment(QUICKSTART, [f"specialists.over.objective={name}"])
    assert plugins.version("objectives", "nll") == 1, "the others are as they were"


def test_a_broken_plugin_is_named_and_spoils_nothing_else(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("acme", "objectives", "louder", BROKEN)
    resolve(load_experiment(QUICKSTART))
    with pytest.raises(ExperimentError, match="objective 'louder' of the distribution acme cannot be imported: Module"):
        load_experiment(QUICKSTART, ["specialists.over.objective=louder"])
    assert main(["list", "objectives"]) == 0
    told = capsys.readouterr().out
    assert "NOT USABLE: objective 'louder' of the distribution acme cannot be imported" in told
    assert "Negative preference optimization" in told


def test_a_plugin_that_lacks_something_says_what(install: Install) -> None:
    install("acme", "merge_methods", "mine", "VERSION = 1\n")
    with pytest.raises(ExperimentError, match="lacks Parameters, RANDOM, ACTS_ON, merge; see"):
        load_experiment(QUICKSTART, ["merge={method: mine}"])


def test_a_metric_brings_its_columns(install: Install) -> None:
    install("acme", "metrics", "counted", METRIC)
    assert [c.title for c in scores.columns()][-1] == "rows"
    assert scores.compute_all([])["counted"]["values"] == {"count": 0.0}


@pytest.mark.parametrize(
    ("code", "reason"),
    [(BROKEN, "cannot be imported"), (METRIC.replace("float(len(rows))", "1 / 0"), "ZeroDivisionError in the metric")],
)
def test_a_metric_that_fails_spoils_no_other(install: Install, code: str, reason: str) -> None:
    install("acme", "metrics", "counted", code)
    found = scores.compute_all([])
    assert reason in found["counted"]["reasons"]["counted"]
    assert found["semeval"]["version"] == 1
    assert next(c.title for c in scores.columns()) == "aggregate"


METHOD = """
from pydantic import BaseModel
VERSION, RANDOM, ACTS_ON = 1, False, "factors"
class Parameters(BaseModel):
    gain: float = 1.0
def merge(given, parameters): return given.tensors[0]
"""


@pytest.mark.parametrize(
    ("family", "code", "words"),
    [
        ("merge_methods", METHOD.replace("= 1,", "= 1.9,"), "VERSION is 1.9; allowed: a whole number"),
        ("merge_methods", METHOD.replace('"factors"', '"both"'), "ACTS_ON is 'both'; allowed: factors, deltas"),
        ("merge_methods", METHOD.replace("gain", "weights"), "a field 'weights', which is a merge's own"),
        ("merge_methods", METHOD.replace("(BaseModel)", ""), "Parameters is no subclass of BaseModel"),
        ("merge_methods", "raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("objectives", OBJECTIVE.replace("= TermParameters", "= dict"), "Parameters is no subclass of TermParameters"),
        ("metrics", METRIC.replace('(Column("rows", "count"),)', '"count"'), "COLUMNS is no sequence of Column"),
        ("metrics", METRIC.replace('"count"),', '"count", "up"),'), "better='up'"),
    ],
)
def test_a_plugin_with_a_wrong_attribute_is_not_usable(install: Install, family: str, code: str, words: str) -> None:
    install("acme", family, "mine", code)
    with pytest.raises(plugins.PluginError, match="of the distribution acme") as refused:
        plugins.load(family, "mine")
    assert words in str(refused.value)
    assert plugins.description(family, "mine").startswith("NOT USABLE")


def test_a_name_that_no_file_could_have_is_said(install: Install) -> None:
    install("acme", "objectives", "Louder", OBJECTIVE)
    assert "a name is of small letters, digits and _" in plugins.description("objectives", "Louder")


def test_a_validator_that_breaks_is_named(install: Install) -> None:
    code = METHOD.replace("    gain", "    def model_post_init(self, _): raise KeyError('x')\n    gain")
    install("acme", "merge_methods", "mine", code)
    with pytest.raises(ExperimentError, match="of the distribution acme: its Parameters fail: KeyError: 'x'"):
        load_experiment(QUICKSTART, ["merge={method: mine}"])


@pytest.mark.parametrize(
    "body",
    [
        "rows.clear(); return {}",
        "rows[0].score = 0.0; return {}",
        "return {'task_aggregate': 1.0}",
        "raise SystemExit(2)",
        "return [1]",
    ],
)
def test_a_metric_that_meddles_moves_no_own_score(install: Install, body: str) -> None:
    before = scores.compute_all(twelve())
    install("acme", "metrics", "aaa", METRIC.replace('return {"count": float(len(rows))}', body))
    found = scores.compute_all(twelve())
    assert {k: v for k, v in found.items() if k != "aaa"} == before
    assert found["aaa"]["values"].get("task_aggregate") is None
    if "task_aggregate" in body:
        assert "gives the score 'task_aggregate', which is 'semeval's" in found["aaa"]["reasons"]["aaa"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("float('nan')", "the number nan"),
        ("'high'", "no number, but a str"),
        ("True", "but a bool"),
        ("10**400", "large"),
    ],
)
def test_what_is_no_number_is_no_score(install: Install, value: str, reason: str) -> None:
    install("acme", "metrics", "counted", METRIC.replace("float(len(rows))", value))
    found = scores.compute_all([])["counted"]
    assert found["values"] == {"count": None}
    assert reason in found["reasons"]["count"]
