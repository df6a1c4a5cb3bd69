"""The style rule where no linter knows it: sentences of the documents, first lines of docstrings, words with better
ones.
"""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("benchmarks/*.md"),
        ROOT / "charts" / "expunge" / "README.md",
    ]
)
LONGEST, MEDIAN = 25, 15
"""Words of a sentence, and of half of ARCHITECTURE's."""
WORDS = {
    "whoever": "name the user, the pod or the program",
    "somebody": "name the user or the program",
    "anew": "again",
}
"""Words that have a better one, and which."""
SHOWN = ("objectives", "merge_methods", "metrics")
"""Folders whose modules' first lines are shown to users, up to 120 characters."""


def sentences(text: str) -> Iterator[str]:
    """The sentences of a Markdown document's prose: no tables, code, drawings or headings."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    for block in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", text):
        if block.lstrip().startswith(("|", "#", "<", "    ")):
            continue
        plain = re.sub(r"`[^`]*`", "code", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(block.split())))
        yield from (
            s for s in re.split(r"(?<=[.!?:])\s+(?=[A-Z\[]|code\b|\d)", plain.lstrip("-* ")) if len(s.split()) > 1
        )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_sentence_of_a_document_is_long(document: Path) -> None:
    found = {s: n for s in sentences(document.read_text()) if (n := len(s.split())) > LONGEST}
    assert not found


def test_half_of_architecture_s_sentences_are_short() -> None:
    assert statistics.median(len(s.split()) for s in sentences((ROOT / "ARCHITECTURE.md").read_text())) <= MEDIAN


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_document_uses_the_better_word(document: Path) -> None:
    text = document.read_text().lower()
    assert not {w: better for w, better in WORDS.items() if re.search(rf"\b{w}\b", text)}


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a file, with its line."""
    for node in ast.walk(ast.parse(file.read_text())):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


CODE = sorted([*(ROOT / "controller").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])


def test_the_first_line_of_a_docstring_is_short() -> None:
    long = []
    for file in CODE:
        for line, text in docstrings(file):
            first = text.splitlines()[0]
            most = 120 if line == 1 and file.parent.name in SHOWN else 72
            if len(first) > most:
                long.append(f"{file.relative_to(ROOT)}:{line}: {len(first)} characters")
    assert not long


def test_docstrings_use_the_better_word() -> None:
    found = []
    for file in CODE:
        for line, text in docstrings(file):
            found += [f"{file.relative_to(ROOT)}:{line}: {w}" for w in WORDS if re.search(rf"\b{w}\b", text.lower())]
    assert not found
