"""A LoRA adapter in PEFT's format as a directory.

The checks load no weight. An adapter is judged, merged, scaled and pulled by its pairs of A and B alone. Therefore a
configuration that means more than these pairs is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs.weight_files import read_json, tensor_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."
"""How PEFT begins the names of tensors."""
_NO_EFFECT = frozenset(
    {
        "alora_invocation_string",
        "auto_mapping",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "base_model_name_or_path",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
"""Fields that say nothing of a finished adapter beside A, B and alpha / r; or are checked by themselves."""
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is. Under the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) the
training changes the base, and BA holds a part of the base's weight."""
_REASONS = {
    "alora_invocation_tokens": "an activated LoRA acts on a part of each text only",
    "alpha_pattern": "some modules have alphas of their own",
    "arrow_config": "an Arrow router chooses among adapters",
    "kasa_config": "KaSA changes the base's weights",
    "layer_replication": "the model has layers that its base has not",
    "lora_bias": "B has a bias",
    "megatron_config": "it names a Python module to be imported",
    "modules_to_save": "whole modules belong to it beside A and B",
    "rank_pattern": "some modules have ranks of their own",
    "target_parameters": "parameters are adapted that are no linear layers",
    "trainable_token_indices": "rows of the embedding belong to it",
    "use_dora": "DoRA has magnitudes beside A and B",
    "use_qalora": "QALoRA groups the inputs of A",
    "use_rslora": "its update is scaled by alpha / sqrt(r)",
}


def check_adapter_folder(folder: Path) -> None:
    """Refuse a directory that is not a plain LoRA adapter.

    Raises:
        BadTask: a file is missing or unreadable, a field of the configuration is not supported, or the tensors are not
            pairs of A [r, in] and B [out, r].
    """
    lacks = next((n for n in (CONFIG, WEIGHTS) if not (folder / n).is_file()), None)
    if lacks:
        raise BadTask(f"the adapter directory lacks {lacks}")
    config = read_json(folder / CONFIG)
    check_config(config)
    _check_tensors(tensor_shapes(folder / WEIGHTS), config["r"])


def check_config(config: dict[str, Any]) -> None:
    """Refuse a configuration that means more than pairs of A and B.

    Raises:
        BadTask: the field, its value and the reason.
    """
    if config.get("peft_type") != "LORA":
        raise BadTask(f"the adapter is of PEFT type {config.get('peft_type')}; allowed: LORA")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise BadTask(f"{CONFIG}: r is {_shown(config, 'r')}; allowed: a whole number of at least 1")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha < 1e30:
        raise BadTask(f"{CONFIG}: lora_alpha is {_shown(config, 'lora_alpha')}; allowed: a number above 0")
    if not config.get("target_modules"):
        raise BadTask(f"{CONFIG}: target_modules is {_shown(config, 'target_modules')}; allowed: names of modules")
    if config.get("init_lora_weights", True) not in _STARTS:
        said = "with this start, BA holds a part of the base's weight; convert the adapter to a plain LoRA (PEFT: "
        said += "path_initial_model_for_weight_conversion)"
        raise BadTask(f"{CONFIG}: init_lora_weights is {_shown(config, 'init_lora_weights')}: {said}")
    if config.get("bias", "none") != "none":
        raise BadTask(f"{CONFIG}: bias is {_shown(config, 'bias')}: biases belong to it beside A and B")
    for field in sorted(set(config) - _NO_EFFECT - {"bias"}):
        if config[field]:
            reason = _REASONS.get(field, "this version does not know what that changes")
            raise BadTask(f"{CONFIG}: {field} is {_shown(config, field)}: {reason}")


def _check_tensors(shapes: dict[str, tuple[int, ...]], rank: int) -> None:
    if unprefixed := sorted(k for k in shapes if k.endswith((A, B)) and not k.startswith(PREFIX)):
        raise BadTask(f"{WEIGHTS}: {unprefixed[0]} does not begin with {PREFIX}, without which PEFT reads no tensor")
    other = sorted(k for k in shapes if not k.endswith((A, B)))
    pairs = {k.removesuffix(A) for k in shapes if k.endswith(A)}
    if other or pairs != {k.removesuffix(B) for k in shapes if k.endswith(B)} or not pairs:
        what = other[0] if other else "an A without its B, or a B without its A" if shapes else "nothing"
        raise BadTask(f"the adapter holds something else than pairs of A and B: {what}")
    for name, shape in sorted(shapes.items()):
        if 0 in shape:
            raise BadTask(f"{WEIGHTS}: {name} is empty ({list(shape)}): was it saved under ZeRO-3 without gathering?")
        found = shape[0] if name.endswith(A) else shape[-1]
        if len(shape) != 2 or found != rank:
            raise BadTask(f"{WEIGHTS}: {name} is {list(shape)}, which does not fit r {rank} in {CONFIG}")


def _shown(config: dict[str, Any], field: str) -> str:
    if field not in config:
        return "missing"
    text = repr(config[field])
    return text if len(text) <= 60 else text[:57] + "..."
