"""Negative preference optimization on the forget rows: -(2/beta) log sigmoid(-beta log(policy/reference)).

Zhang et al. 2024 (arXiv 2404.05868), equation 3. log p of the label tokens is their sum (``sequence``, the paper's)
or their mean (``token``). ``pooled`` is what the code published with arXiv 2503.21088 does: one ratio a micro-batch,
of the mean over all its label tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from expunge_jobs.core.schema import Positive
from expunge_jobs.objectives import Needs, Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1


class Parameters(TermParameters):
    """``beta`` is the inverse temperature; at 0 NPO becomes gradient ascent."""

    beta: Positive = 0.1
    normalization: Literal["sequence", "token", "pooled"] = "sequence"


def needs(parameters: Parameters) -> Needs:
    pooled = parameters.normalization == "pooled"
    return Needs(sets=("forget",), reference=frozenset({"nll"}), averaged_over="micro_batches" if pooled else "rows")


def values(parameters: Parameters, rows: Rows) -> Tensor:
    import torch
    from torch.nn.functional import logsigmoid

    # -log p: larger than the reference's once the row is being forgotten.
    policy, reference = [], []
    if parameters.normalization == "pooled":
        for number in sorted({r.micro_batch for r in rows}):
            members = [r for r in rows if r.micro_batch == number]
            policy.append(torch.cat([r.nll for r in members]).mean())
            reference.append(torch.cat([_given(r.reference_nll) for r in members]).mean())
    else:
        whole = torch.sum if parameters.normalization == "sequence" else torch.mean
        policy = [whole(r.nll) for r in rows]
        reference = [whole(_given(r.reference_nll)) for r in rows]
    ratio = torch.stack(reference) - torch.stack(policy)
    return -(2 / parameters.beta) * logsigmoid(-parameters.beta * ratio)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None, "the fine-tune gives what `needs` asks for"
    return value
