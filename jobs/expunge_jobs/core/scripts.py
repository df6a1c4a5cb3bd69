"""Words of any script.

ROUGE's own tokenizer reads the letters a to z and digits alone. To it, a text of another script is empty.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "YI", "BOPOMOFO")
"""Scripts that write no space between words, by the start of their letters' Unicode names. Each letter is a word."""


def is_latin(text: str) -> bool:
    """Return whether ROUGE's tokenizer may read a text.

    Three quarters of its letters are Latin, and some letter or digit is ASCII.
    """
    letters = [c for c in text if c.isalpha()]
    latin = sum(_script(c).startswith("LATIN") for c in letters)
    return 4 * latin >= 3 * len(letters) and (any(c.isascii() and c.isalnum() for c in text) or not tokenize(text))


def tokenize(text: str) -> list[str]:
    """Return the words of a text, in lower case.

    A word is a run of letters, their marks and digits, in the form NFKC. In a script without spaces, each letter with
    its marks is a word.
    """
    words: list[str] = []
    ended = True
    for char in unicodedata.normalize("NFKC", text).lower():
        category = unicodedata.category(char)[0]
        if category == "M" and words and not ended:
            words[-1] += char
        elif category not in "LN":
            ended = True
        elif category == "L" and _script(char).startswith(WITHOUT_SPACES):
            words.append(char)
            ended = False
        elif ended or _script(words[-1][0]).startswith(WITHOUT_SPACES):
            words.append(char)
            ended = False
        else:
            words[-1] += char
    return words


@lru_cache(4096)
def _script(char: str) -> str:
    return unicodedata.name(char, "")
