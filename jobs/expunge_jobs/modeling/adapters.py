"""Adapters in PEFT's format: reading, writing and attaching."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge_jobs.core.errors import BadTask
from expunge_jobs.core.hashing import stable_hash
from expunge_jobs.inputs import adapter_folder
from expunge_jobs.inputs.adapter_folder import PREFIX, A, B
from expunge_jobs.inputs.weight_files import read_json
from expunge_jobs.tasks.settings import FinetuneSettings


class Adapter:
    """A LoRA adapter read from a PEFT directory.

    ``config`` is PEFT's configuration. ``A`` [r, in] and ``B`` [out, r] hold float32 tensors by module.
    """

    def __init__(self, folder: Path) -> None:
        adapter_folder.check_adapter_folder(folder)
        self.folder = folder
        self.config: dict[str, Any] = read_json(folder / adapter_folder.CONFIG)
        tensors = {k: v.float() for k, v in load_file(folder / adapter_folder.WEIGHTS).items()}
        self.A = {_module(k): v for k, v in tensors.items() if k.endswith(adapter_folder.A)}
        self.B = {_module(k): v for k, v in tensors.items() if k.endswith(adapter_folder.B)}

    @property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scaling(self) -> float:
        """Return alpha / r, the factor of the update BA."""
        return float(self.config["lora_alpha"]) / self.rank

    def norm(self) -> float:
        """Return the Frobenius norm of the whole update.

        The update is scaling x BA over every module. The norm is computed without forming a BA.
        """
        total = 0.0
        for name, a in self.A.items():
            b = self.B[name]
            total += float(((b.T @ b).double() * (a @ a.T).double()).sum())
        return self.scaling * math.sqrt(max(total, 0.0))

    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in (*self.A.values(), *self.B.values()))


def write_adapter(folder: Path, config: dict[str, Any], a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Write a PEFT directory, with the same bytes for the same tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}{A}": t.detach().cpu().contiguous() for name, t in a.items()}
    tensors |= {f"{PREFIX}{name}{B}": t.detach().cpu().contiguous() for name, t in b.items()}
    save_file(dict(sorted(tensors.items())), folder / adapter_folder.WEIGHTS, metadata={"format": "pt"})
    (folder / adapter_folder.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapter_config(rank: int, alpha: float, dropout: float, targets: list[str] | str) -> dict[str, Any]:
    """Return PEFT's configuration of a plain LoRA adapter.

    ``targets`` are module names, or one pattern as PEFT allows.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
        "bias": "none",
        "init_lora_weights": True,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 digest over the tensors' names and bytes.

    The digest of the initial A matrices tells whether two adapters can be merged.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _module(key: str) -> str:
    return key.removeprefix(PREFIX).removesuffix(A).removesuffix(B)


@dataclass(frozen=True)
class Lora:
    """A model with a fresh adapter attached.

    ``wrapped`` is PEFT's wrapper. ``a_start`` is the fingerprint of the initial A matrices.
    ``targets`` are the names of the adapted modules.
    """

    wrapped: Any
    a_start: str
    targets: list[str]


def attach_lora(model: Any, settings: FinetuneSettings, seed: int) -> Lora:
    """Attach a fresh LoRA adapter in float32 to the model.

    B is zero. A is uniform in +-1/sqrt(in), which is LoRA's own initialization (Kaiming with a = sqrt 5).
    The A of each module is drawn on the CPU from hash(seed, module's name) alone.
    Specialists of one seed therefore start with the same A, whatever else differs.
    The common A makes a merge of A and B meaningful.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, settings.targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )
    wrapped: Any = get_peft_model(model, config)
    starts: dict[str, Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        if ".lora_A." in name:
            module = name.removeprefix(PREFIX).replace(".lora_A.default.weight", "")
            generator = torch.Generator().manual_seed(stable_hash("lora_A", seed, module))
            bound = 1 / math.sqrt(parameter.shape[1])
            start = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
            parameter.data.copy_(start)
            starts[module] = start
        elif ".lora_B." in name:
            parameter.data.zero_()
    return Lora(wrapped, fingerprint(starts), targets)


def lora_tensors(wrapped: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the current A and B of the adapter by module."""
    a: dict[str, Tensor] = {}
    b: dict[str, Tensor] = {}
    for name, parameter in wrapped.named_parameters():
        module = name.removeprefix(PREFIX)
        if ".lora_A." in name:
            a[module.replace(".lora_A.default.weight", "")] = parameter.detach()
        elif ".lora_B." in name:
            b[module.replace(".lora_B.default.weight", "")] = parameter.detach()
    return a, b


ROUTERS = ("router", "gate", "shared_expert_gate")
"""Names of the layers that choose experts. Another choice is another model; therefore they are not adapted."""
READ_AS_WEIGHTS = ("dt_proj",)
"""Layers of state-space models whose weights are read, but that are not called. An adapter would have no effect."""
STATE_SPACE = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Model types whose ``out_proj`` PEFT refuses to adapt."""


def lora_targets(model: Any, targets: str | tuple[str, ...]) -> list[str]:
    """Return the names of the modules to adapt, as short as PEFT allows.

    ``all-linear`` stands for every linear layer but the head and the routers of experts.

    Raises:
        BadTask: a named target matches no linear layer (the message lists the layers), or the model has none at all.
    """
    head = model.get_output_embeddings()
    linear = [n for n, m in model.named_modules() if (isinstance(m, torch.nn.Linear) or is_conv1d(m)) and m is not head]
    last = sorted({_leaf(n) for n in linear})
    if targets == "all-linear":
        left_out = {*READ_AS_WEIGHTS, *(ROUTERS if has_experts(model) else ())}
        left_out |= {"out_proj"} if model.config.model_type in STATE_SPACE else set()
        chosen = [n for n in linear if _leaf(n) not in left_out]
        chosen = sorted(set(chosen) - _experts_of_peft(model, chosen), key=chosen.index)
        if not chosen:
            raise BadTask("the model has no linear layer that LoRA could adapt")
        short = sorted({_leaf(n) for n in chosen})
        others = {_leaf(n) for n, _ in model.named_modules() if n not in chosen}
        return chosen if others & set(short) else short
    unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
    if unknown:
        raise BadTask(f"targets: the model has no linear layer '{unknown[0]}'; its layers: {', '.join(last)}")
    if experts := sorted(_experts_of_peft(model, targets)):
        raise BadTask(f"targets: '{experts[0]}' names experts of this model, and experts are not adapted; leave it out")
    return list(targets)


def _experts_of_peft(model: Any, targets: Sequence[str]) -> set[str]:
    """Return the targets that PEFT takes for experts.

    transformers holds experts in one parameter. PEFT takes every layer of such a name for experts, also any other.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
    except ImportError:  # a PEFT that takes no layer for experts
        return set()
    kept = []
    for name in targets:  # one by one, since PEFT wants some names together
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:
            continue
        kept += [name] if name in (config.target_modules or ()) else []
    return set(targets) - set(kept)


def has_experts(model: Any) -> bool:
    """Return whether the model is a mixture of experts.

    transformers holds the experts of a layer in a module of that name.
    """
    return any(_leaf(n) in ("experts", "block_sparse_moe", "router") for n, _ in model.named_modules())


def adapted_share(wrapped: Any) -> float:
    """Return the share of the weight matrices that the adapter changes.

    Embeddings and the head do not count.
    """
    model = wrapped.base_model.model
    left_out = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    left_out |= {id(head.weight)} if head is not None else set()
    weights = [p for n, p in model.named_parameters() if ".lora_" not in n and p.dim() > 1 and id(p) not in left_out]
    adapted = {id(m.base_layer.weight) for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    return float(sum(p.numel() for p in weights if id(p) in adapted) / max(1, sum(p.numel() for p in weights)))


def is_conv1d(module: Any) -> bool:
    """Return whether a module is GPT-2's linear layer (transposed weight)."""
    return type(module).__name__ == "Conv1D"
