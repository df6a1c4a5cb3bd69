"""Loading models and adapters, and running rows through them packed, without padding."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.inputs import model_folder
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.runtime.distributed import device
from expunge_jobs.tasks.references import ArtifactRef, Input, ModelRef
from expunge_jobs.tasks.settings import FinetuneSettings

PACK_TOKENS = 4096
"""Most tokens in one forward pass. Part of how floating-point sums group, so a constant, never the machine's choice."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Paths(Protocol):
    """Gives the local folder of an artifact or input, its bytes checked."""

    def path(self, ref: ArtifactRef | Input) -> Path: ...


def load_base(folder: Path, dtype: str) -> tuple[Any, Any]:
    """A causal language model and its tokenizer from a directory in Hugging Face's format, safetensors only.

    Raises:
        BadTask: a file is missing, or transformers cannot read the directory; says what it lacks.
    """
    model_folder.check_model_folder(folder)
    from transformers import AutoTokenizer

    try:
        config = _config(folder)
        model, loading = _causal_class(config).from_pretrained(
            folder, config=config, dtype="auto" if dtype == "checkpoint" else _DTYPES[dtype], use_safetensors=True,
            local_files_only=True, output_loading_info=True, trust_remote_code=False,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (BadTask, MemoryError):
        raise
    except Exception as error:  # each library under it has errors of its own
        if "out of memory" in str(error).lower():
            raise
        raise BadTask(f"the model cannot be loaded: {_first_line(error)}") from None
    if loading["missing_keys"]:
        # transformers would start them at random, with a warning.
        raise BadTask(f"the model directory's weights lack {sorted(loading['missing_keys'])[0]}")
    model.requires_grad_(False)
    return model.to(device()).eval(), tokenizer


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _causal_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise BadTask(f"config.json: model type '{config.model_type}' is no causal language model")
    return AutoModelForCausalLM


def end_token(model: Any, tokenizer: Any) -> int:
    """The token that ends an output: the tokenizer's, else the first of the model's.

    Raises:
        BadTask: the model has none.
    """
    token = tokenizer.eos_token_id
    if token is None:
        token = model.generation_config.eos_token_id
    if isinstance(token, list):
        token = token[0]
    if token is None:
        raise BadTask("the model has no end token (eos_token_id): it cannot tell where an output ends")
    return int(token)


# --- adapters, in PEFT's format ---------------------------------------------------------------------------------------


class Adapter:
    """A LoRA adapter read from a PEFT directory: config and float32 tensors by module (``A`` [r, in], ``B`` [out, r])."""

    def __init__(self, folder: Path) -> None:
        model_folder.check_adapter_folder(folder)
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / model_folder.ADAPTER_FILES[0]).read_text())
        if self.config.get("peft_type") != "LORA":
            raise BadTask(f"the adapter is of PEFT type {self.config.get('peft_type')}; allowed: LORA")
        for field in ("use_rslora", "use_dora", "lora_bias"):
            if self.config.get(field):
                raise BadTask(f"the adapter uses {field}, which a merge of A and B would get silently wrong")
        if self.config.get("megatron_config"):
            raise BadTask("the adapter has megatron_config, which names a Python module to be imported")
        if self.config.get("rank_pattern") or self.config.get("alpha_pattern"):
            raise BadTask("the adapter has ranks or alphas of its own for some modules (rank_pattern, alpha_pattern)")
        tensors = {k: v.float() for k, v in load_file(folder / model_folder.ADAPTER_FILES[1]).items()}
        self.A = {_module(k): v for k, v in tensors.items() if k.endswith(".lora_A.weight")}
        self.B = {_module(k): v for k, v in tensors.items() if k.endswith(".lora_B.weight")}
        other = sorted(k for k in tensors if not k.endswith((".lora_A.weight", ".lora_B.weight")))
        if other or set(self.A) != set(self.B):
            raise BadTask(
                f"the adapter holds something else than pairs of A and B: {(other or ['an A without its B'])[0]}"
            )

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scaling(self) -> float:
        """alpha / r, by which the update BA counts."""
        return float(self.config["lora_alpha"]) / self.rank

    def norm(self) -> float:
        """Frobenius norm of the whole update, scaling x BA over every module, without forming a BA."""
        total = 0.0
        for name, a in self.A.items():
            b = self.B[name]
            total += float(((b.T @ b).double() * (a @ a.T).double()).sum())
        return self.scaling * math.sqrt(max(total, 0.0))

    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in (*self.A.values(), *self.B.values()))


def write_adapter(folder: Path, config: dict[str, Any], a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """A PEFT directory, the same bytes for the same tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{name}.lora_A.weight": t.detach().cpu().contiguous() for name, t in a.items()}
    tensors |= {f"base_model.model.{name}.lora_B.weight": t.detach().cpu().contiguous() for name, t in b.items()}
    save_file(dict(sorted(tensors.items())), folder / model_folder.ADAPTER_FILES[1], metadata={"format": "pt"})
    (folder / model_folder.ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapter_config(rank: int, alpha: float, dropout: float, targets: list[str] | str) -> dict[str, Any]:
    """What PEFT needs to know of a plain LoRA adapter; ``targets`` are names, or one pattern as PEFT allows."""
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "r": rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "bias": "none", "init_lora_weights": True, "fan_in_fan_out": False,
        "use_rslora": False, "use_dora": False, "modules_to_save": None,
    }  # fmt: skip


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes; of the A matrices at their start, it tells whether two adapters can be merged."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _module(key: str) -> str:
    return key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".lora_B.weight")


def fold(model: Any, adapter: Adapter, scale: float) -> None:
    """Adds scale x scaling x BA to the model's own weights, in float32, rounded once to the weight's dtype.

    Raises:
        BadTask: the adapter does not fit the model: a module is missing or has another shape.
    """
    modules = dict(model.named_modules())
    for name, a in adapter.A.items():
        module = modules.get(name)
        if module is None:
            raise BadTask(f"the adapter does not fit the model: it has no module {name}")
        weight: Any = module.weight
        delta = (adapter.B[name].to(weight.device) @ a.to(weight.device)) * (adapter.scaling * scale)
        if _is_conv1d(module):
            delta = delta.T
        if delta.shape != weight.shape:
            raise BadTask(
                f"the adapter does not fit the model: {name} is {tuple(weight.shape)}, not {tuple(delta.shape)}"
            )
        with torch.no_grad():
            weight.copy_((weight.float() + delta).to(weight.dtype))


def load_model(ref: ModelRef, work: Paths, dtype: str) -> tuple[Any, Any]:
    """A base with its adapters folded in: where a fine-tune or memorize starts from."""
    model, tokenizer = load_base(work.path(ref.base), dtype)
    for adapter in ref.adapters:
        fold(model, Adapter(work.path(adapter.ref)), adapter.scale)
    return model, tokenizer


def load_for_evaluation(ref: ModelRef, work: Paths, dtype: str) -> tuple[Any, Any]:
    """A base with its adapters beside it, as in training: folding one into bfloat16 weights would round it away."""
    model, tokenizer = load_base(work.path(ref.base), dtype)
    if not ref.adapters:
        return model, tokenizer
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped: Any = None
    names: list[str] = []
    for number, given in enumerate(ref.adapters):
        adapter = Adapter(work.path(given.ref))
        _check_fits(model, adapter)
        name = f"adapter{number}"
        names.append(name)
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(model, adapter.folder, adapter_name=name)
        else:
            wrapped.load_adapter(adapter.folder, adapter_name=name)
        for module in wrapped.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.set_scale(name, given.scale)  # of alpha / r
    wrapped.base_model.set_adapter(names)
    wrapped.requires_grad_(False)
    return wrapped.base_model.model.eval(), tokenizer


def _check_fits(model: Any, adapter: Adapter) -> None:
    modules: dict[str, Any] = dict(model.named_modules())
    for name, a in adapter.A.items():
        module = modules.get(name.replace(".base_layer", ""))
        if module is None:
            raise BadTask(f"the adapter does not fit the model: it has no module {name}")
        shape = tuple(getattr(module, "base_layer", module).weight.shape)
        found = (adapter.B[name].shape[0], a.shape[1])
        if shape not in (found, found[::-1]):
            raise BadTask(f"the adapter does not fit the model: {name} is {shape}, not {found}")


@dataclass(frozen=True)
class Lora:
    """A model with a fresh adapter attached: PEFT's wrapper, the fingerprint of A's start, the adapted modules' names."""

    wrapped: Any
    a_start: str
    targets: list[str]


def attach_lora(model: Any, settings: FinetuneSettings, seed: int) -> Lora:
    """The model with a fresh LoRA adapter in float32.

    B is zero. A is uniform in +-1/sqrt(in) (Kaiming with a = sqrt 5, LoRA's own start), drawn for each module on the
    CPU from hash(seed, module's name) alone: specialists of one seed start with the same A, whatever else differs.
    That is what makes a merge of A and B meaningful.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, settings.targets)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped: Any = get_peft_model(model, config)
    starts: dict[str, Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        if ".lora_A." in name:
            module = name.removeprefix("base_model.model.").replace(".lora_A.default.weight", "")
            generator = torch.Generator().manual_seed(stable_hash("lora_A", seed, module))
            bound = 1 / math.sqrt(parameter.shape[1])
            start = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(start)
            starts[module] = start
        elif ".lora_B." in name:
            parameter.data.zero_()
    return Lora(wrapped, fingerprint(starts), targets)


def lora_tensors(wrapped: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapter's A and B by module, as they are now."""
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        module = name.removeprefix("base_model.model.")
        if ".lora_A." in name:
            a[module.replace(".lora_A.default.weight", "")] = parameter.detach()
        elif ".lora_B." in name:
            b[module.replace(".lora_B.default.weight", "")] = parameter.detach()
    return a, b


def lora_targets(model: Any, targets: str | tuple[str, ...]) -> list[str]:
    """Names of the modules to adapt: as short as PEFT allows, every linear layer but the head for ``all-linear``.

    Raises:
        BadTask: a named target matches no linear layer; lists those that there are.
    """
    head = model.get_output_embeddings()
    linear = [
        n for n, m in model.named_modules() if (isinstance(m, torch.nn.Linear) or _is_conv1d(m)) and m is not head
    ]
    last = sorted({n.rsplit(".", 1)[-1] for n in linear})
    if targets == "all-linear":
        if not linear:
            raise BadTask("the model has no linear layer that LoRA could adapt")
        heads = {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if m is head}
        return linear if heads & set(last) else last
    unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if unknown:
        raise BadTask(f"targets: the model has no linear layer '{unknown[0]}'; its layers: {', '.join(last)}")
    return list(targets)


def _is_conv1d(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"


# --- packed forward passes --------------------------------------------------------------------------------------------


def decoder(model: Any) -> Any:
    """The part of a causal model below its head: its output's first element is the final hidden state."""
    found = model.get_decoder()
    return found if found is not None and found is not model else model.base_model


def pack(rows: Sequence[Encoded], where: torch.device) -> dict[str, Tensor]:
    """Rows one after the other as a batch of one; positions start again at each row, which keeps them apart."""
    ids = torch.tensor([[t for r in rows for t in r.ids]], device=where)
    positions = torch.tensor([[p for r in rows for p in range(len(r.ids))]], device=where)
    return {"input_ids": ids, "position_ids": positions}


def logits_at(model: Any, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
    """float32 logits [positions, vocabulary] of each row at its own positions, in one packed pass.

    The head runs only at those positions, by the model's own path (scaling and soft caps included).
    """
    where = next(model.parameters()).device
    keep, start = [], 0
    for row, wanted in zip(rows, positions, strict=True):
        keep += [start + p for p in wanted]
        start += len(row.ids)
    logits = (
        model(**pack(rows, where), use_cache=False, logits_to_keep=torch.tensor(keep, device=where)).logits[0].float()
    )
    return list(torch.split(logits, [len(p) for p in positions]))


def hidden_at(model: Any, rows: Sequence[Encoded], positions: Sequence[range]) -> list[Tensor]:
    """The final hidden state [positions, width] of each row at its own positions, in one packed pass."""
    where = next(model.parameters()).device
    states = decoder(model)(**pack(rows, where), use_cache=False)[0][0]
    out, start = [], 0
    for row, wanted in zip(rows, positions, strict=True):
        out.append(states[start + wanted.start : start + wanted.stop].clone())
        start += len(row.ids)
    return out


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """float32 logits [n, vocabulary] of stored hidden states [n, width], by the model's own path from there on."""
    with _decoder_gives(decoder(model), hidden[None]):
        dummy = torch.zeros((1, hidden.shape[0]), dtype=torch.long, device=hidden.device)
        logits: Tensor = model(input_ids=dummy, use_cache=False).logits
    return logits[0].float()


@contextmanager
def _decoder_gives(module: Any, hidden: Tensor) -> Iterator[None]:
    from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions as Output  # GPT-2 reads them

    module.forward = lambda *args, **kwargs: Output(last_hidden_state=hidden)
    try:
        yield
    finally:
        del module.forward  # uncovers the class's own


def check_packing(model: Any, rows: Sequence[Encoded]) -> None:
    """Refuses a model in which packed rows see each other: a row beside a neighbour must give its logits alone.

    Raises:
        BadTask: the model ignores the positions that keep rows apart.
    """
    if len(rows) < 2:
        return
    pair = [min(rows, key=lambda r: len(r.ids)), max(rows, key=lambda r: len(r.ids))]
    with torch.no_grad():
        together = logits_at(model, pair, [range(len(r.ids)) for r in pair])
        alone = [logits_at(model, [r], [range(len(r.ids))])[0] for r in pair]
    # bfloat16 rounds to 3 significant digits; rows that see each other differ in the first.
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 0.1
    for a, b in zip(together, alone, strict=True):
        if float((a - b).abs().max()) > tolerance * float(b.abs().max().clamp(min=1.0)):
            raise BadTask(f"{type(model).__name__} does not keep packed rows apart: this model cannot be used yet")


def batches(rows: Sequence[Encoded], limit: int = PACK_TOKENS) -> Iterator[list[int]]:
    """Indices of consecutive rows that fit one packed pass."""
    chunk: list[int] = []
    size = 0
    for index, row in enumerate(rows):
        if chunk and size + len(row.ids) > limit:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += len(row.ids)
    if chunk:
        yield chunk


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
