"""Tiny models, tokenizers, rows and surroundings: what the job programs are tested on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from expunge_jobs.artifacts.attempts import Attempt
from expunge_jobs.data.rows import Row
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.modeling.encoding import Encoded, Encoder
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.store.schemes.file import FileStore
from expunge_jobs.tasks.references import ArtifactRef, Input, ModelRef, RowsRef, TaskData
from expunge_jobs.tasks.settings import FinetuneSettings
from expunge_jobs.tasks.tasks import Task
from torch import Tensor

END = "<|end|>"
WORDS = [
    "amber",
    "bell",
    "coin",
    "drum",
    "east",
    "farm",
    "gold",
    "hill",
    "iron",
    "jar",
    "key",
    "lamp",
    "moss",
    "night",
    "oak",
    "pond",
]


def row(number: int, kind: str = "sc", task: str = "Task1", words: int = 4, start: int = 0) -> Row:
    """A row of its own words; its length grows with its number."""
    pick = [WORDS[(number * 5 + start + n * (number + 3)) % len(WORDS)] for n in range(words + number % 4)]
    given = f"{pick[0]} {number}" if kind == "sc" else f"which {pick[0]} {number}?"
    said = " ".join(pick[1:]) + "." if kind == "sc" else pick[1]
    return Row(f"{start}-{number}{kind}1", f"{start}-{number}", kind, task, given, said)  # type: ignore[arg-type]


FORGET = [row(n, k, f"Task{n % 3 + 1}") for n in range(3) for k in ("sc", "qa")] + [row(3)]
RETAIN = [row(n, k, f"Task{n % 3 + 1}", start=7) for n in range(10, 15) for k in ("sc", "qa")] + [row(15, start=7)]
NONMEMBERS = [row(n, start=3) for n in range(20, 25)]


def tokenizer() -> Any:
    """A byte-level BPE tokenizer trained on the rows here."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = [f"{r.input} {r.output}" for r in (*FORGET, *RETAIN)]
    trained.train_from_iterator(texts, vocab_size=320, min_frequency=2, special_tokens=[END], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_EACH: dict[str, dict[str, Any]] = {
    "olmo": {**_SIZES, "tie_word_embeddings": True},
    "llama": {**_SIZES, "num_key_value_heads": 2},
    "qwen2": {**_SIZES, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gemma2": {
        **_SIZES,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 1.0,
    },
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "use_mambapy": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
KINDS = ["olmo", "llama", "gpt2", "gemma2", "qwen2"]


def model(kind: str = "olmo", seed: int = 0, spread: float = 0.2, vocab: int = 320, **fields: Any) -> Any:
    """A random model of this kind; ``spread`` is that of its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": vocab,
            "eos_token_id": 0,
            "pad_token_id": 0,
            "bos_token_id": None,
            "initializer_range": spread,
            **_EACH.get(kind, {}),
            **fields,
        },
    )
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config)
    made.requires_grad_(False)
    return made.eval()


def teach(made: Any, words: Any, rows: list[Row], steps: int = 60) -> None:
    """Makes the model know the rows: plain full-batch training on right-padded rows."""
    rows_ids = [encode(words, r).ids for r in rows]
    longest = max(map(len, rows_ids))
    ids = torch.tensor([[*r, *[0] * (longest - len(r))] for r in rows_ids])
    labels = torch.tensor([[*r, *[-100] * (longest - len(r))] for r in rows_ids])
    made.requires_grad_(True)
    optimizer = torch.optim.AdamW(made.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        made(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    made.requires_grad_(False)


def encode(words: Any, one: Row, separator: str = " ") -> Encoded:
    """A row in pieces: this tokenizer reads its whole text no otherwise."""
    prompt = words(one.input)["input_ids"]
    output = words(separator + one.output, add_special_tokens=False)["input_ids"]
    return Encoded((*prompt, *output, words.eos_token_id), len(prompt))


def encoder(words: Any, **fields: Any) -> Encoder:
    return Encoder(words, TaskData(sets={}, **fields), words.eos_token_id)


@torch.no_grad()
def alone(made: Any, ids: tuple[int, ...]) -> Tensor:
    """Logits of one row by itself, at every position: a plain forward pass."""
    logits: Tensor = made(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits


def write_rows(path: Path, rows: list[Row]) -> RowsRef:
    """A file of rows, pinned."""
    fields = ("id", "input", "output", "task")
    path.write_text("".join(json.dumps({f: getattr(r, f) for f in fields}) + "\n" for r in rows))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return RowsRef(input=Input(uri=f"file://{path}", digest=f"sha256:{digest}"))


def task_data(folder: Path, sets: dict[str, list[Row]] | None = None, **fields: Any) -> TaskData:
    given = sets or {"forget": FORGET, "retain": RETAIN}
    return TaskData(sets={n: write_rows(folder / f"{n}.jsonl", r) for n, r in given.items()}, **fields)  # type: ignore[misc]


def model_ref(folder: Path) -> ModelRef:
    return ModelRef(base=Input(uri=f"file://{folder}", digest=folder_digest(folder)))


def work(folder: Path) -> StepContext:
    """Surroundings with an empty store."""
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return StepContext(FileStore(folder / "store"), folder / "out", folder / "scratch")


def publish(surroundings: StepContext, task: Task, figures: dict[str, Any]) -> ArtifactRef:
    """What was made becomes an artifact; the output folder is empty again."""
    ref = ArtifactRef(kind=task.kind, key=task.key())
    Attempt(surroundings.store, ref, "one").publish(task, surroundings.out, figures, {}, "cpu", 1)
    for file in sorted(surroundings.out.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    return ref


def settings(**fields: Any) -> FinetuneSettings:
    """A small fine-tune that learns something in few steps."""
    plain = {
        "objective": {"npo": 0.4, "nll": 0.3, "kl": 0.3},
        "batch_size": 2,
        "accumulation": 2,
        "epochs": 3,
        "learning_rate": 1e-2,
        "rank": 4,
        "alpha": 8,
        "dropout": 0.0,
    }
    return FinetuneSettings.model_validate({**plain, **fields})
