"""Text for the terminal: data on stdout, messages on stderr.

All text is escaped before a terminal receives it.
"""

from __future__ import annotations

import re
import sys

_COMMANDS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that no terminal should receive.

These are control characters except tab and newline, and characters that break lines, turn the direction of writing or
are invisible. Halves of characters (surrogates) are also included, because no terminal can receive them.
"""


def printable(text: str) -> str:
    r"""Return the text with the control characters of a terminal written out.

    An escape, for example, becomes ``\x1b``. Logs, failures and messages contain text by the authors of the
    experiment, the rows or the store. A terminal that obeys such text could hide lines, or show words as if they were
    the user's.
    """
    return _COMMANDS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str) -> None:
    """Write a message to stderr."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def put(text: str, flush: bool = False) -> None:
    """Write lines of data to stdout.

    ``flush`` is for a reader that waits for each line.
    """
    sys.stdout.write(f"{printable(text)}\n")
    if flush:
        sys.stdout.flush()
