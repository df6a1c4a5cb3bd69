"""A plan says how many rows to forget a fine-tune would read cut, where the tokenizer is at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tokenizers
from expunge_controller.experiment.loading import load_experiment
from expunge_controller.planning.resolve import resolve
from expunge_jobs.data.selection import load
from expunge_jobs.inputs.pinning import read_checked
from expunge_jobs.modeling.loading import encoder_for, load_base
from expunge_jobs.tasks.tasks import FinetuneTask

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


@pytest.mark.parametrize("length", [12, 30, 256])
def test_the_plan_counts_as_the_step_cuts(base_folder: Path, length: int) -> None:
    sets = [f"model={base_folder}", "memorize=null", f"data.max_length={length}", "data.documents=2"]
    found = resolve(load_experiment(QUICKSTART, sets))
    task = next(s.task for s in found.plan.steps if isinstance(s.task, FinetuneTask))
    encoder = encoder_for(*load_base(base_folder, "checkpoint"), task.data)
    rows = load(task.data, lambda ref: read_checked(ref, lambda: False))["forget"]
    encoder.rows(rows, length)  # type: ignore[arg-type]
    cut = max(encoder.cut_inputs, encoder.cut_outputs)
    said = [n for n in found.notices if "have more than" in n]
    assert len(said) == (cut > 0), "once for all fine-tunes"
    if cut:
        assert said[0].startswith(
            f"{cut} of {len(rows)} rows to forget ({cut / len(rows):.0%}) have more than {length} tokens"
        )


def test_padding_and_truncation_that_a_tokenizer_was_saved_with_count_nothing(
    base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base_folder, tmp_path / "m"))
    saved = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    def notices() -> list[str]:
        sets = [f"model={folder}", "memorize=null", "data.max_length=140", "data.documents=2"]
        return [n for n in resolve(load_experiment(QUICKSTART, sets)).notices if "have more than" in n]

    plain = notices()
    saved.enable_padding(length=400)
    saved.enable_truncation(max_length=10)
    saved.save(str(folder / "tokenizer.json"))
    assert notices() == plain != []
    assert "(100%)" not in plain[0], "or padding could add none"


def test_a_tokenizer_that_cannot_be_read_is_left_to_the_step(base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for file in base_folder.iterdir():
        (folder / file.name).write_bytes(b"{}" if file.name == "tokenizer.json" else file.read_bytes())
    found = resolve(load_experiment(QUICKSTART, [f"model={folder}", "memorize=null", "data.max_length=12"]))
    assert not [n for n in found.notices if "have more than" in n]
