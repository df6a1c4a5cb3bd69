"""Plans, states and results as aligned text.

The text is the same on a terminal and in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from expunge_jobs.metrics import Column
from expunge_jobs.results.intervals import Interval
from expunge_jobs.results.remarks import remarks
from expunge_jobs.results.scores import columns
from expunge_jobs.results.summary import EvaluatedModel, Summary, by_model
from expunge_jobs.results.verdict import Comparison, verdict

from expunge_controller.experiment.document import swept_fields
from expunge_controller.planning.plan import Plan
from expunge_controller.planning.step_states import StepStatus


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """Align rows of cells in columns.

    A column is as wide as its widest cell. Two blanks separate columns. ``right`` right-aligns all columns but the
    first. A cell takes one line; line breaks in it are escaped.
    """
    rows = [[cell.replace("\n", "\\n") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        out = [c.rjust(w) if right and i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return "  ".join(out).rstrip()

    return "\n".join([line(header), *(line(r) for r in rows)])


def plan_table(plan: Plan, states: dict[str, StepStatus]) -> str:
    """Format the state of every step, and totals.

    A row also has the number of trials that share the step.
    """
    rows = [[states[s.key].state, s.name, s.key[:12], str(len(s.trials))] for s in plan.steps]
    counts = {k: sum(s.kind == k for s in plan.steps) for k in dict.fromkeys(s.kind for s in plan.steps)}
    todo = sum(states[s.key].state != "done" for s in plan.steps)
    said = ", ".join(f"{n} {k}" for k, n in counts.items())
    trials = f"{len(plan.trials)} trial{'s' if len(plan.trials) != 1 else ''}"
    shown = rows if len(rows) <= MAX_ROWS else rows[:MAX_ROWS]
    more = f"\n... and {len(rows) - len(shown)} more steps (-o json has all)" if len(shown) < len(rows) else ""
    table = aligned(["STATE", "STEP", "KEY", "TRIALS"], shown)
    return f"{table}{more}\n\n{trials}: {len(rows)} steps ({said}); {len(rows) - todo} already done, {todo} to run."


MAX_ROWS = 60


def status_table(plan: Plan, states: dict[str, StepStatus]) -> str:
    """Format every step, and why an unfinished step is not done."""
    rows = [[states[s.key].state, s.name, states[s.key].reason] for s in plan.steps]
    return aligned(["STATE", "STEP", "REASON"], rows)


def results_table(
    results: Sequence[EvaluatedModel],
    comparisons: Sequence[Comparison] | None = None,
    norm_of: Callable[[EvaluatedModel], float | None] = lambda model: None,
) -> str:
    """Format the table of scores, and its legend, remarks and verdict.

    ``comparisons`` is as in ``verdict``, ``norm_of`` as in ``remarks``.
    """
    rows = by_model(results)
    grouped = any(r.group for r in rows)
    shown = _shown(rows)
    header = ["MODEL", *(["TRIAL"] if grouped else []), *(c.title for c in shown)]
    judged = [r for r in rows if r.role != "reference"]
    body = [[_title(r), *([r.group] if grouped else []), *(_cell(r, c.score) for c in shown)] for r in judged]
    block = _references(rows, shown, grouped)
    table = aligned(header, [*body, *block], right=True).splitlines()
    lines = [*table[: len(body) + 1], *([""] if block else []), *table[len(body) + 1 :], "", *_legend(rows, shown)]
    seeds = max((len(r.models) for r in rows), default=1)
    if seeds > 1:
        over = _swept_with_seed(results)
        lines.append(f"Mean over up to {seeds} {over}, +- half of the 95 % interval over them (Student t).")
    lines += _reasons(rows, shown)
    return "\n".join([*lines, "", *remarks(results, norm_of), *verdict(results, comparisons)]).rstrip()


def _references(rows: Sequence[Summary], shown: Sequence[Column], grouped: bool) -> list[list[str]]:
    """Return the rows of each reference, and how far the merge is from it."""
    out = []
    merged = [r for r in rows if r.role == "merged"] or [r for r in rows if r.is_single]
    for reference in (r for r in rows if r.role == "reference"):
        near = [r for r in merged if reference.group in ("", r.group)]
        out.append(
            [reference.model, *([reference.group] if grouped else []), *(_cell(reference, c.score) for c in shown)]
        )
        for row in near:
            cells = [_distance(row.interval(c.score), reference.interval(c.score)) for c in shown]
            out.append([f"  {row.model} is off by", *([row.group] if grouped else []), *cells])
    return out


def _distance(one: Interval | None, other: Interval | None) -> str:
    return "-" if one is None or other is None else f"{abs(one.mean - other.mean):.3f}"


def _swept_with_seed(results: Sequence[EvaluatedModel]) -> str:
    """Return what a mean is over: seeds, or the fields that go with them."""
    for name in {r.trial for r in results}:
        for value in name.split(","):
            key = value.partition("=")[0]
            if "&" in key and "seed" in swept_fields(key):
                return f"values of {key}"
    return "seeds"


def _shown(rows: Sequence[Summary]) -> list[Column]:
    """Return the columns, without the optional ones that no model has."""
    scored = {
        name for row in rows for model in row.models for name, value in model.metrics.items() if value is not None
    }
    return [c for c in columns() if not c.optional or c.score in scored]


def _legend(rows: Sequence[Summary], shown: Sequence[Column]) -> list[str]:
    """Say what the titles mean, and which direction of each column is good."""
    star = "* the best single run. " if any(r.best_single for r in rows) else ""
    ways: dict[str, list[str]] = {}
    for column in shown:
        way = f"{column.better.title()} is better" if isinstance(column.better, str) else f"Best near {column.better}"
        ways.setdefault(way, []).append(column.title)
    said = " ".join(f"{way}: {', '.join(titles)}." for way, titles in ways.items())
    never = "".join(f" {r.model}: a model that never saw forget." for r in rows if r.role == "reference")
    return [f"{star}F: forget, R: retain, probe: unrelated knowledge.{never}", said]


def _title(row: Summary) -> str:
    return row.model + (" *" if row.best_single else "")


def _cell(row: Summary, name: str) -> str:
    found = row.interval(name)
    if found is None:
        return "-"
    return f"{found.mean:.3f}" + (f"+-{found.half:.3f}" if found.half is not None else "")


def _reasons(rows: Sequence[Summary], shown: Sequence[Column]) -> list[str]:
    """Return the reasons for dashes in the table, each reason once."""
    why: dict[str, list[str]] = {}
    for row in rows:
        for result in row.models:
            for column in shown:
                title, name = column.title, column.score
                if name in result.reasons:
                    titles = why.setdefault(result.reasons[name], [])
                    if title not in titles:
                        titles.append(title)
    return [f"- {', '.join(titles)}: {reason}" for reason, titles in why.items()]
