"""The public interface of plugins: a name that goes, or comes, is a decision (docs/stability.md)."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "expunge_jobs.objectives": "Needs RowOutput Rows Side TermParameters Weight",
    "expunge_jobs.merge_methods": "Deltas Density DensityParameters Factors NoParameters drop_and_rescale elect_and_average keep_largest weighted_sum",
    "expunge_jobs.metrics": "Column EvaluatedRow Missing Rows Scores cells mean row_score",
    "expunge_jobs.plugins": "PluginCall PluginError description load names source version",
    "expunge_jobs.store": (
        "AWAY Conflict Entry MEDIUM NotFound PROBE SMALL Store StoreError TooLarge Unavailable check_conditional_writes "
        "checked_path is_shared open_store sha256_of shared_schemes smaller split store_schemes too_large"
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_public_is_what_was_promised(name: str) -> None:
    module = importlib.import_module(name)
    assert sorted(module.__all__) == sorted(PUBLIC[name].split())
    assert all(hasattr(module, word) for word in module.__all__)
