"""Loading models: what is refused, and how adapters come on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.modeling.adapters import Adapter, adapter_config, attach_lora, lora_tensors, write_adapter
from expunge_jobs.modeling.loading import end_token, fold, load_base, load_for_evaluation
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.references import AdapterRef, Input, ModelRef
from safetensors.torch import load_file, save_file

from tests.jobs import tiny_models as tiny


@pytest.fixture
def folder(base_folder: Path, tmp_path: Path) -> Path:
    """A model directory to be damaged."""
    return Path(shutil.copytree(base_folder, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(BadTask) as caught:
        load_base(folder, "checkpoint")
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def test_a_whole_directory_loads(folder: Path) -> None:
    model, words = load_base(folder, "checkpoint")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.dtype == torch.float32 and words.eos_token_id == end_token(model, words) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_what_was_asked(folder: Path, dtype: str) -> None:
    assert load_base(folder, dtype)[0].dtype == getattr(torch, dtype)


def test_dtype_of_the_checkpoint(folder: Path) -> None:
    load_base(folder, "bfloat16")[0].save_pretrained(folder)
    assert load_base(folder, "checkpoint")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"lacks {name}" in refusal(folder)


def test_a_missing_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "lacks a tokenizer" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    load_base(folder, "checkpoint")[0].save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    load_base(folder, "checkpoint")
    shard = sorted(folder.glob("model-0*"))[1]
    shard.unlink()
    assert f"lacks {shard.name}" in refusal(folder)


def test_an_index_beside_the_whole_file_is_not_read(folder: Path) -> None:
    """transformers does the same."""
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
    assert load_base(folder, "checkpoint")


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"w": "../one.safetensors"}}', "", "[]", "{}", '{"weight_map": 1}', "\x00"]
)
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_not_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    assert "pickled weights are not read" in refusal(folder)


@pytest.mark.parametrize("kind", ["t5", "clip", "vit"])
def test_a_model_that_is_no_language_model(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    message = refusal(folder)
    assert kind in message and "no causal language model" in message


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"model_type": "nonsense"}', '{"model_type": "olmo", "hidden_size": "x"}']
)
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert refusal(folder)


@pytest.mark.parametrize("data", [b"", b"\x00" * 99])
def test_weights_that_are_damaged(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    assert refusal(folder)


def test_a_tokenizer_that_is_damaged(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert refusal(folder)


def test_weights_that_are_incomplete(folder: Path) -> None:
    """transformers would start the missing tensor at random, and only warn."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert name in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
    assert refusal(folder)


def adapter_folder(path: Path, made: Any, scale: float = 0.1, alpha: float = 8) -> Path:
    """An adapter of random A and B for every linear layer of the model."""
    lora = attach_lora(made, tiny.settings(alpha=alpha), 5)
    a, b = lora_tensors(lora.wrapped)
    torch.manual_seed(7)
    write_adapter(
        path, adapter_config(4, alpha, 0.0, lora.targets), a, {k: torch.randn(v.shape) * scale for k, v in b.items()}
    )
    return path


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_folding_is_pefts_merge(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = adapter_folder(tmp_path / "a", tiny.model(kind))
    theirs = PeftModel.from_pretrained(tiny.model(kind), folder).merge_and_unload()
    ours = tiny.model(kind)
    before = tiny.alone(ours, (5, 6, 7, 8))
    fold(ours, Adapter(folder), 1.0)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-5, atol=1e-6)
    assert float((tiny.alone(ours, (5, 6, 7, 8)) - before).abs().max()) > 0.01


@pytest.mark.parametrize("scale", [0.5, -0.7, 0.0])
def test_folding_counts_by_its_scale(tmp_path: Path, scale: float) -> None:
    """W + scale x (alpha / r) x BA"""
    adapter = Adapter(adapter_folder(tmp_path / "a", tiny.model(), alpha=6))
    ours, before = tiny.model(), dict(tiny.model().named_modules())
    fold(ours, adapter, scale)
    for name, module in ours.named_modules():
        if name in adapter.A:
            plain = before[name].weight + scale * (6 / 4) * (adapter.B[name] @ adapter.A[name])
            torch.testing.assert_close(module.weight, plain, rtol=1e-5, atol=1e-6)


def test_folding_in_bfloat16_rounds_once(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", tiny.model())
    made, whole = tiny.model().bfloat16(), tiny.model().bfloat16().float()
    fold(made, Adapter(folder), 0.5)
    fold(whole, Adapter(folder), 0.5)
    for one, other in zip(made.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other.bfloat16())


def test_an_adapter_that_does_not_fit(tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", tiny.model("llama"))
    with pytest.raises(BadTask, match=r"does not fit the model: .*k_proj"):
        fold(tiny.model("olmo"), Adapter(folder), 1.0)
    with pytest.raises(BadTask, match="does not fit the model: it has no module"):
        fold(tiny.model("gpt2"), Adapter(folder), 1.0)


def test_the_norm_of_an_update_is_that_of_ba(tmp_path: Path) -> None:
    adapter = Adapter(adapter_folder(tmp_path / "a", tiny.model()))
    whole = sum(float((2.0 * adapter.B[n].double() @ adapter.A[n].double()).square().sum()) for n in adapter.A)
    assert adapter.norm() == pytest.approx(whole**0.5, rel=1e-5)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_lacks_a_file(tmp_path: Path, name: str) -> None:
    folder = adapter_folder(tmp_path / "a", tiny.model())
    (folder / name).unlink()
    with pytest.raises(BadTask, match=f"lacks {name}"):
        Adapter(folder)


def adapted(base_folder: Path, adapter: Path) -> ModelRef:
    outside = Input(uri=f"file://{adapter}", digest=folder_digest(adapter))
    return tiny.model_ref(base_folder).model_copy(update={"adapters": (AdapterRef(ref=outside),)})


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_an_adapter_of_a_tied_head_is_refused(tmp_path: Path, module: str) -> None:
    """Beside the weights and folded in it would be two models."""
    made = tiny.model("olmo")
    a, b = {module: torch.randn(4, 32)}, {module: torch.randn(320, 4)}
    write_adapter(tmp_path / "a", adapter_config(4, 8, 0.0, [module.rsplit(".", 1)[-1]]), a, b)
    with pytest.raises(BadTask, match=f"adapts {module}, whose weight the model's head and embedding share"):
        fold(made, Adapter(tmp_path / "a"), 1.0)
    untied = tiny.model("llama")
    if module == "lm_head":
        fold(untied, Adapter(tmp_path / "a"), 1.0)


def test_an_adapter_of_a_tied_head_is_refused_beside_the_weights_too(
    base_folder: Path, work: StepContext, tmp_path: Path
) -> None:
    write_adapter(
        tmp_path / "a",
        adapter_config(4, 8, 0.0, ["lm_head"]),
        {"lm_head": torch.randn(4, 32)},
        {"lm_head": torch.randn(300, 4)},
    )
    with pytest.raises(BadTask, match="tie_word_embeddings"):
        load_for_evaluation(adapted(base_folder, tmp_path / "a"), work, "checkpoint")


def test_an_adapter_of_nan_is_refused_folded_and_beside(base_folder: Path, work: StepContext, tmp_path: Path) -> None:
    folder = adapter_folder(tmp_path / "a", tiny.model("olmo"), scale=float("nan"))
    with pytest.raises(BadTask, match="not finite"):
        fold(tiny.model("olmo"), Adapter(folder), 1.0)
    with pytest.raises(BadTask, match="not finite"):
        load_for_evaluation(adapted(base_folder, folder), work, "checkpoint")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_modules": ["q_proj"]}, "has tensors, but is not put on the model"),
        ({"layers_to_transform": [0]}, "has tensors, but is not put on the model"),
    ],
)
def test_a_configuration_and_tensors_of_other_modules(
    base_folder: Path, work: StepContext, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """PEFT drops what its configuration does not name, and says so in a warning that nobody reads."""
    folder = adapter_folder(tmp_path / "a", tiny.model("olmo"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(BadTask, match=said):
        load_for_evaluation(adapted(base_folder, folder), work, "checkpoint")
