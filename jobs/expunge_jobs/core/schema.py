"""Base class and number types of all data that travel as JSON or YAML."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("found a truth value where a number belongs")
    return value


def _no_minus_zero(value: float) -> float:
    return value + 0.0  # -0.0 equals 0.0; therefore both must give the same key


# Some YAML readers parse `1e-4` as a string, and all parsers accept `true` as 1; therefore all numbers use these types.
Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), AfterValidator(_no_minus_zero)]
Positive = Annotated[Float, Field(gt=0)]
Count = Annotated[Int, Field(ge=1)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]


class Schema(BaseModel):
    """Base class: immutable, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
