"""Signs of a collapsed model in its generations for forget, retain and probe.

``collapse`` is the largest of four shares:

- generations without an end token
- generations identical to another row's
- words repeated in the longest repetition
- 1 - distinct-2

A memorized base has a distinct-2 and a share of identical outputs of its own. Therefore compare with the base's score.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence

from expunge_jobs.metrics import Column, Missing, Rows, Scores, mean

VERSION = 1
COLUMNS = (Column("collapse", "collapse", "lower"),)


def compute(rows: Rows) -> Scores:
    asked = [r for r in rows if r.generation is not None]
    if not asked:
        reason = Missing("nothing was generated")
        return {"collapse": reason}
    texts = [r.generation or "" for r in asked]
    words = [t.split() for t in texts]
    counts = Counter(texts)
    joined = "\n".join(texts).encode()
    endless = mean([float(not r.ended) for r in asked])
    # Short answers are equal by chance, or because both are right; therefore count only completions.
    long = [r.generation or "" for r in asked if r.kind == "sc"] or texts
    identical = mean([float(Counter(long)[t] > 1 or not t.strip()) for t in long])
    repeated = mean([longest_repeat(w) for w in words])
    distinct = mean([distinct_n(w, 2) for w in words])
    return {
        "collapse": max(endless, identical, repeated, 1 - distinct),
        "collapse/endless": endless,
        "collapse/identical": identical,
        "collapse/repeated": repeated,
        "collapse/distinct_1": mean([distinct_n(w, 1) for w in words]),
        "collapse/distinct_2": distinct,
        "collapse/empty": counts[""] / len(texts),
        "collapse/compression": len(joined) / len(zlib.compress(joined, 9)),
    }


def distinct_n(words: Sequence[str], n: int) -> float:
    """Return the share of a text's n-grams that are distinct.

    The source is Li et al., arXiv 1510.03055. A text without n-grams gives 1.
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_repeat(words: Sequence[str], longest: int = 8) -> float:
    """Return the share of words in the longest repetition of one n-gram.

    The repetition is a run of one n-gram (n <= 8) back to back. A text without a repetition gives 0.
    """
    best = 0
    for n in range(1, min(longest, len(words) // 2) + 1):
        run = 0
        for i in range(n, len(words)):
            run = run + 1 if words[i] == words[i - n] else 0
            if run >= n:
                best = max(best, run + n)
    return best / len(words) if words else 0.0
