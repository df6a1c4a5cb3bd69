"""Negative preference optimization on the forget rows: -(2/beta) log sigmoid(-beta log(policy/reference)).

The source is Zhang et al. 2024 (arXiv 2404.05868), equation 3. ``sequence`` takes the sum of log p over the label
tokens, as the paper does. ``token`` takes the mean. ``pooled`` follows the code published with arXiv 2503.21088.
``pooled`` has one ratio for each micro-batch, of the mean over all its label tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from expunge_jobs.core.schema import Positive
from expunge_jobs.objectives import Needs, Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1


class Parameters(TermParameters):
    """The parameters of NPO.

    ``beta`` is the inverse temperature. In the limit of 0, NPO becomes gradient ascent.
    """

    beta: Positive = 0.1
    normalization: Literal["sequence", "token", "pooled"] = "sequence"


def needs(parameters: Parameters) -> Needs:
    pooled = parameters.normalization == "pooled"
    return Needs(sets=("forget",), reference=frozenset({"nll"}), averaged_over="micro_batches" if pooled else "rows")


def values(parameters: Parameters, rows: Rows) -> Tensor:
    import torch
    from torch.nn.functional import logsigmoid

    # -log p; the policy's exceeds the reference's while the model forgets the row.
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
