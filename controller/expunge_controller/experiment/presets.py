"""Fine-tunes by name: specialists and single-model baselines.

The two specialists are the source system's. The baselines are the task's. ``over`` and ``under`` follow the paper's
text (arXiv 2503.21088, section 4.1). ``over_code`` and ``under_code`` follow the code published with the paper. That
code produced the paper's scores. The code exchanges two of the weights and normalizes differently.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Preset(NamedTuple):
    """A description and the fields that the preset sets.

    ``expunge list presets`` shows the description. A field given beside the preset wins.
    """

    description: str
    fields: dict[str, Any]


def _paper(npo: float, nll: float, kl: float) -> dict[str, Any]:
    return {"npo": npo, "nll": nll, "kl": kl}


def _code(npo: float, nll: float, kl: float) -> dict[str, Any]:
    return {
        "npo": {"weight": npo, "normalization": "pooled"},
        "nll": nll,
        "kl": {"weight": kl, "reduction": "published"},
    }


PRESETS: dict[str, Preset] = {
    "over": Preset("forgets too much (paper): npo .4, nll .4, kl .2; 1 x 4", {"objective": _paper(0.4, 0.4, 0.2)}),
    "under": Preset(
        "forgets too little (paper): npo .3, nll .3, kl .4; 2 x 4",
        {"objective": _paper(0.3, 0.3, 0.4), "batch_size": 2},
    ),
    "over_code": Preset(
        "forgets too much (published code): npo .4 pooled, nll .2, kl .4; 1 x 4", {"objective": _code(0.4, 0.2, 0.4)}
    ),
    "under_code": Preset(
        "forgets too little (published code): npo .3 pooled, nll .4, kl .3; 2 x 4",
        {"objective": _code(0.3, 0.4, 0.3), "batch_size": 2},
    ),
    "gradient_ascent": Preset("baseline: gradient ascent on forget alone", {"objective": {"gradient_ascent": 1.0}}),
    "gradient_difference": Preset(
        "baseline: gradient ascent on forget, nll on retain", {"objective": {"gradient_ascent": 1.0, "nll": 1.0}}
    ),
    "kl": Preset(
        "baseline: gradient ascent on forget, kl on retain", {"objective": {"gradient_ascent": 1.0, "kl": 1.0}}
    ),
    "npo": Preset("baseline: npo on forget alone", {"objective": {"npo": 1.0}}),
}
