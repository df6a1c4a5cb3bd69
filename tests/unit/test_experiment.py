"""The experiment file: every error with its line, path, what is allowed and the nearest word; the plan and its keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from expunge_controller.errors import ExperimentError
from expunge_controller.experiment.loading import load_experiment, load_resource
from expunge_controller.experiment.schema import Finetune
from expunge_controller.planning.plan import Plan
from expunge_controller.planning.resolve import resolve
from expunge_jobs.tasks.tasks import MemorizeTask

from tests.support.folders import adapter, model

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def _plan(*overrides: str) -> Plan:
    return resolve(load_experiment(QUICKSTART, list(overrides))).plan


def _problems(*overrides: str, file: Path = QUICKSTART) -> str:
    with pytest.raises(ExperimentError) as caught:
        resolve(load_experiment(file, list(overrides)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("merge.densty=0.5", "did you mean 'density'?"),
        ("merge.density=1.5", "allowed: less than or equal to 1"),
        ("merge.method=tis", "did you mean 'ties'?"),
        ("specialists.over.preset=ovr", "did you mean 'over'?"),
        ("specialists.over.objective=npoo", "did you mean 'npo'?"),
        ("data.max_lenth=3", "did you mean 'max_length'?"),
        ("seed=true", "found a truth value where a number belongs"),
        ("specialists.over.rank=8", "specialists of different rank"),
        ("specialists={over: {preset: over}}", "two or more specialists, found 1"),
        ("data.forget=/no/such/file", "--set data.forget: spec.data.forget: /no/such/file: no such file"),
        ("data.forget=builtin://peple/forget", "did you mean 'people'?"),
        ("sweep.merge.density=[0.2, 5]", "spec.sweep.merge.density[1]"),
        ("data.retain=builtin://people/forget", "the row is in forget and in retain"),
        ("model=/no/such/model", "give one of the two"),
        ("memorize=null", "neither model nor memorize"),
        ("merge=null", "give merge, or make them baselines"),
        ("specialists={}", "a merge needs two or more specialists, found 0"),
        ("specialists.base={preset: npo}", "'base' names another model of the table"),
        ("specialists.Over={preset: over}", "allowed: small letters, digits and dashes"),
        ("baselines.over={preset: npo}", "'over' is a specialist and a baseline"),
        ("merge.weights={ovr: 1}", "did you mean 'over'?"),
        ("merge.weights={over: heavy}", "spec.merge.weights.over: found 'heavy'"),
        ("merge.method=[ties]", "spec.merge.method: found a list"),
        ("merge=ties", "spec.merge: found 'ties'"),
        ("data=rows.jsonl", "spec.data: found 'rows.jsonl'; allowed: a mapping"),
        ("baselines.x={memorise: {}}", "did you mean 'memorize'?"),
        ("baselines.x={adapter: x, rnk: 3}", "did you mean 'rank'?"),
        ("baselines.x={memorize: {epoch: 3}}", "spec.baselines.x.memorize.epoch: unknown field 'epoch'"),
        ("baselines.x={memorize: {epoch: 3}}", "did you mean 'epochs'?"),
        ("baselines.x={memorize: {architecture: null}}", "spec.model or from baselines.x.memorize.architecture"),
        ("specialists.over.targets=[]", "targets is empty"),
        ("specialists.over.objective={npo: 0}", "every term of this objective has weight 0"),
        ("data.probe={from: forget}", "spec.data.probe.documents: missing"),
        ("data.probe={from: members, documents: 2}", "allowed: forget, retain"),
        ("specialists.over.objective={npo: {weigth: 1}}", "did you mean 'weight'?"),
        ("specialists.over={adaptor: x}", "did you mean 'adapter'?"),
        ("specialists.over.learning_rate=0", "greater than 0"),
        ("specialists.over.learning_rate=.nan", "spec.specialists.over.learning_rate"),
        ("evaluate.controls=[0]", "spec.evaluate.controls[0]: found 0; allowed: greater than 0"),
        ("evaluate.controls=[1]", "1 is the specialist itself"),
        ("evaluate.controls=[2, 2.0]", "2.0 is there twice"),
        ("evaluate.controls=[nrm]", "did you mean 'norm'?"),
        ("resources.finetune.memory=lots", "allowed: a quantity as 512Mi or 16Gi"),
        ("sweep.merge.density=[0.5, 0.5]", "the same value twice"),
        ("sweep.merge.density=[0.5, '5e-1']", "the same value twice"),
        ("sweep.parallel=[1, 2]", "changes no result"),
        ("sweep.seed & parallel=[1, 2]", "'parallel' changes no result"),
        ("sweep.seed & seed=[1, 2]", "'seed' is swept twice"),
        ("sweep={seed: [1], seed & data.seed: [1]}", "'seed' is swept twice"),
        ("sweep.seed & data.sed=[1, 2]", "did you mean 'seed'?"),
        ("reference={model: a, memorize: {}}", "'memorize' cannot stand beside the other fields here"),
        ("reference={}", "spec.reference.memorize: missing"),
        ("reference={memorize: {epoch: 3}}", "did you mean 'epochs'?"),
        ("reference={model: /not/there}", "/not/there"),
        ("sweep.merge.densty=[0.5]", "did you mean 'density'?"),
        ("sweep.seed=[]", "at least 1 item"),
        ("sweep.seed=3", "spec.sweep.seed: found 3; allowed: a valid list"),
        ("merge.density.low=1", "something above it is a plain value"),
        ("merge.density", "allowed: path=value"),
        ("merge.density=[", "the value is not YAML"),
        ("metadata=x", "unknown field 'metadata'"),
    ],
)
def test_bad_values_are_refused_in_words(override: str, said: str) -> None:
    assert said in _problems(override)


def test_every_error_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    text = (
        QUICKSTART.read_text().replace("density: 0.8", "densty: 0.8").replace("preset: over_code", "preset: overcode")
    )
    file.write_text(text)
    problems = _problems(file=file)
    for word in ("densty", "overcode"):
        line = 1 + next(n for n, row in enumerate(text.splitlines()) if word in row)
        assert f"x.yaml:{line}:" in problems


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("- a\n", "found a list"),
        ("a: [\n", "not YAML"),
        ("a: 1\na: 2\n", "the same key twice"),
        ("kind: Job\n", "allowed: Experiment"),
        ("just words\n", "found a single value"),
        ("? [a, b]\n: 1\n", "a key that is no text"),
        ("a: !!python/object:os.system {}\n", "not YAML"),
        ("a: \x00\n", "not YAML"),
        ("[" * 2000, "not YAML"),
        ("a: " + "[" * 60 + "]" * 60, "deeper than any experiment"),
    ],
)
def test_what_is_no_experiment_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert said in _problems(file=file)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "no such file" in _problems(file=tmp_path / "none.yaml")
    assert "is a folder; allowed: an experiment file" in _problems(file=tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    assert "not UTF-8 text" in _problems(file=tmp_path / "latin.yaml")


def test_values_that_fit_alone_but_not_together_name_the_trial() -> None:
    together = ("sweep.memorize.architecture.heads=[4, 3]", "sweep.memorize.architecture.hidden_size=[192, 128]")
    said = _problems(*together)
    assert "trial memorize.architecture.heads=3,memorize.architecture.hidden_size=128: " in said
    assert "hidden_size 128 is not an even multiple of heads 3" in said


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    file.write_text("\n".join(levels))
    assert "aliases" in _problems(file=file)


def test_a_control_of_the_merge_s_norm_needs_the_merge() -> None:
    plan = _plan("evaluate.controls=[1.5, norm]")
    steps = {s.name: s for s in plan.steps}
    merge = steps["merge"].key
    assert merge in steps["evaluate control:over@norm"].needs
    assert merge not in steps["evaluate control:over@1.5"].needs


def test_a_sweep_below_a_plain_value_says_so() -> None:
    with pytest.raises(ExperimentError, match=r"'forget' has a plain value in the file: nothing below it can be swept"):
        load_experiment(QUICKSTART, ["data={forget: rows.jsonl, retain: rows.jsonl}", "sweep.data.forget.path=[a, b]"])


def test_a_sweep_is_counted_before_it_is_built() -> None:
    began = time.monotonic()
    with pytest.raises(ExperimentError, match=r"spec.sweep: 1,048,576 trials \(1024 x 1024\); allowed: at most 5,000"):
        load_experiment(QUICKSTART, [f"sweep.seed={list(range(1024))}", f"sweep.data.seed={list(range(1024))}"])
    assert time.monotonic() - began < 30, "not one of them"  # building them takes ten minutes
    assert len(load_experiment(QUICKSTART, [f"sweep.seed={list(range(100))}"]).trials) == 100
    raw = {"apiVersion": "expunge.dev/v1alpha1", "kind": "Experiment", "metadata": {"name": "x", "namespace": "y"}}
    spec = yaml.safe_load(QUICKSTART.read_text())["spec"] | {"sweep": {"seed": [1, 2, 3]}}
    assert len(load_resource(raw | {"spec": spec}, 3).trials) == 3
    with pytest.raises(ExperimentError, match="3 trials; allowed: at most 2"):
        load_resource(raw | {"spec": spec}, 2)


def test_models_to_judge_are_counted_too() -> None:
    controls = [round((n + 1) / 1001, 6) for n in range(1000)]
    with pytest.raises(ExperimentError, match="100,250 models to judge, over all trials; allowed: at most 100,000"):
        load_experiment(QUICKSTART, [f"sweep.seed={list(range(50))}", f"evaluate.controls={controls}"])


def test_seeds_of_data_base_and_unlearning_are_swept_together() -> None:
    loaded = load_experiment(QUICKSTART, ["sweep.seed & data.seed & memorize.seed=[0, 7]", "sweep.merge.density=[0.5]"])
    assert [(t.spec.seed, t.spec.data.seed, t.spec.memorize.seed) for t in loaded.trials if t.spec.memorize] == [
        (0, 0, 0),
        (7, 7, 7),
    ]
    assert [t.group for t in loaded.trials] == ["merge.density=0.5"] * 2
    assert loaded.trials[1].name == "merge.density=0.5,seed & data.seed & memorize.seed=7"


def test_a_reference_is_a_memorize_without_forget_or_a_model(tmp_path: Path) -> None:
    plan = _plan("reference={memorize: {}}", "baselines={}")
    steps = {s.name: s for s in plan.steps}
    assert steps["memorize reference"].key in steps["evaluate reference"].needs
    assert steps["memorize reference"].task.only == ("retain", "probe")  # type: ignore[union-attr]
    assert [m.role for m in plan.models if m.model == "reference"] == ["reference"]
    given = model(tmp_path / "m")
    outside = _plan(f"reference={{model: {given}}}")
    [row] = [m for m in outside.models if m.role == "reference"]
    assert row.ref is not None and row.ref.base.uri == f"file://{given}"  # type: ignore[union-attr]


def test_a_reference_begins_as_the_model_that_it_is_compared_with() -> None:
    steps = {s.name: s.task for s in _plan("reference={memorize: {epochs: 2}}").steps}
    base, reference = steps["memorize"], steps["memorize reference"]
    assert isinstance(base, MemorizeTask) and isinstance(reference, MemorizeTask)
    assert base.only is None
    assert reference.data == base.data and reference.only == ("retain", "probe")
    assert reference.settings == base.settings.model_copy(update={"epochs": 2})
    assert reference.architecture == base.architecture


def test_a_memorize_from_a_model_trains_gently_and_in_float32(tmp_path: Path) -> None:
    def memorize(*words: str) -> MemorizeTask:
        given = (f"model={model(tmp_path / 'm')}", "memorize={epochs: 2}", "dtype=bfloat16", *words)
        (task,) = [s.task for s in _plan(*given).steps if s.kind == "memorize"]
        assert isinstance(task, MemorizeTask)
        return task

    assert (memorize().settings.learning_rate, memorize().dtype) == (1e-4, "float32")
    given = memorize("memorize.learning_rate=5e-5", "memorize.dtype=bfloat16")
    assert (given.settings.learning_rate, given.dtype) == (5e-5, "bfloat16")
    (scratch,) = [s.task for s in _plan("memorize={architecture: {}}").steps if s.kind == "memorize"]
    assert scratch.settings.learning_rate == 3e-3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "kind", "system"),
    [("chat", "chat", None), ("none", "none", None), ("{system: Be brief.}", "chat", "Be brief.")],
)
def test_a_template_is_a_word_or_an_object(given: str, kind: str, system: str | None) -> None:
    tasks = [s.task for s in _plan(f"data.template={given}").steps if s.kind == "evaluate"]
    assert {(t.data.template.kind, t.data.template.system) for t in tasks} == {(kind, system)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{kind: none, system: x}", "kind has to be chat"),
        ("{knid: chat}", "did you mean 'kind'?"),
        ("chta", "did you mean 'chat'?"),
        ("{arguments: {date: 2024-01-01}}", "data.template.arguments.date"),
        ("{arguments: {a: .nan}}", "data.template.arguments"),
    ],
)
def test_a_template_that_is_none_is_refused(given: str, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        _plan(f"data.template={given}")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ('separator="\\ud800"', "separator"),
        ('template={system: "\\udfff"}', "template.system"),
        ('template={arguments: {a: ["\\ud800"]}}', "template.arguments.a"),
    ],
)
def test_half_a_character_is_refused_where_it_stands(given: str, place: str) -> None:
    said = _problems(f"data.{given}")
    assert f"spec.data.{place}: half of a surrogate pair" in said
    assert said.encode()


def test_whole_numbers_of_a_template_are_as_an_api_server_writes_them() -> None:
    keys = [
        [s.key for s in _plan(f"data.template={{arguments: {{a: {n}, b: [{n}]}}}}").steps[:-1]] for n in ("1", "1.0")
    ]
    assert keys[0] == keys[1]
    addresses = [
        {s.key for s in _plan(f"data.template={{arguments: {{uri: {u}}}}}").steps if s.kind == "evaluate"} for u in "ab"
    ]
    assert not addresses[0] & addresses[1], "a template's uri is no address of an input"


def test_a_retain_only_baseline_is_read_as_a_reference() -> None:
    plan = _plan("baselines={never: {memorize: {}}}")
    assert {m.model: m.role for m in plan.models}["never"] == "reference"


def test_sweep_shares_every_step_in_common() -> None:
    plan = _plan("sweep.seed=[0,1,2,3,4]", "sweep.merge.density=[0.2,0.4,0.6,0.8,1.0]")
    counts = {k: sum(s.kind == k for s in plan.steps) for k in ("memorize", "finetune", "merge", "evaluate")}
    assert counts == {"memorize": 1, "finetune": 15, "merge": 25, "evaluate": 81}
    assert len(plan.trials) == 25
    names = {s.name for s in plan.steps}
    assert "finetune over seed=0" in names
    assert "merge merge.density=0.2,seed=0" in names


def test_keys_do_not_depend_on_how_a_value_is_written() -> None:
    keys = [s.key for s in _plan("merge.density=0.5").steps]
    assert keys == [s.key for s in _plan("merge.density=5.0e-1").steps]
    assert keys == [s.key for s in _plan("merge.density='5e-1'").steps]
    assert keys != [s.key for s in _plan("merge.density=0.6").steps]


def test_more_specialists_baselines_and_adapters_plan(tmp_path: Path) -> None:
    adapter(tmp_path)
    plan = _plan(
        "specialists.third={preset: npo}",
        f"baselines.outside={{adapter: {tmp_path}}}",
        "baselines.never={memorize: {}}",
    )
    models = [m.model for m in plan.models]
    assert {"third", "outside", "never", "control:third@0.5"} <= set(models)
    assert sum(s.kind == "memorize" for s in plan.steps) == 2


FULL = """\
apiVersion: expunge.dev/v1alpha1
kind: Experiment
metadata: {name: full, namespace: n, labels: {a: b}, annotations: {}}
spec:
  memorize:
    architecture: {type: llama, vocab_size: 300, hidden_size: 32, layers: 1, heads: 2, intermediate_size: 64}
    epochs: 2
    learning_rate: 1.0e-3
    batch_size: 4
    weight_decay: 0
    warmup: 0.1
    stop_at: 1.0
    seed: 3
  data:
    forget: builtin://people/forget
    retain: builtin://people/retain
    probe: {from: retain, documents: 1}
    nonmembers: builtin://people/nonmembers
    documents: 2
    seed: 1
    separator: ""
    template: none
    max_length: 64
    overlap: refuse
  seed: 4
  dtype: float32
  specialists:
    over: {preset: over, rank: 4, alpha: 4, targets: [q_proj], gradient_checkpointing: true, dropout: 0}
    under: {objective: {npo: {weight: 1, beta: 0.2, normalization: token}, nll: 1}, rank: 4, targets: [q_proj]}
  baselines:
    one: {objective: gradient_ascent, batch_size: 2, accumulation: 2, epochs: 1, clip: 1}
    never: {memorize: {epochs: 1}}
  merge: {method: dare_ties, density: 0.5, weights: {over: 1}}
  evaluate: {batch_size: 4, max_new_tokens: 8, controls: [0.5]}
  sweep: {seed: [0, 1], merge.density: [0.2]}
  parallel: 2
  resources: {finetune: {gpu: 1, memory: 1Gi}}
  kubernetes: {}
"""
JUNK = [
    None,
    True,
    -1,
    0,
    2,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "junk",
    "1e400",
    "a=b",
    [],
    [None],
    [[]],
    {},
    {"": None},
    {"junk": {"junk": []}},
]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, below in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from _paths(below, (*path, key))


@pytest.mark.parametrize("path", list(_paths(yaml.safe_load(FULL))), ids=lambda p: ".".join(map(str, p)))
def test_whatever_stands_in_a_field_it_is_planned_or_refused_in_words(tmp_path: Path, path: tuple[Any, ...]) -> None:
    for junk in JUNK:
        raw = yaml.safe_load(FULL)
        here = raw
        for key in path[:-1]:
            here = here[key]
        here[path[-1]] = junk
        file = tmp_path / "full.yaml"
        file.write_text(yaml.safe_dump(raw))
        try:
            resolve(load_experiment(file))
        except ExperimentError as error:
            for line in error.problems:
                assert line.startswith((str(tmp_path), "builtin://", "hf://")), line
                assert "Input should" not in line, line


PRESET = "presets={mine: {objective: {npo: 1}, epochs: 7, learning_rate: 1.0e-3}}"


def test_a_preset_of_the_file_s_own() -> None:
    given = [PRESET, "specialists.over={preset: mine, epochs: 2}", "specialists.under={preset: mine}"]
    over, under = load_experiment(QUICKSTART, given).experiment.spec.specialists.values()
    assert isinstance(over, Finetune) and isinstance(under, Finetune)
    assert (over.epochs, under.epochs) == (2, 7)
    assert [c.name for c in over.objective] == ["npo"]
    assert over.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ([PRESET, "specialists.over={preset: mnie}"], "specialists.over.preset: unknown preset 'mnie'; one of: over,"),
        ([PRESET, "specialists.over={preset: mnie}"], "did you mean 'mine'?"),
        (["presets={mine: {objective: npo, epoch: 7}}"], "spec.presets.mine.epoch: unknown field 'epoch'"),
        (["presets={mine: {epochs: 7}}"], "spec.presets.mine.objective: missing"),
        (["presets={over: {objective: npo}}"], "'over' is a preset that there is already"),
    ],
)
def test_a_wrong_preset_of_the_file_s_own(sets: list[str], words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(QUICKSTART, sets)
    assert words in "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ("merge.parameters={densty: 5}", "spec.merge.parameters.densty: unknown field of method ties; allowed: "),
        ("merge.parameters={densty: 5}", "did you mean 'density'?"),
        ("merge.parameters=5", "spec.merge.parameters: found 5; allowed: a mapping of the method's parameters"),
    ],
)
def test_a_merge_s_parameters_are_checked_wherever_they_stand(sets: str, words: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment(QUICKSTART, ["merge={method: ties}", sets])
    assert words in "\n".join(caught.value.problems)


def test_a_parameter_below_parameters_is_the_same_as_beside_the_method() -> None:
    file = ["merge={method: ties, parameters: {density: 0.5}}", "merge={method: ties, density: 0.5}"]
    below, beside = (resolve(load_experiment(QUICKSTART, [text])).plan for text in file)
    assert [s.key for s in below.steps] == [s.key for s in beside.steps]
    with pytest.raises(ExperimentError, match=r"spec.merge.parameters.density: found 7; "):
        load_experiment(QUICKSTART, ["merge={method: ties, parameters: {density: 7}}"])
