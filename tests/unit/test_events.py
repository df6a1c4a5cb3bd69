"""What an Experiment's Events say."""

from __future__ import annotations

from expunge_controller.operator.events import as_events


def test_what_ends_and_what_begins_is_one_event() -> None:
    news = {"Finished": ["finetune over", "finetune under"], "Started": ["merge"]}
    assert list(as_events(news)) == [("Normal", "Finished", "finetune over, finetune under; started merge")]
    assert list(as_events({"Started": ["memorize"]})) == [("Normal", "Started", "memorize")]


def test_a_failure_is_told_apart_and_warns() -> None:
    news = {"Started": ["merge"], "StepFailed": ["report: out of memory"], "Notice": ["the store answers again"]}
    assert list(as_events(news)) == [
        ("Normal", "Started", "merge"),
        ("Warning", "StepFailed", "report: out of memory"),
        ("Normal", "Notice", "the store answers again"),
    ]
    assert list(as_events({})) == []
