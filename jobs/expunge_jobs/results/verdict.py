"""The verdict: the sentence below the table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from expunge_jobs.results.intervals import mean_interval
from expunge_jobs.results.summary import EvaluatedModel


def verdict(results: Sequence[EvaluatedModel]) -> list[str]:
    """Return a sentence for each group of trials.

    The sentence states whether the merge beat every specialist, baseline and control on the aggregate. A group without
    a merge has no sentence.
    """
    out = []
    for group in dict.fromkeys(r.group for r in results):
        mine = [r for r in results if r.group == group]
        merged = {r.seed: r.metrics["task_aggregate"] for r in mine if r.model == "merged"}
        if merged:
            prefix = f"{group}: " if group != "default" else ""
            out.append(prefix + _sentence(mine, merged))
    return out


def _sentence(results: list[EvaluatedModel], merged: dict[int, float | None]) -> str:
    rivals: dict[str, dict[int, float | None]] = defaultdict(dict)
    for r in results:
        if r.model not in ("base", "merged"):
            rivals[r.model][r.seed] = r.metrics["task_aggregate"]
    missing = sum(v is None for values in (merged, *rivals.values()) for v in values.values())
    if missing:
        return f"Nothing can be said of the merge yet: {missing} task aggregates are missing."
    if len(merged) == 1:
        return _one_seed(rivals, merged)
    beaten: list[str] = []
    equal: list[str] = []
    lost: list[str] = []
    for name, values in rivals.items():
        difference = mean_interval([float(merged[s] or 0) - float(values[s] or 0) for s in merged])
        text = f"{name} ({_signed(difference.mean)} [{_signed(difference.low or 0)}, {_signed(difference.high or 0)}])"
        target = beaten if (difference.low or 0) > 0 else lost if (difference.high or 0) < 0 else equal
        target.append(text)
    parts = []
    if beaten:
        parts.append(f"beats {', '.join(beaten)}")
    if lost:
        parts.append(f"IS BEATEN BY {', '.join(lost)}")
    if equal:
        parts.append(f"shows NO DIFFERENCE to {', '.join(equal)}")
    head = (
        "The merge beats every specialist, baseline and control"
        if not lost and not equal
        else ("The merge does NOT beat every specialist, baseline and control")
    )
    return (
        f"{head}. Over {len(merged)} seeds it {'; it '.join(parts)} "
        "(difference of task aggregates, 95 % interval over unlearning seeds)."
    )


def _one_seed(rivals: dict[str, dict[int, float | None]], merged: dict[int, float | None]) -> str:
    ((seed, value),) = merged.items()
    own = float(value or 0)
    above = [n for n, v in rivals.items() if float(v[seed] or 0) >= own]
    said = (
        "the merge is above every specialist, baseline and control"
        if not above
        else (f"the merge is NOT above {', '.join(f'{n} ({float(rivals[n][seed] or 0):.3f})' for n in above)}")
    )
    return f"On this one seed {said} (merged {own:.3f}); one seed cannot tell: sweep.seed: [0, 1, 2, 3, 4] does."


def _signed(value: float) -> str:
    return f"{value:+.3f}"
