"""The step that evaluates a model once on every row.

The step writes greedy generations, log-probabilities and row scores to ``rows.jsonl``.
Metrics (``metrics``) are computed from these lines; therefore a new metric needs no GPU.
A metric that reads the rows' text is the exception, since the text is not stored.
Generation follows the SemEval-2025 Task 4 script: greedy, at most 256 new tokens by default, the prompt raw
unless ``data.template`` is chat. The generation is decoded without special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from expunge_jobs import metrics
from expunge_jobs.data.rows import Document, Item, Question, Row
from expunge_jobs.data.selection import load
from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.loading import encoder_for, load_for_evaluation
from expunge_jobs.modeling.packing import batches, logits_at
from expunge_jobs.results.documents import document_scores, storable
from expunge_jobs.results.scores import compute_all
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.tasks.references import SetName
from expunge_jobs.tasks.tasks import EvaluateTask

ASKED: tuple[SetName, ...] = ("forget", "retain", "probe")
_CHOICES = (" A", " B", " C", " D")
SHOTS = 5
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def run(task: EvaluateTask, context: StepContext) -> dict[str, Any]:
    """Evaluate the model and return every metric's figures."""
    model, tokenizer = load_for_evaluation(task.model, context, task.dtype)
    sets = load(task.data, context.read)
    evaluator = Evaluator(model, tokenizer, task, context)
    rows = evaluator.all(sets)
    with (context.out / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(_compact(r), ensure_ascii=False) + "\n" for r in rows)
    receipt = evaluator.encoder.receipt()  # for this process's share
    summed = dict(zip(receipt, map(int, context.group.sum(list(receipt.values()))), strict=True))
    documents = storable(document_scores(rows))
    return {
        "metrics": compute_all(rows),
        "rows": len(rows),
        **({"documents": documents} if documents else {}),
        **summed,
    }


class Evaluator:
    """An evaluator of one model."""

    def __init__(self, model: Any, tokenizer: Any, task: EvaluateTask, context: StepContext) -> None:
        self.model, self.tokenizer, self.task, self.context = model, tokenizer, task, context
        self.encoder = encoder_for(model, tokenizer, task.data)
        self._total = self._done = 0
        from transformers import GenerationConfig

        given = model.generation_config.eos_token_id
        self._ends = {self.encoder.end, *(given if isinstance(given, list) else [given] if given is not None else [])}
        # A checkpoint's own config may sample or penalize repetition, and fills the fields that a call omits.
        # Therefore replace the config with the default.
        model.generation_config = GenerationConfig()
        self.limit = self.encoder.limits.positions

    @torch.no_grad()
    def all(self, sets: dict[SetName, list[Item]]) -> list[EvaluatedRow]:
        """Evaluate every set of the task, in the files' order."""
        asked = [(n, r) for n in ASKED for r in sets.get(n, []) if isinstance(r, Row)]
        others: tuple[SetName, SetName] = ("members", "nonmembers")
        texts = [(n, d) for n in others for d in _documents(sets.get(n, []))]
        questions = [q for q in sets.get("mmlu", []) if isinstance(q, Question)]
        self._total, self._done = len(asked) * 2 + len(texts) + len(questions), 0
        each = self.context.group.each
        generations = each([r for _, r in asked], self.generate)
        probabilities = each([r for _, r in asked], self.probabilities)
        rows = []
        for (name, row), (text, ended), figures in zip(asked, generations, probabilities, strict=True):
            score = metrics.row_score(row.kind, row.output, text)
            rows.append(
                EvaluatedRow(
                    set=name,
                    id=row.id,
                    document=row.document,
                    task=row.task,
                    kind=row.kind,
                    generation=text,
                    ended=ended,
                    score=score,
                    input=row.input,
                    reference=row.output,
                    **figures,
                )
            )
        for (other, document), nll in zip(texts, each(texts, self._document_nlls), strict=True):
            rows.append(
                EvaluatedRow(set=other, id=document.id, document=document.id, kind="document", document_nll=nll)
            )
        return rows + self.multiple_choice(questions)

    def generate(self, rows: Sequence[Row]) -> list[tuple[str, bool]]:
        """Generate (text, whether the model ended it) for each row.

        Rows are batched by length of prompt. Prompts are padded on the left.
        """
        prompts = [self._fitting(self.encoder.prompt(r.input)) for r in rows]
        order = sorted(range(len(rows)), key=lambda i: (len(prompts[i]), i))
        out: list[tuple[str, bool]] = [("", False)] * len(rows)
        size = self.task.settings.batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            for index, tokens in zip(chosen, self._generate_batch([prompts[i] for i in chosen]), strict=True):
                ended = bool(tokens) and tokens[-1] in self._ends
                out[index] = (_clean_up(self.tokenizer.decode(tokens, skip_special_tokens=True)), ended)
            self._tick(len(chosen))
        return out

    def _fitting(self, prompt: list[int]) -> list[int]:
        """Cut a prompt from the left to the positions of the model.

        The model needs positions for the prompt and for the generated tokens.
        """
        room = max(1, self.limit - self.task.settings.max_new_tokens)
        self.encoder.cut_inputs += len(prompt) > room
        return prompt[-room:]

    def _generate_batch(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=self.task.settings.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.encoder.end,
        )
        longest = max(len(p) for p in prompts)
        where = next(self.model.parameters()).device
        ids = torch.tensor([[self.encoder.end] * (longest - len(p)) + p for p in prompts], device=where)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=where)
        tokens = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
        return [_until_end(t, self._ends) for t in tokens]

    def probabilities(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Compute the probability figures of each row.

        All figures of a row come from one packed pass:

            output_nll     NLL of the label tokens
            output_tokens  number of label tokens
            extraction     extraction strength
            document_nll   mean NLL of the whole text but its first and last token; membership reads this
        """
        encoded = self.encoder.rows(rows, self.limit)
        out = []
        for chunk in batches(encoded):
            members = [encoded[i] for i in chunk]
            positions = [range(len(r.ids) - 1) for r in members]
            for row, logits in zip(members, logits_at(self.model, members, positions), strict=True):
                ids = torch.tensor(row.ids[1:], device=logits.device)
                nll = cross_entropy(logits, ids, reduction="none")
                whole = row.ids[-1] == self.encoder.end  # the last token is the end token, no word of the output
                right = (logits.argmax(-1) == ids)[row.prompt - 1 :].tolist()
                without_end = nll[:-1] if len(nll) > 1 else nll
                out.append(
                    {
                        "output_nll": float(nll[row.prompt - 1 :].sum()),
                        "output_tokens": len(row.labels),
                        "extraction": extraction_strength(right[:-1] if whole else right),
                        "document_nll": float(without_end.mean()),
                    }
                )
            self._tick(len(chunk))
        return out

    def document_nll(self, document: Document | Row) -> float | None:
        """Return the mean NLL of all tokens of a text but the first.

        A row is joined as everywhere else, without its end token.
        The method returns None for fewer than two tokens.
        """
        if isinstance(document, Row):
            ids = self.encoder.row(document, self.limit).ids[:-1]
        else:
            ids = tuple(self.encoder.text(document.text))
            self.encoder.cut_outputs += len(ids) > self.limit
            ids = ids[: self.limit]
        self._tick(1)
        if len(ids) < 2:
            return None
        row = Encoded(ids, 1)
        logits = logits_at(self.model, [row], [range(len(ids) - 1)])[0]
        return float(cross_entropy(logits, torch.tensor(ids[1:], device=logits.device)))

    def _document_nlls(self, texts: Sequence[tuple[SetName, Document | Row]]) -> list[float | None]:
        return [self.document_nll(document) for _, document in texts]

    def multiple_choice(self, questions: Sequence[Question]) -> list[EvaluatedRow]:
        """Answer each MMLU question with the most probable letter.

        Each prompt starts with at most five questions from the subject's own dev rows.
        """
        letters = [self.tokenizer(c, add_special_tokens=False)["input_ids"][-1] for c in _CHOICES]
        tests = [q for q in questions if q.split == "test"]
        return self.context.group.each(tests, lambda mine: [self._choice(q, questions, letters) for q in mine])

    def _choice(self, question: Question, questions: Sequence[Question], letters: Sequence[int]) -> EvaluatedRow:
        shots = [q for q in questions if q.split == "dev" and q.subject == question.subject][:SHOTS]
        subject = question.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        text = head + "".join(_ask(q) + f"{_CHOICES[q.answer]}\n\n" for q in shots) + _ask(question)
        ids = tuple(self.encoder.text(text)[-self.limit :])
        logits = logits_at(self.model, [Encoded(ids, len(ids))], [range(len(ids) - 1, len(ids))])[0][0]
        chosen = max(range(4), key=lambda i: float(logits[letters[i]]))
        right = float(chosen == question.answer)
        self._tick(1)
        return EvaluatedRow("mmlu", question.id, question.id, "choice", task=question.subject, score=right)

    def _tick(self, count: int) -> None:
        self._done = min(self._total, self._done + count * self.context.group.size)  # the other ranks are about as far
        self.context.progress(self._done, self._total)


def extraction_strength(right: Sequence[bool]) -> float:
    """Return the extraction strength 1 - k/n of an output.

    The output has n tokens. After the shortest prefix of k tokens, every next token is the greedy token
    (Carlini et al. 2021; Wang et al., arXiv 2410.23249).
    ``right`` tells for each token whether the token is the greedy token.
    """
    known = 0
    for value in reversed(right):
        if not value:
            break
        known += 1
    return known / len(right) if right else 0.0


def _documents(items: Sequence[Item]) -> list[Document | Row]:
    """Return the documents as given and the completion rows."""
    return [i for i in items if isinstance(i, Document) or (isinstance(i, Row) and i.kind == "sc")]


def _clean_up(text: str) -> str:
    """Clean up spaces as ``clean_up_tokenization_spaces`` does.

    The SemEval script runs with that clean-up. transformers 5 ignores the option for BPE.
    """
    for written, cleaned in _CLEAN_UP:
        text = text.replace(written, cleaned)
    return text


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for place, token in enumerate(tokens):
        if token in ends:
            return tokens[: place + 1]
    return tokens


def _ask(question: Question) -> str:
    options = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", question.choices, strict=True))
    return f"{question.question}\n{options}Answer:"


def _compact(row: EvaluatedRow) -> dict[str, Any]:
    return {k: v for k, v in asdict(row).items() if v is not None and k not in metrics.TEXTS}
