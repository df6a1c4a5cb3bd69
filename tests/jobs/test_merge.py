"""Merges against PEFT's own ``add_weighted_adapter``, and what cannot be merged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from expunge_jobs import plugins
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.merge_methods import Deltas, Factors, NoParameters
from expunge_jobs.modeling.adapters import Adapter, adapter_config, lora_targets, write_adapter
from expunge_jobs.modeling.base_weights import BaseWeights
from expunge_jobs.modeling.loading import load_base
from expunge_jobs.plugins import PluginCall
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import merge
from expunge_jobs.tasks.references import ArtifactRef, Input, ModelRef, TaskData
from expunge_jobs.tasks.tasks import FinetuneTask, MergeTask, WeightedAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.jobs import tiny_models as tiny

WEIGHTS, ALPHAS, RANK, DENSITY = (1.0, 0.5, -0.7), (8.0, 4.0, 2.0), 4, 0.6


def write(
    folder: Path, seed: int, alpha: float = 8.0, rank: int = RANK, targets: tuple[str, ...] = (), **config: Any
) -> Path:
    """An adapter whose A has moved a little from a start that all share, and whose B is not zero."""
    made = tiny.model()
    names = lora_targets(made, targets or "all-linear")
    modules = {n: m for n, m in made.named_modules() if n.rsplit(".")[-1] in names}
    torch.manual_seed(0)
    start = {n: torch.randn(rank, m.in_features) * 0.2 for n, m in modules.items()}
    torch.manual_seed(seed)
    a = {n: s + torch.randn(s.shape) * 0.05 for n, s in start.items()}
    b = {n: torch.randn(m.out_features, rank) * 0.1 for n, m in modules.items()}
    write_adapter(folder, {**adapter_config(rank, alpha, 0.0, names), **config}, a, b)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters, each with an alpha of its own."""
    top = tmp_path_factory.mktemp("adapters")
    return [write(top / str(n), n + 1, alpha) for n, alpha in enumerate(ALPHAS)]


def outside(folder: Path, weight: float = 1.0) -> WeightedAdapter:
    return WeightedAdapter(ref=Input(uri=f"file://{folder}", digest=folder_digest(folder)), weight=weight)


def merge_task(
    folders: list[Path], method: str, weights: tuple[float, ...] = WEIGHTS, **parameters: float
) -> MergeTask:
    adapters = tuple(outside(f, w) for f, w in zip(folders, weights, strict=True))
    base = Input(uri="file:///nowhere", digest="sha256:0")
    seed = 3 if method.startswith("dare") else None
    return MergeTask(base=base, adapters=adapters, method=method, parameters=parameters, seed=seed)


def pefts(folders: list[Path], method: str, density: float | None) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """PEFT's merge: the model with it on, and its A and B by module."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(tiny.model(), folders[0], adapter_name="0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    how = {} if density is None else {"density": density}
    model.add_weighted_adapter([str(n) for n in range(len(folders))], list(WEIGHTS), "merged", method, **how)
    model.set_adapter("merged")
    found: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, parameter in model.named_parameters():
        for side in "AB":
            if f".lora_{side}.merged." in name:
                found[side][name.removeprefix("base_model.model.").split(".lora_")[0]] = parameter.detach()
    return model.eval(), found["A"], found["B"]


def one_mask_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """DARE draws the same mask of a shape for the first, second and third adapter, whoever asks."""
    asked: dict[tuple[int, ...], int] = {}

    def bernoulli(p: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        number = asked[tuple(p.shape)] = asked.get(tuple(p.shape), -1) + 1
        mine = torch.Generator().manual_seed(number % len(WEIGHTS))
        return (torch.rand(p.shape, generator=mine) < p).float()

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


@pytest.mark.parametrize(
    ("method", "density"),
    [
        ("ties", DENSITY),
        ("ties", 0.05),
        ("ties", 1.0),
        ("linear", None),
        ("magnitude_prune", DENSITY),
        ("dare_linear", DENSITY),
        ("dare_ties", DENSITY),
    ],
)
@pytest.mark.filterwarnings("ignore:The density 1.0:UserWarning")
def test_merges_are_pefts(
    folders: list[Path], work: StepContext, monkeypatch: pytest.MonkeyPatch, method: str, density: float | None
) -> None:
    from peft import PeftModel

    one_mask_each(monkeypatch)
    model, a, b = pefts(folders, method, density)
    parameters = {} if density is None else {"density": density}
    figures = merge.run(merge_task(folders, method, **parameters), work)
    ours = Adapter(work.out / "adapter")
    assert set(ours.A) == set(a) and len(a) == 14
    for name in a:
        torch.testing.assert_close(ours.A[name], a[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.B[name], b[name], rtol=1e-5, atol=1e-7)
    assert any(float(t.abs().max()) > 0.01 for t in b.values())
    loaded = PeftModel.from_pretrained(tiny.model(), work.out / "adapter").eval()
    ids = tuple(range(5, 25))
    plain, ours_logits, theirs = (tiny.alone(m, ids) for m in (tiny.model(), loaded, model))
    torch.testing.assert_close(ours_logits, theirs, rtol=1e-4, atol=1e-5)
    assert float((ours_logits - plain).abs().max()) > 0.05
    assert figures["norm"] == pytest.approx(ours.norm()) and figures["norms"] == [Adapter(f).norm() for f in folders]


def factors(tensors: list[torch.Tensor], roots: list[float]) -> Factors:
    return Factors("layer", "B", tensors, roots, roots, torch.Generator())


def test_linear_on_scalars_by_hand(folders: list[Path]) -> None:
    """A is the sum of sign(w) sqrt(|w| alpha / r) A, B that of sqrt(|w| alpha / r) B."""
    adapters = [Adapter(f) for f in folders]
    a, b = merge.merge_factors(adapters, list(WEIGHTS), PluginCall.of("merge_methods", "linear", {}), 0)
    roots = [math.sqrt(abs(w) * x / RANK) for w, x in zip(WEIGHTS, ALPHAS, strict=True)]
    name = next(iter(a))
    signed = [math.copysign(r, w) for r, w in zip(roots, WEIGHTS, strict=True)]
    plain_a = sum(r * x.A[name].double() for r, x in zip(signed, adapters, strict=True))
    plain_b = sum(r * x.B[name].double() for r, x in zip(roots, adapters, strict=True))
    torch.testing.assert_close(a[name].double(), plain_a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(b[name].double(), plain_b, rtol=1e-5, atol=1e-7)


def test_ties_by_hand() -> None:
    """Trim to 3 of 4, elect on unweighted sums, average the weighted values of that sign over their number."""
    from expunge_jobs.merge_methods import DensityParameters, ties

    one, two = torch.tensor([4.0, -3.0, 2.0, 0.1]), torch.tensor([1.0, 5.0, -0.2, -6.0])
    merged = ties.merge(factors([one, two], [1.0, 2.0]), DensityParameters(density=0.75))
    # trimmed: [4, -3, 2, 0] and [1, 5, 0, -6]; signs + + + -
    assert merged.tolist() == [(4 + 2 * 1) / 2, 2 * 5, 2, 2 * -6]


@pytest.mark.parametrize("density", [0.001, 0.2, 0.8, 0.99])
@pytest.mark.parametrize("levels", [0, 3])
def test_trimming_keeps_what_topk_keeps(density: float, levels: int) -> None:
    """``levels``: so many different magnitudes alone, so that equal ones lie at the edge; 0: all differ."""
    from expunge_jobs.merge_methods import keep_largest

    values = torch.randn(37, 41, generator=torch.Generator().manual_seed(7))
    if levels:
        values = (values * levels).round() / levels
    flat = values.reshape(-1)
    largest = flat.abs().topk(int(density * flat.numel())).indices
    wanted = torch.zeros_like(flat)
    wanted[largest] = flat[largest]
    assert torch.equal(keep_largest(values, density).reshape(-1), wanted)
    assert keep_largest(torch.ones(3), 0.1).tolist() == [0, 0, 0]


def test_ties_elects_plus_where_the_sum_is_zero() -> None:
    from expunge_jobs.merge_methods import DensityParameters, ties

    tensors = [torch.tensor([2.0, -3.0, 0.0]), torch.tensor([-2.0, 3.0, 0.0])]
    assert ties.merge(factors(tensors, [1.0, 1.0]), DensityParameters(density=1)).tolist() == [2, 3, 0]


def test_dare_drops_at_random_by_its_seed(folders: list[Path]) -> None:
    adapters = [Adapter(f) for f in folders]
    call = PluginCall.of("merge_methods", "dare_linear", {"density": 0.5})
    one, again, other = (merge.merge_factors(adapters, list(WEIGHTS), call, seed)[1] for seed in (1, 1, 2))
    name = next(iter(one))
    assert torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name])


def test_dare_keeps_the_mean() -> None:
    from expunge_jobs.merge_methods import drop_and_rescale

    dropped = drop_and_rescale(torch.ones(100, 100), 0.3, torch.Generator().manual_seed(0))
    assert float(dropped.mean()) == pytest.approx(1, abs=0.05)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0, 1 / 0.3])


def test_the_same_merge_is_the_same_bytes(folders: list[Path], tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        work = tiny.work(tmp_path / name)
        merge.run(merge_task(folders, "ties", density=0.5), work)
        made.append({f.name: f.read_bytes() for f in (work.out / "adapter").iterdir()})
    assert made[0] == made[1]


def refusal(folders: list[Path], work: StepContext) -> str:
    with pytest.raises(BadTask) as caught:
        merge.run(merge_task(folders, "ties", (1.0,) * len(folders)), work)
    assert not (work.out / "adapter").exists()
    return str(caught.value)


def test_other_ranks(folders: list[Path], work: StepContext, tmp_path: Path) -> None:
    assert "rank 4 and 8" in refusal([folders[0], write(tmp_path / "x", 5, rank=8)], work)


def test_other_targets(folders: list[Path], work: StepContext, tmp_path: Path) -> None:
    message = refusal([folders[0], write(tmp_path / "x", 5, targets=("q_proj", "v_proj"))], work)
    assert "targets" in message and "model.layers.0.mlp.down_proj" in message


def test_other_shapes(folders: list[Path], work: StepContext, tmp_path: Path) -> None:
    folder = write(tmp_path / "x", 5)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(k for k in tensors if "lora_B" in k)
    save_file({**tensors, key: torch.zeros(7, RANK)}, file)
    message = refusal([folders[0], folder], work)
    assert "shapes" in message and key.split(".lora_")[0].removeprefix("base_model.model.") in message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_not_finite(
    folders: list[Path], work: StepContext, tmp_path: Path, value: float, place: int
) -> None:
    folder = write(tmp_path / "x", 5)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    next(t for k, t in tensors.items() if "lora_B" in k)[1, 2] = value
    save_file(tensors, file)
    given = [folders[0], folders[1]]
    given[place] = folder
    message = refusal(given, work)
    assert "not finite" in message and f"adapter {place + 1}" in message


@pytest.mark.parametrize("field", ["use_rslora", "use_dora", "lora_bias"])
def test_kinds_of_lora_that_merge_wrong(folders: list[Path], work: StepContext, tmp_path: Path, field: str) -> None:
    assert field in refusal([folders[0], write(tmp_path / "x", 5, **{field: True})], work)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ],
)
def test_other_adapters(
    folders: list[Path], work: StepContext, tmp_path: Path, fields: dict[str, Any], word: str
) -> None:
    assert word in refusal([write(tmp_path / "x", 5, **fields), folders[0]], work)


@pytest.mark.parametrize(
    "key", ["base_model.model.lm_head.weight", "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector"]
)
def test_an_adapter_with_more_than_a_and_b(folders: list[Path], work: StepContext, tmp_path: Path, key: str) -> None:
    folder = write(tmp_path / "x", 5)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), key: torch.zeros(3)}, file)
    assert key in refusal([folders[0], folder], work)


def specialist(work: StepContext, seed: int, start: str) -> ArtifactRef:
    """A finished fine-tune with this fingerprint of A's start."""
    write(work.out / "adapter", seed)
    model = ModelRef(base=Input(uri="file:///nowhere", digest="sha256:0"))
    data = TaskData(sets={})
    made = FinetuneTask(model=model, data=data, settings=tiny.settings(), seed=seed)
    return tiny.publish(work, made, {"a_start": start}).model_copy(update={"folder": "adapter"})


def merge_of(*refs: ArtifactRef | Input, base: str = "sha256:0") -> MergeTask:
    adapters = tuple(WeightedAdapter(ref=r) for r in refs)
    return MergeTask(base=Input(uri="file:///elsewhere", digest=base), adapters=adapters, method="ties", parameters={})


def test_other_starts_of_a(work: StepContext) -> None:
    one, two, three = specialist(work, 1, "aa"), specialist(work, 2, "bb"), specialist(work, 3, "aa")
    with pytest.raises(BadTask, match="A matrices started differently"):
        merge.run(merge_of(one, two), work)
    merge.run(merge_of(one, three), work)


def test_another_base(work: StepContext) -> None:
    one, two = specialist(work, 1, "aa"), specialist(work, 3, "aa")
    with pytest.raises(BadTask, match="adapter 1 of the merge was trained on another base model"):
        merge.run(merge_of(one, two, base="sha256:1"), work)


def test_an_adapter_of_another_base_has_its_own_number_behind_one_from_outside(
    folders: list[Path], work: StepContext
) -> None:
    outside = Input(uri=f"file://{folders[0]}", digest=folder_digest(folders[0]))
    with pytest.raises(BadTask, match="adapter 2 of the merge was trained on another base model"):
        merge.run(merge_of(outside, specialist(work, 1, "aa"), base="sha256:1"), work)


def test_an_adapter_from_outside_is_taken_with_a_notice(
    folders: list[Path], work: StepContext, capsys: pytest.CaptureFixture[str]
) -> None:
    merge.run(merge_task(folders, "ties"), work)
    assert [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()] == ["notice"]


def test_targets_given_as_a_pattern(folders: list[Path], work: StepContext, tmp_path: Path) -> None:
    """PEFT takes a regular expression too; the merge's adapter loads all the same."""
    from peft import PeftModel

    pattern = [write(tmp_path / str(n), n, target_modules=r".*_proj") for n in (5, 6)]
    merge.run(merge_task(pattern, "linear", (1.0, 1.0)), work)
    loaded = PeftModel.from_pretrained(tiny.model(), work.out / "adapter").eval()
    ids = tuple(range(5, 25))
    assert float((tiny.alone(loaded, ids) - tiny.alone(tiny.model(), ids)).abs().max()) > 0.05


def mean_of_deltas(given: Deltas, _: Any) -> torch.Tensor:
    return torch.stack([d * w for d, w in zip(given.deltas, given.weights, strict=True)]).sum(0)


@pytest.fixture
def on_deltas(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A method on whole updates, by the name ``mine``."""
    plugin = SimpleNamespace(
        VERSION=1, Parameters=NoParameters, RANDOM=False, ACTS_ON="deltas", NEEDS_BASE=False, merge=mean_of_deltas
    )
    load = plugins.load
    monkeypatch.setattr(plugins, "load", lambda family, name: plugin if name == "mine" else load(family, name))
    return plugin


def deltas(folders: list[Path]) -> dict[str, torch.Tensor]:
    """The weighted sum of the adapters' whole updates by module."""
    adapters = [Adapter(f) for f in folders]
    return {
        name: sum(w * x.scaling * (x.B[name] @ x.A[name]) for w, x in zip(WEIGHTS, adapters, strict=True))  # type: ignore[misc]
        for name in adapters[0].A
    }


def test_a_method_on_deltas_is_stored_without_loss_where_its_rank_allows(
    folders: list[Path], work: StepContext, on_deltas: SimpleNamespace
) -> None:
    figures = merge.run(merge_task(folders, "mine"), work)
    made = Adapter(work.out / "adapter")
    assert (made.rank, made.scaling) == (len(folders) * RANK, 1.0)
    for name, plain in deltas(folders).items():
        torch.testing.assert_close(made.B[name] @ made.A[name], plain, rtol=1e-4, atol=1e-5)
    assert figures["svd_error"] < 1e-5


def test_what_a_truncated_svd_loses_is_in_the_receipt(
    folders: list[Path], work: StepContext, on_deltas: SimpleNamespace
) -> None:
    on_deltas.merge = lambda given, _: mean_of_deltas(given, None).sign()  # of full rank
    figures = merge.run(merge_task(folders, "mine"), work)
    made = Adapter(work.out / "adapter")
    lost = sum(float((d.sign() - made.B[n] @ made.A[n]).square().sum()) for n, d in deltas(folders).items())
    whole = sum(float(d.sign().square().sum()) for d in deltas(folders).values())
    assert figures["svd_error"] == pytest.approx(math.sqrt(lost / whole), rel=1e-4) and figures["svd_error"] > 0.05


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda given, _: given.deltas[0].T[:1], "gave a matrix of"),
        (lambda given, _: given.deltas[0] / 0, "gave values that are not finite"),
    ],
)
def test_a_method_on_deltas_that_gives_nonsense_is_named(
    folders: list[Path], work: StepContext, on_deltas: SimpleNamespace, result: Any, words: str
) -> None:
    on_deltas.merge = result
    with pytest.raises(BadTask, match=f"the merge method 'mine' {words}"):
        merge.run(merge_task(folders, "mine"), work)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda given, _: given.tensors[0] / 0, "gave values that are not finite"),
        (lambda given, _: given.tensors[0].T, "gave a matrix of"),
        (lambda given, _: given.tensors[0].tolist(), "gave a list, not a tensor"),
    ],
)
def test_a_method_on_factors_that_gives_nonsense_is_named(
    folders: list[Path], work: StepContext, on_deltas: SimpleNamespace, result: Any, words: str
) -> None:
    on_deltas.ACTS_ON, on_deltas.merge = "factors", result
    with pytest.raises(BadTask, match=f"the merge method 'mine' {words}"):
        merge.run(merge_task(folders, "mine"), work)


def test_norms_are_those_of_before_a_method_in_place(
    folders: list[Path], work: StepContext, on_deltas: SimpleNamespace
) -> None:
    on_deltas.ACTS_ON, on_deltas.merge = "factors", lambda given, _: given.tensors[0].mul_(3)
    assert merge.run(merge_task(folders, "mine"), work)["norms"] == [Adapter(f).norm() for f in folders]


def test_a_method_on_deltas_has_the_base_s_own_weight_at_hand(
    folders: list[Path], base_folder: Path, on_deltas: SimpleNamespace, tmp_path: Path
) -> None:
    base = BaseWeights(base_folder)
    whole = load_base(base_folder, "checkpoint")[0].state_dict()
    for name in deltas(folders):
        assert torch.equal(base.read(name), whole[f"{name}.weight"].float())
    with pytest.raises(BadTask, match=r"no weight 'model.layers.0.mlp.up_prj.weight'; did you mean"):
        base.read("model.layers.0.mlp.up_prj")
