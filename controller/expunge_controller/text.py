"""What a person reads in a terminal: data on stdout, talk on stderr, words of others as a terminal may be given them."""

from __future__ import annotations

import re
import sys

_COMMANDS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but tab and newline, those that break lines, turn the direction of writing or cannot be seen, and halves of
characters, which no terminal can be given."""


def printable(text: str) -> str:
    """Return the text with what a terminal would obey written out: ``\\x1b`` for an escape.

    Logs, failures and messages hold words of whoever wrote the experiment, the rows or the store. Obeyed, they could hide lines
    or put words into the user's mouth.
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Write a line of talk to stderr."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def put(text: str, flush: bool = False) -> None:
    """Write lines of data to stdout; ``flush`` where somebody waits for each."""
    sys.stdout.write(f"{printable(text)}\n")
    if flush:
        sys.stdout.flush()
