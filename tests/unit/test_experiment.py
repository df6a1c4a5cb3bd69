"""The experiment file: every error with its line, path, what is allowed and the nearest word; the plan and its keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from expunge_controller.document import ExperimentError
from expunge_controller.experiment import load_experiment
from expunge_controller.plan import Plan
from expunge_controller.resolve import resolve

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
        ("data.forget=/no/such/file", "/no/such/file: no such file"),
        ("data.forget=builtin://peple/forget", "did you mean 'people'?"),
        ("sweep.merge.density=[0.2, 5]", "spec.sweep.merge.density[1]"),
        ("data.retain=builtin://people/forget", "rows are in forget and in retain"),
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
    ],
)
def test_what_is_no_experiment_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert said in _problems(file=file)


def test_alias_bomb_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.yaml"
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    file.write_text("\n".join(levels))
    assert "aliases" in _problems(file=file)


def test_sweep_shares_every_step_in_common() -> None:
    plan = _plan("sweep.seed=[0,1,2,3,4]", "sweep.merge.density=[0.2,0.4,0.6,0.8,1.0]")
    counts = {k: sum(s.kind == k for s in plan.steps) for k in ("memorize", "finetune", "merge", "evaluate")}
    assert counts == {"memorize": 1, "finetune": 10, "merge": 25, "evaluate": 46}
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
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    plan = _plan(
        "specialists.third={preset: npo}",
        f"baselines.outside={{adapter: {tmp_path}}}",
        "baselines.never={memorize: {}}",
    )
    models = [m.model for m in plan.models]
    assert {"third", "outside", "never", "control:third@0.5"} <= set(models)
    assert sum(s.kind == "memorize" for s in plan.steps) == 2
