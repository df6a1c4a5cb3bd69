"""The step that evaluates a model once on every row.

The step writes greedy generations, log-probabilities and row scores to ``rows.jsonl``.
Metrics (``metrics``) are computed from these lines; therefore a new metric needs no GPU.
A metric that reads the rows' text is the exception, since the text is not stored.
Generation follows the SemEval-2025 Task 4 script: greedy, at most 256 new tokens by default, the prompt raw
unless ``data.template`` is chat. The generation is decoded without special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge_jobs import metrics
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Document, Item, Question, Row
from expunge_jobs.data.selection import load
from expunge_jobs.metrics import EvaluatedRow
from expunge_jobs.modeling.encoding import Encoded, shared
from expunge_jobs.modeling.loading import encoder_for, load_for_evaluation
from expunge_jobs.modeling.packing import SLICE, Passes, head_logits, keeps_apart
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
    evaluator.encoder.tell(context.notice)
    receipt = evaluator.encoder.receipt()  # for this process's share
    summed = dict(zip(receipt, map(int, context.group.sum(list(receipt.values()))), strict=True))
    documents = storable(document_scores(rows))
    return {
        "metrics": compute_all(rows),
        "rows": len(rows),
        **({"documents": documents} if documents else {}),
        **evaluator.passes.receipt(),
        **summed,
    }


class Evaluator:
    """An evaluator of one model."""

    def __init__(self, model: Any, tokenizer: Any, task: EvaluateTask, context: StepContext) -> None:
        self.model, self.tokenizer, self.task, self.context = model, tokenizer, task, context
        self.encoder = encoder_for(model, tokenizer, task.data)
        self.passes = Passes(model, packed=False)
        self._total = self._done = 0
        from transformers import GenerationConfig

        given = model.generation_config.eos_token_id
        self._ends = {self.encoder.end, *(given if isinstance(given, list) else [given] if given is not None else [])}
        self._ends |= {int(tokenizer.eos_token_id)} if tokenizer.eos_token_id is not None else set()
        # A checkpoint's own config may sample or penalize repetition, and fills the fields that a call omits.
        # Therefore replace the config with the default.
        model.generation_config = GenerationConfig()
        self.limit = self.encoder.limits.positions

    @torch.no_grad()
    def all(self, sets: dict[SetName, list[Item]]) -> list[EvaluatedRow]:
        """Evaluate every set of the task, in the files' order."""
        asked = [(n, r) for n in ASKED for r in sets.get(n, []) if isinstance(r, Row)]
        self.passes = Passes(self.model, packed=self._keeps_apart([r for _, r in asked]))
        others: tuple[SetName, SetName] = ("members", "nonmembers")
        texts = [(n, d) for n in others for d in _documents(sets.get(n, []))]
        questions = [q for q in sets.get("mmlu", []) if isinstance(q, Question)]
        self._total, self._done = len(asked) * 2 + len(texts) + len(questions), 0
        each = self.context.group.each
        generations = each([r for _, r in asked], self.generate)
        probabilities = each([r for _, r in asked], self.probabilities)
        rows = []
        for (name, row), (text, ended), figures in zip(asked, generations, probabilities, strict=True):
            rows.append(
                EvaluatedRow(
                    set=name,
                    id=row.id,
                    document=row.document,
                    task=row.task,
                    kind=row.kind,
                    generation=text,
                    ended=ended,
                    **metrics.judged(row.kind, row.output, text),
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
        # The generated tokens need positions too. A short model gives them half, and the prompts the other half.
        room = max(self.limit - self.task.settings.max_new_tokens, self.limit // 2, 1)
        prompts = [self.encoder.prompt(r.input, room) for r in rows]
        order = sorted(range(len(rows)), key=lambda i: (len(prompts[i]), i))
        out: list[tuple[str, bool]] = [("", False)] * len(rows)
        size = self.task.settings.batch_size
        if not self.passes.packed and not self._reads_padding(prompts):
            size = 1
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            for index, tokens in zip(chosen, self._generate_batch([prompts[i] for i in chosen]), strict=True):
                ended = bool(tokens) and tokens[-1] in self._ends
                out[index] = (_clean_up(self.tokenizer.decode(tokens, skip_special_tokens=True)), ended)
            self._tick(len(chosen))
        return out

    def _keeps_apart(self, rows: Sequence[Row]) -> bool:
        if not rows:
            return False
        pair = [choose(rows, key=lambda r: len(r.input) + len(r.output)) for choose in (min, max)]
        own = encoder_for(self.model, self.tokenizer, self.task.data)  # these rows are counted elsewhere
        return keeps_apart(self.model, own.rows(pair, self.limit))

    def _reads_padding(self, prompts: Sequence[list[int]]) -> bool:
        """Return whether a padded prompt is continued as the prompt alone.

        Some recurrent models know no padding.
        """
        if not prompts:
            return True
        pair = [min(prompts, key=len), max(prompts, key=len)]
        return self._generate_batch(pair) == [self._generate_batch([p])[0] for p in pair]

    def _generate_batch(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        from transformers import GenerationConfig

        longest = max(len(p) for p in prompts)
        config = GenerationConfig(
            max_new_tokens=min(self.task.settings.max_new_tokens, max(1, self.limit - longest)),
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(self._ends),
            pad_token_id=self.encoder.end,
        )
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
            document_nll   mean NLL of the whole text but its first token and the end token; membership reads this
        """
        encoded = self.encoder.rows(rows, self.limit)
        out = []
        for row, (nll, told) in zip(encoded, self._tokens(encoded), strict=True):
            whole = row.ids[-1] == self.encoder.end  # the last token is the end token, no word of the output
            right = told[row.prompt - 1 :].tolist()
            without_end = nll[:-1] if whole and len(nll) > 1 else nll
            out.append(
                {
                    "output_nll": float(nll[row.prompt - 1 :].sum()),
                    "output_tokens": len(row.labels),
                    "extraction": extraction_strength(right[:-1] if whole else right),
                    "document_nll": float(without_end.mean()),
                }
            )
        return out

    def _tokens(self, rows: Sequence[Encoded]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield -log p of every token but the first, row by row.

        Beside it stands whether each token is the greedy token.
        """
        for chunk in self.passes.batches(rows):
            members = [rows[i] for i in chunk]
            states = self.passes.hidden_at(members, [range(len(r.ids) - 1) for r in members])
            for row, mine in zip(members, states, strict=True):
                nlls, greedy = [], []
                ids = torch.tensor(row.ids[1:], device=mine.device)
                for part, wanted in zip(torch.split(mine, SLICE), torch.split(ids, SLICE), strict=True):
                    logits = head_logits(self.model, part)
                    nlls.append(cross_entropy(logits, wanted, reduction="none"))
                    greedy.append(logits.argmax(-1) == wanted)
                yield torch.cat(nlls), torch.cat(greedy)
            self._tick(len(chunk))

    def document_nlls(self, documents: Sequence[Document | Row]) -> list[float | None]:
        """Return the mean NLL of all tokens of each text but the first.

        A row is joined as everywhere else, without its end token. The value is None for fewer than two tokens.
        """
        encoded = [Encoded(self._document(d), 1) for d in documents]
        told = [r for r in encoded if len(r.ids) > 1]
        nlls = iter([float(nll.mean()) for nll, _ in self._tokens(told)])
        self._tick(len(encoded) - len(told))
        return [next(nlls) if len(r.ids) > 1 else None for r in encoded]

    def _document(self, document: Document | Row) -> tuple[int, ...]:
        if isinstance(document, Row):
            ids = self.encoder.row(document, self.limit).ids
            return ids[:-1] if ids[-1] == self.encoder.end else ids
        whole = tuple(self.encoder.text(document.text))
        self.encoder.cut_outputs += len(whole) > self.limit
        return whole[: self.limit]

    def _document_nlls(self, texts: Sequence[tuple[SetName, Document | Row]]) -> list[float | None]:
        return self.document_nlls([document for _, document in texts])

    def multiple_choice(self, questions: Sequence[Question]) -> list[EvaluatedRow]:
        """Answer each MMLU question with the most probable letter.

        Each prompt starts with at most five questions from the subject's own dev rows.
        """
        tests = [q for q in questions if q.split == "test"]
        return self.context.group.each(tests, lambda mine: [self._choice(q, questions) for q in mine])

    def _choice(self, question: Question, questions: Sequence[Question]) -> EvaluatedRow:
        shots = [q for q in questions if q.split == "dev" and q.subject == question.subject][:SHOTS]
        subject = question.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        text = head + "".join(_ask(q) + f"{_CHOICES[q.answer]}\n\n" for q in shots) + _ask(question)
        figures = self._continuations([text + choice for choice in _CHOICES])
        right = float(max(range(4), key=figures.__getitem__) == question.answer)
        self._tick(1)
        return EvaluatedRow("mmlu", question.id, question.id, "choice", task=question.subject, score=right)

    def _continuations(self, texts: Sequence[str]) -> list[float]:
        """Return log p of each text behind what the texts have in common.

        A letter may be several tokens. Each text is encoded as a whole.
        """
        rows = [self.encoder.text(t) for t in texts]
        common = min(shared(rows[0], r) for r in rows[1:])
        if min(map(len, rows)) == common:
            raise BadTask("the tokenizer reads the letters A to D alike: data.mmlu cannot be asked of this model")
        if all(len(r) == common + 1 for r in rows):  # one pass tells all
            asked = self.encoder.cut_text(rows[0][:common], self.limit)
            (logits,) = self.passes.logits_at([Encoded(tuple(asked), 1)], [range(len(asked) - 1, len(asked))])
            return [float(logits[0][r[common]]) for r in rows]
        out = []
        for row in rows:
            labels = len(row) - common
            ids = self.encoder.cut_text(row, self.limit)
            (logits,) = self.passes.logits_at([Encoded(tuple(ids), 1)], [range(len(ids) - 1 - labels, len(ids) - 1)])
            wanted = torch.tensor(ids[-labels:], device=logits.device)
            out.append(-float(cross_entropy(logits, wanted, reduction="sum")))
        return out

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
