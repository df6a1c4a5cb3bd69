"""Models with their adapters, from directories in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from expunge_jobs.core.errors import BadTask
from expunge_jobs.inputs import model_folder
from expunge_jobs.inputs.adapter_folder import PREFIX
from expunge_jobs.modeling.adapters import Adapter, is_conv1d
from expunge_jobs.modeling.encoding import NO_LIMIT, Encoder, ModelLimits
from expunge_jobs.runtime.distributed import device
from expunge_jobs.tasks.references import AdapterRef, ArtifactRef, Input, ModelRef, TaskData

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ArtifactLocator(Protocol):
    """A source of local folders of artifacts and inputs, with checked bytes."""

    def path(self, ref: ArtifactRef | Input) -> Path: ...


def load_base(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a directory.

    The directory is in Hugging Face's format, with safetensors only.

    Raises:
        BadTask: a file is missing, or transformers cannot read the directory; the message names the cause.
    """
    model_folder.check_model_folder(folder)
    from transformers import AutoTokenizer

    try:
        config = _config(folder)
        model, loading = _causal_class(config).from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == "checkpoint" else _DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (BadTask, MemoryError):
        raise
    except Exception as error:  # each underlying library raises its own errors
        if "out of memory" in str(error).lower():
            raise
        raise BadTask(f"the model cannot be loaded: {_first_line(error)}") from None
    if loading["missing_keys"]:
        # transformers would initialize missing weights at random and only warn; therefore refuse the model.
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


def encoder_for(model: Any, tokenizer: Any, data: TaskData) -> Encoder:
    """Return the encoder of a task's rows for this model and its tokenizer.

    Raises:
        BadTask: the model has no end token, or the template fails.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    embedding = model.get_input_embeddings()
    limits = ModelLimits(
        positions=positions if isinstance(positions, int) and positions > 0 else NO_LIMIT,
        tokens=int(embedding.weight.shape[0]) if embedding is not None else NO_LIMIT,
    )
    return Encoder(tokenizer, data, end_token(model, tokenizer), limits)


def end_token(model: Any, tokenizer: Any) -> int:
    """Return the token that ends an output.

    The token is the tokenizer's, or else the first of the model's.

    Raises:
        BadTask: the model has no end token.
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


def fold(model: Any, adapter: Adapter, scale: float) -> None:
    """Add scale x scaling x BA to the model's own weights.

    The sum is computed in float32 and rounded once to the weight's dtype.

    Raises:
        BadTask: the adapter does not fit the model, since a module is missing or has another shape.
    """
    _check_untied(model, adapter)
    _check_finite(adapter)
    modules = dict(model.named_modules())
    for name, a in adapter.A.items():
        module = modules.get(name)
        if module is None:
            raise BadTask(f"the adapter does not fit the model: it has no module {name}")
        weight: Any = module.weight
        delta = (adapter.B[name].to(weight.device) @ a.to(weight.device)) * (adapter.scaling * scale)
        if is_conv1d(module):
            delta = delta.T
        if delta.shape != weight.shape:
            raise BadTask(
                f"the adapter does not fit the model: {name} is {tuple(weight.shape)}, not {tuple(delta.shape)}"
            )
        with torch.no_grad():
            weight.copy_((weight.float() + delta).to(weight.dtype))


def load_model(ref: ModelRef, locator: ArtifactLocator, dtype: str) -> tuple[Any, Any]:
    """Load a base with its adapters folded into its weights.

    A fine-tune or a memorize step starts from this model.
    """
    model, tokenizer = load_base(locator.path(ref.base), dtype)
    for given in ref.adapters:
        adapter = Adapter(locator.path(given.ref))
        fold(model, adapter, scale_of(given, adapter, locator))
    return model, tokenizer


def scale_of(given: AdapterRef, adapter: Adapter, locator: ArtifactLocator) -> float:
    """Return the factor of an adapter's update.

    Raises:
        BadTask: the factor is another adapter's norm, and this update is zero.
    """
    if not isinstance(given.scale, ArtifactRef):
        return given.scale
    own = adapter.norm()
    if own == 0:
        raise BadTask("the adapter's update is zero: no factor gives it another adapter's norm")
    return Adapter(locator.path(given.scale)).norm() / own


def load_for_evaluation(ref: ModelRef, locator: ArtifactLocator, dtype: str) -> tuple[Any, Any]:
    """Load a base with its adapters beside its weights, as in training.

    Folding an adapter into bfloat16 weights would round the adapter away.
    """
    model, tokenizer = load_base(locator.path(ref.base), dtype)
    if not ref.adapters:
        return model, tokenizer
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wrapped: Any = None
    names: list[str] = []
    adapters = [Adapter(locator.path(given.ref)) for given in ref.adapters]
    for adapter in adapters:
        _check_finite(adapter)
    for adapter in adapters:  # PEFT wraps the modules that are compared; therefore check all adapters first
        _check_untied(model, adapter)
    for number, (given, adapter) in enumerate(zip(ref.adapters, adapters, strict=True)):
        _check_fits(model, adapter)
        name = f"adapter{number}"
        names.append(name)
        if wrapped is None:
            wrapped = PeftModel.from_pretrained(model, adapter.folder, adapter_name=name)
        else:
            wrapped.load_adapter(adapter.folder, adapter_name=name)
        _check_whole(wrapped, adapter, name)
        scale = scale_of(given, adapter, locator)
        for module in wrapped.modules():
            if isinstance(module, LoraLayer) and name in module.scaling:
                module.set_scale(name, scale)  # in units of alpha / r
    wrapped.base_model.set_adapter(names)
    wrapped.requires_grad_(False)
    return wrapped.base_model.model.eval(), tokenizer


def _check_finite(adapter: Adapter) -> None:
    if not adapter.finite():
        raise BadTask("the adapter holds values that are not finite")


def _check_whole(wrapped: Any, adapter: Adapter, name: str) -> None:
    """Refuse an adapter whose configuration and tensors name other modules."""
    from peft.tuners.lora import LoraLayer

    put = {
        module.removeprefix(PREFIX)
        for module, layer in wrapped.named_modules()
        if isinstance(layer, LoraLayer) and name in layer.lora_A
    }
    if other := sorted(put ^ set(adapter.A)):
        place = "on the model, but has no tensors" if other[0] in put else "has tensors, but is not put on the model"
        raise BadTask(
            f"adapter_config.json and the adapter's tensors name different modules: {other[0]} is {place} "
            "(target_modules, exclude_modules, layers_to_transform)"
        )


def _check_untied(model: Any, adapter: Adapter) -> None:
    """Refuse an adapter of a head or embedding with a shared weight.

    Beside the weights the adapter changes one of the two, folded in it changes both.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return
    modules = dict(model.named_modules())
    for name in adapter.A:
        if modules.get(name) in (head, embedding):
            raise BadTask(
                f"the adapter adapts {name}, whose weight the model's head and embedding share (tie_word_embeddings): such "
                "an adapter is one model beside the weights and another folded in; train it without that module"
            )


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


# --- error messages ---------------------------------------------------------------------------------------------------


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
