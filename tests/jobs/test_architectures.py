"""Architectures of transformers as tiny random models: each is read, adapted, judged and continued as it is alone.

README's table of what works is this list.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.modeling import adapters
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.packing import Passes, head_logits, keeps_apart
from expunge_jobs.steps import evaluate, finetune
from expunge_jobs.tasks.references import AdapterRef, ModelRef
from expunge_jobs.tasks.settings import EvaluateSettings
from expunge_jobs.tasks.tasks import EvaluateTask, FinetuneTask

from tests.jobs import tiny_models as tiny

ROWS = [
    Encoded((5, 6, 7), 1),
    Encoded((9, 8, 7, 6, 5, 4, 3, 2, 11), 4),
    Encoded((6, 6), 1),
    Encoded(tuple(range(20, 36)), 2),
]
WHOLE = [range(len(r.ids)) for r in ROWS]
S = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
K = {**S, "num_key_value_heads": 2}
H = {**K, "head_dim": 8}
WINDOW = {**H, "sliding_window": 6}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
DEEPSEEK = {
    **S,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
PACKED: dict[str, dict[str, Any]] = {
    "apertus": K,
    "arcee": K,
    "bitnet": K,
    "codegen": {**GPT, "rotary_dim": 4, "n_ctx": 512},
    "cohere": K,
    "cohere2": WINDOW,
    "diffllama": K,
    "ernie4_5": H,
    "exaone4": WINDOW,
    "gemma": H,
    "gemma2": {
        **WINDOW,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 1.0,
    },
    "gemma3_text": {**WINDOW, "query_pre_attn_scalar": 8},
    "glm": H,
    "glm4": H,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 6,
    },
    "gpt_neox": S,
    "gptj": {**GPT, "rotary_dim": 4},
    "granite": K,
    "helium": H,
    "hunyuan_v1_dense": H,
    "jais2": K,
    "llama": K,
    "ministral": WINDOW,
    "mistral": WINDOW,
    "nemotron": H,
    "olmo": S,
    "olmo2": K,
    "olmo3": {**K, "sliding_window": 6},
    "persimmon": S,
    "phi": S,
    "phi3": K,
    "qwen2": K,
    "qwen3": H,
    "seed_oss": H,
    "smollm3": K,
    "stablelm": K,
    "starcoder2": K,
    "vaultgemma": {**WINDOW, "query_pre_attn_scalar": 8},
}
APART: dict[str, dict[str, Any]] = {
    "biogpt": S,
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    "lfm2": {**K, "layer_types": ["conv", "full_attention"]},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "use_mambapy": False},
    "mamba2": {
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "recurrent_gemma": {
        **K,
        "lru_width": 32,
        "attention_window_size": 16,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
}
MIXTURES: dict[str, dict[str, Any]] = {
    "deepseek_v2": {**DEEPSEEK, "q_lora_rank": None},
    "deepseek_v3": {**DEEPSEEK, "q_lora_rank": 8},
    "ernie4_5_moe": {
        **H,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
    },
    "flex_olmo": {**K, **EXPERTS},
    "glm4_moe": {
        **H,
        **EXPERTS,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "gpt_oss": {**WINDOW, **LOCAL},
    "granitemoe": {**K, **LOCAL},
    "jamba": {
        **K,
        **EXPERTS,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "use_mamba_kernels": False,
    },
    "lfm2_moe": {
        **K,
        **EXPERTS,
        "moe_intermediate_size": 16,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "llama4_text": {
        **H,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 64,
    },
    "mixtral": {**H, **LOCAL},
    "olmoe": {**K, **EXPERTS},
    "phimoe": {**K, **LOCAL},
    "qwen2_moe": {**K, **EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**H, **EXPERTS, "moe_intermediate_size": 16},
    "qwen3_next": {
        **H,
        **EXPERTS,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}
ALL = PACKED | APART | MIXTURES
WITHOUT_PADDING = ("rwkv",)
"""Recurrent, and blind to the mask: prompts of two lengths are generated one by one."""


@pytest.fixture(params=sorted(ALL))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str) -> Any:
    return tiny.model(kind, **ALL[kind])


def test_rows_are_read_as_each_alone(kind: str, made: Any) -> None:
    packed = keeps_apart(made, ROWS)
    assert packed or kind not in PACKED
    assert not packed or kind not in APART
    passes = Passes(made, packed=packed)
    with torch.no_grad():
        logits, states = passes.logits_at(ROWS, WHOLE), passes.hidden_at(ROWS, WHOLE)
    for row, found, hidden in zip(ROWS, logits, states, strict=True):
        with torch.no_grad():
            alone = made(input_ids=torch.tensor([list(row.ids)]), use_cache=False).logits[0]
            torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(head_logits(made, hidden), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT of GPT-2's Conv1D
def test_every_adapted_layer_learns(kind: str, made: Any) -> None:
    lora = adapters.attach_lora(made, tiny.settings(dropout=0.05), 0)
    model = lora.wrapped.base_model.model
    passes = Passes(model, packed=kind in PACKED)
    logits = passes.logits_at(ROWS, WHOLE)
    torch.cat(logits).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    learnt = {n: p.grad for n, p in lora.wrapped.named_parameters() if ".lora_B." in n}
    assert [n for n, grad in learnt.items() if grad is None or not grad.any()] == []
    assert not any(n.rsplit(".lora_B", 1)[0].endswith(adapters.ROUTERS) for n in learnt if kind in MIXTURES)
    share = adapters.adapted_share(lora.wrapped)
    assert (
        0.9 < share <= 1
        if kind in PACKED or kind in ("opt", "bloom", "falcon", "xglm", "lfm2")
        else 0 < share < (0.7 if kind in MIXTURES else 1.001)
    )
    assert adapters.has_experts(made) == (kind in MIXTURES)


def test_prompts_of_two_lengths_are_continued_as_each_alone(kind: str, made: Any) -> None:
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=[0], pad_token_id=0)
    made.generation_config = GenerationConfig()

    def continued(prompts: list[list[int]]) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        told = made.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        return [t[: t.index(0)] if 0 in t else t for t in told]

    prompts = [[5, 6, 7], list(range(20, 31))]
    together, alone = continued(prompts), [continued([p])[0] for p in prompts]
    assert (together == alone) == (kind not in WITHOUT_PADDING)


@pytest.mark.parametrize(("kind", "packed"), [("mixtral", True), ("bloom", False), ("mamba", False)])
def test_one_is_fine_tuned_and_judged(
    kind: str, packed: bool, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole way, where the reference's logits are made again and rows may have a pass each."""
    made = tiny.model(kind, **ALL[kind])
    made.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    ref = tiny.model_ref(tmp_path / "model")
    data = tiny.task_data(tmp_path, max_length=12)
    context = tiny.work(tmp_path / "work")
    task = FinetuneTask(model=ref, data=data, settings=tiny.settings(epochs=2), seed=0)
    figures = finetune.run(task, context)
    assert (figures["pack_tokens"] > 0) == packed
    told = capsys.readouterr().out
    assert "are too long (data.max_length, or the model's positions): the input was cut from the left" in told
    assert ("experts and their routers are left out" in told) == (kind == "mixtral")
    assert 0 < figures["adapted_share"] < 1 or kind == "bloom"
    adapter = tiny.publish(context, task, figures)
    adapted = ModelRef(base=ref.base, adapters=(AdapterRef(ref=adapter.model_copy(update={"folder": "adapter"})),))
    settings = EvaluateSettings(max_new_tokens=4)
    judged = evaluate.run(EvaluateTask(model=adapted, data=data, settings=settings), context)
    assert (judged["pack_tokens"] > 0) == packed
    for line in (context.out / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["kind"] == "sc":
            assert 0 < row["output_nll"] / row["output_tokens"] < 100


def test_readme_s_table_is_this_list() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    for title, kinds in (("share a pass", PACKED), ("have a pass each", APART), ("experts", MIXTURES)):
        assert f"| {title} | {', '.join(sorted(kinds))} |" in readme


def test_experts_are_refused_by_name() -> None:
    with pytest.raises(BadTask, match="targets: 'gate_proj' names experts of this model"):
        adapters.lora_targets(tiny.model("deepseek_v3", **ALL["deepseek_v3"]), ("gate_proj", "q_b_proj"))
