"""The parts of an evaluation beside its oracle (``test_evaluate``): adapters, membership, MMLU, what is kept."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from expunge_jobs.core.errors import BadTask
from expunge_jobs.data.rows import Document, Question, Row
from expunge_jobs.inputs.model_folder import folder_digest
from expunge_jobs.modeling.adapters import Adapter, adapter_config, attach_lora, lora_tensors, write_adapter
from expunge_jobs.modeling.encoding import Encoded
from expunge_jobs.modeling.loading import load_for_evaluation, scale_of
from expunge_jobs.runtime.context import StepContext
from expunge_jobs.steps import evaluate
from expunge_jobs.steps.evaluate import Evaluator
from expunge_jobs.tasks.references import AdapterRef, ArtifactRef, Input, ModelRef, TaskData
from expunge_jobs.tasks.settings import EvaluateSettings
from expunge_jobs.tasks.tasks import EvaluateTask

from tests.jobs import tiny_models as tiny

IDS = tuple(range(5, 25))


def evaluator(base: Any, words: Any, work: StepContext, batch_size: int = 4, new: int = 12, **data: Any) -> Evaluator:
    model = ModelRef(base=Input(uri="file:///x", digest="x"))
    settings = EvaluateSettings(batch_size=batch_size, max_new_tokens=new)
    task = EvaluateTask(model=model, data=TaskData(sets={}, **data), settings=settings)
    return Evaluator(base, words, task, work)


def one_row(base: Any, words: Any, text: str, new: int = 12) -> tuple[list[int], list[float]]:
    """The oracle: transformers.generate on one prompt; its tokens, and the gap of the two best logits of each step."""
    ids = words(text, return_tensors="pt")["input_ids"]
    made = base.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=new,
        return_dict_in_generate=True,
        output_logits=True,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    gaps = [float(-torch.diff(x[0].topk(2).values)) for x in made.logits]
    return made.sequences[0, ids.shape[1] :].tolist(), gaps


@pytest.mark.parametrize("kind", ["olmo", "gpt2", "gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_a_batch_gives_the_tokens_of_each_row_alone(words: Any, work: StepContext, kind: str, batch_size: int) -> None:
    model = tiny.model(kind, vocab=len(words))
    made = evaluator(model, words, work, batch_size)
    rows = [*tiny.FORGET, *tiny.RETAIN]
    prompts = [made.encoder.prompt(r.input) for r in rows]
    found: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        found += made._generate_batch(prompts[start : start + batch_size])
    for row, tokens in zip(rows, found, strict=True):
        alone, gaps = one_row(model, words, row.input)
        sure = next((n for n, gap in enumerate(gaps) if gap < 1e-4), len(gaps))
        assert tokens[:sure] == alone[:sure]
        assert sure < len(gaps) or tokens == alone


def test_texts_do_not_depend_on_the_batch(base: Any, words: Any, work: StepContext) -> None:
    rows = [*tiny.FORGET, *tiny.RETAIN]
    one, four, turned = (
        evaluator(base, words, work, 1).generate(rows),
        evaluator(base, words, work, 4).generate(rows),
        evaluator(base, words, work, 4).generate(rows[::-1])[::-1],
    )
    assert one == four == turned
    assert any(ended for _, ended in one), "the taught model ends some of them"


def test_a_text_ends_at_its_end_token_or_at_the_limit(base: Any, words: Any, work: StepContext) -> None:
    rows = [*tiny.FORGET, *tiny.RETAIN]
    for row, (text, ended) in zip(rows, evaluator(base, words, work, 5, new=6).generate(rows), strict=True):
        tokens, _ = one_row(base, words, row.input, new=6)
        assert ended == (tokens[-1] == words.eos_token_id)
        assert tiny.END not in text
        assert len(tokens) == 6 or ended


def test_the_checkpoints_own_way_to_generate_does_not_count(base: Any, words: Any, work: StepContext) -> None:
    plain = evaluator(base, words, work).generate(tiny.FORGET)
    for name, value in {"do_sample": True, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1}.items():
        setattr(base.generation_config, name, value)
    assert evaluator(base, words, work).generate(tiny.FORGET) == plain


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        ("Yes . No , well ! What ?", "Yes. No, well! What?"),
        ("it 's , I 'm , we 've , you 're , do n't", "it's, I'm, we've, you're, don't"),
        ("a ' b", "a'b"),
        ("as it is. Really, so", "as it is. Really, so"),
    ],
)
def test_spaces_are_cleaned_up_as_the_semeval_script_does(decoded: str, text: str) -> None:
    """clean_up_tokenization_spaces=True, which transformers 5 ignores for BPE."""
    assert evaluate._clean_up(decoded) == text


def adapters(base: Any, folder: Path) -> list[Path]:
    """Two adapters with unlike alphas."""
    out = []
    for number, alpha in enumerate((8.0, 6.0)):
        lora = attach_lora(copy.deepcopy(base), tiny.settings(alpha=alpha), number)
        a, b = lora_tensors(lora.wrapped)
        torch.manual_seed(number)
        b = {k: torch.randn(v.shape) * 0.1 for k, v in b.items()}
        write_adapter(folder / str(number), adapter_config(4, alpha, 0.0, lora.targets), a, b)
        out.append(folder / str(number))
    return out


@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (0.0,), (-0.7,), (0.5, 0.25), (1.0, -1.0)])
def test_adapters_count_by_their_scale(
    base_folder: Path, base: Any, work: StepContext, tmp_path: Path, scales: tuple[float, ...]
) -> None:
    """A control: the base's weights + scale x (alpha / r) x BA."""
    folders = adapters(base, tmp_path)[: len(scales)]
    refs = tuple(
        AdapterRef(ref=Input(uri=f"file://{f}", digest=folder_digest(f)), scale=s)
        for f, s in zip(folders, scales, strict=True)
    )
    ref = ModelRef(base=tiny.model_ref(base_folder).base, adapters=refs)
    model, _ = load_for_evaluation(ref, work, "checkpoint")
    before = tiny.alone(base, IDS)
    for folder, scale in zip(folders, scales, strict=True):
        adapter = Adapter(folder)
        for name, module in base.named_modules():
            if name in adapter.A:
                alpha = adapter.config["lora_alpha"]
                module.weight.data += scale * (alpha / 4) * (adapter.B[name] @ adapter.A[name])
    torch.testing.assert_close(tiny.alone(model, IDS), tiny.alone(base, IDS), rtol=1e-4, atol=1e-4)
    moved = float((tiny.alone(model, IDS) - before).abs().max())
    assert moved == pytest.approx(0, abs=1e-5) if scales == (0.0,) else moved > 0.05
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_control_of_another_s_norm(base: Any, base_folder: Path, work: StepContext, tmp_path: Path) -> None:
    """The specialist's update, as large as the merge's."""
    folders = adapters(base, tmp_path)
    merged = ArtifactRef(kind="merge", key="0" * 64, folder="adapter")
    given = AdapterRef(ref=Input(uri=f"file://{folders[0]}", digest=folder_digest(folders[0])), scale=merged)

    class Locator:
        def path(self, ref: ArtifactRef | Input) -> Path:
            return folders[1] if ref == merged else work.path(ref)

    model, _ = load_for_evaluation(
        ModelRef(base=tiny.model_ref(base_folder).base, adapters=(given,)), Locator(), "checkpoint"
    )
    one, other = Adapter(folders[0]), Adapter(folders[1])
    norm = 0.0
    for name, module in model.named_modules():
        if name in one.A:
            update = module.scaling["adapter0"] * (one.B[name] @ one.A[name])
            norm += float(update.double().square().sum())
    assert math.sqrt(norm) == pytest.approx(other.norm(), rel=1e-5) != pytest.approx(one.norm(), rel=0.1)


def test_a_control_of_an_update_of_zero_has_no_norm_to_scale(base: Any, tmp_path: Path) -> None:
    folder = adapters(base, tmp_path)[0]
    adapter = Adapter(folder)
    adapter.B = {k: v * 0 for k, v in adapter.B.items()}
    given = AdapterRef(ref=Input(uri="file:///a", digest="sha256:0"), scale=ArtifactRef(kind="merge", key="0" * 64))
    with pytest.raises(BadTask, match="update is zero"):
        scale_of(given, adapter, None)  # type: ignore[arg-type]


def test_an_adapter_of_another_model_is_refused(base_folder: Path, work: StepContext, tmp_path: Path) -> None:
    [folder, _] = adapters(tiny.model("llama"), tmp_path)
    adapter = AdapterRef(ref=Input(uri=f"file://{folder}", digest=folder_digest(folder)))
    ref = ModelRef(base=tiny.model_ref(base_folder).base, adapters=(adapter,))
    with pytest.raises(BadTask, match="does not fit the model: .*k_proj"):
        load_for_evaluation(ref, work, "checkpoint")


def mean_nll(base: Any, ids: tuple[int, ...]) -> float:
    scores = tiny.alone(base, ids).double().log_softmax(-1)
    return -sum(float(scores[i - 1, ids[i]]) for i in range(1, len(ids))) / (len(ids) - 1)


@pytest.mark.parametrize("separator", [" ", "", " => "])
def test_membership_reads_members_and_nonmembers_alike(
    base: Any, words: Any, work: StepContext, separator: str
) -> None:
    """A completion row gives the same value as a forget row (the default members) and as a non-member."""
    row = tiny.FORGET[0]
    made = evaluator(base, words, work, separator=separator)
    rows = made.all({"forget": [row], "members": [row], "nonmembers": [row, tiny.FORGET[1]]})
    plain = mean_nll(base, tiny.encode(words, row, separator).ids[:-1])
    assert [(r.set, r.document_nll) for r in rows] == [
        (s, pytest.approx(plain, rel=1e-4)) for s in ("forget", "members", "nonmembers")
    ], "and a question row is no document"


def test_membership_of_a_document_is_over_all_tokens_but_the_first(base: Any, words: Any, work: StepContext) -> None:
    made = evaluator(base, words, work)
    [row] = made.all({"nonmembers": [Document("a", "amber bell coin drum")]})
    assert row.document_nll == pytest.approx(
        mean_nll(base, tuple(words("amber bell coin drum")["input_ids"])), rel=1e-5
    )
    assert row.score is None and row.generation is None


def test_a_document_of_one_token_has_no_score(base: Any, words: Any, work: StepContext) -> None:
    [row] = evaluator(base, words, work).all({"nonmembers": [Document("a", "a")]})
    assert row.document_nll is None


def question(number: int, split: str = "test", subject: str = "high_school_law") -> Question:
    said = tuple(f"{tiny.WORDS[(number + n) % 16]}" for n in range(4))
    return Question(f"{split}{number}", subject, f"which {tiny.WORDS[number]}?", said, number % 4, split)  # type: ignore[arg-type]


@pytest.mark.parametrize("dev", [0, 3, 7])
def test_mmlu_is_the_likeliest_letter_after_five_shots(base: Any, words: Any, work: StepContext, dev: int) -> None:
    tests = [question(n) for n in range(8)]
    shots = [question(n + 3, "dev") for n in range(dev)] + [question(1, "dev", "other")]
    rows = evaluator(base, words, work).multiple_choice([*shots, *tests])
    assert [(r.set, r.kind, r.task, r.id) for r in rows] == [("mmlu", "choice", "high_school_law", t.id) for t in tests]
    for asked, row in zip(tests, rows, strict=True):
        text = "The following are multiple choice questions (with answers) about high school law.\n\n"
        for q in [*shots[:dev][:5], asked]:
            text += q.question + "".join(f"\n{c}. {x}" for c, x in zip("ABCD", q.choices, strict=True)) + "\nAnswer:"
            text += f" {'ABCD'[q.answer]}\n\n" if q is not asked else ""
        given = len(words(text)["input_ids"])
        likely = []
        for letter in "ABCD":  # a letter may be several tokens: each continuation counts as a whole
            ids = words(f"{text} {letter}")["input_ids"]
            logs = tiny.alone(base, tuple(ids)).log_softmax(-1)
            likely.append(sum(float(logs[n - 1, ids[n]]) for n in range(given, len(ids))))
        assert row.score == float(likely.index(max(likely)) == asked.answer)


@pytest.mark.parametrize(("positions", "cut"), [(4, True), (64, False), (256, False)])
def test_a_model_of_few_positions_is_asked_whole_prompts(
    words: Any, work: StepContext, positions: int, cut: bool
) -> None:
    """The tokens that may be generated do not crowd out the prompts, and never pass the model's end."""
    made = tiny.model("gpt2", n_positions=positions, vocab=len(words))
    judge = evaluator(made, words, work, new=256)
    told = judge.generate(tiny.FORGET)
    assert len(told) == len(tiny.FORGET)
    assert (judge.encoder.cut_prompts > 0) == cut
    alone = made.generate(
        words(tiny.FORGET[0].input, return_tensors="pt")["input_ids"], do_sample=False, max_new_tokens=3, pad_token_id=0
    )
    if not cut:
        assert told[0][0].startswith(words.decode(alone[0][-3:], skip_special_tokens=True)[:3])


def test_a_model_that_knows_no_padding_is_asked_one_by_one(words: Any, work: StepContext) -> None:
    made = tiny.model("rwkv", vocab=len(words), hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)
    judge = evaluator(made, words, work, batch_size=4, new=5)
    together = judge.generate(tiny.FORGET)
    alone = [evaluator(made, words, work, batch_size=1, new=5).generate([r])[0] for r in tiny.FORGET]
    assert together == alone
    assert len({len(words(r.input)["input_ids"]) for r in tiny.FORGET}) > 1, "or there was no padding"


def test_letters_that_a_tokenizer_cannot_tell_apart_are_refused(base: Any, work: StepContext) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "<e>": 1}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    words = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", eos_token="<e>")
    with pytest.raises(BadTask, match="reads the letters A to D alike"):
        evaluator(base, words, work).multiple_choice([question(0)])


def test_what_is_kept(base_folder: Path, work: StepContext, tmp_path: Path) -> None:
    sets = {"forget": tiny.FORGET, "retain": tiny.RETAIN, "probe": tiny.RETAIN[:2], "nonmembers": tiny.NONMEMBERS}
    data = tiny.task_data(tmp_path, sets)
    task = EvaluateTask(model=tiny.model_ref(base_folder), data=data, settings=EvaluateSettings(max_new_tokens=8))
    figures = evaluate.run(task, work)
    rows = [json.loads(line) for line in (work.out / "rows.jsonl").read_text().splitlines()]
    assert figures["rows"] == len(rows) == 7 + 11 + 2 + 5
    asked: list[Row] = [*tiny.FORGET, *tiny.RETAIN, *tiny.RETAIN[:2]]
    assert [(r["id"], r["document"], r["task"], r["kind"]) for r in rows[:20]] == [
        (r.id, r.document, r.task, r.kind) for r in asked
    ]
    fields = {
        "set",
        "id",
        "document",
        "kind",
        "task",
        "generation",
        "ended",
        "score",
        "output_nll",
        "output_tokens",
        "extraction",
        "document_nll",
    }
    assert all(set(r) == fields for r in rows[:20])
    values = {k: v for m in figures["metrics"].values() for k, v in m["values"].items()}
    assert values["aggregate_cells"] == 12 and values["mia_auc"] is not None and values["mmlu"] is None
    assert (figures["cut_inputs"], figures["cut_outputs"]) == (0, 0)
    assert sorted(p.name for p in work.out.iterdir()) == ["rows.jsonl"]


def test_an_output_is_extracted_whole_though_the_model_would_not_end_there(
    base: Any, words: Any, work: StepContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = evaluator(base, words, work)
    said = {r: one_row(base, words, r.input, new=4)[0] for r in (*tiny.FORGET, *tiny.RETAIN)}
    row, tokens = next((r, t) for r, t in said.items() if len(t) == 4 and asked.encoder.end not in t)
    prompt = asked.encoder.prompt(row.input)
    for end, strength in (
        ((asked.encoder.end,), 1.0),
        ((tokens[0],), 0.0),
    ):  # the second: cut, and its last word is wrong
        encoded = Encoded((*prompt, *tokens[:3], *end), len(prompt))
        monkeypatch.setattr(asked.encoder, "rows", lambda *_, encoded=encoded: [encoded])
        assert asked.probabilities([row])[0]["extraction"] == strength
