"""Keep the retain rows' predictions: KL(reference || policy) over the vocabulary at a row's predicting positions.

``reduction: mean`` is the mean over a row's positions. ``published`` is the sum over the positions divided by 256, as
in the code published with arXiv 2503.21088. Rows in that code are padded to 256.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from expunge_jobs.objectives import Needs, Rows, TermParameters

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
PUBLISHED_LENGTH = 256


class Parameters(TermParameters):
    """The parameters of the KL term.

    With ``positions: all``, the term covers all of prompt and output. With ``positions: output``, the term covers the
    positions that predict label tokens.
    """

    positions: Literal["all", "output"] = "all"
    reduction: Literal["mean", "published"] = "mean"


def needs(parameters: Parameters) -> Needs:
    return Needs(sets=("retain",), positions=parameters.positions, reference=frozenset({"logits"}))


def values(parameters: Parameters, rows: Rows) -> Tensor:
    import torch
    from torch.nn.functional import kl_div, log_softmax

    out = []
    for row in rows:
        policy, reference = row.logits, row.reference_logits
        assert policy is not None, "given because `needs` asks for it"
        assert reference is not None, "given because `needs` asks for it"
        if parameters.positions == "output":
            policy, reference = policy[-len(row.nll) :], reference[-len(row.nll) :]
        each = kl_div(log_softmax(policy, -1), log_softmax(reference, -1), log_target=True, reduction="none").sum(-1)
        out.append(each.mean() if parameters.reduction == "mean" else each.sum() / PUBLISHED_LENGTH)
    return torch.stack(out)
