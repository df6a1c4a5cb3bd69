"""The operator's metrics for Prometheus.

No other module imports the Prometheus client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

Counts = Callable[[], dict[str, int]]


class Metrics:
    """The metrics since the start of this process.

    ``steps`` and ``experiments`` are called at each scrape.
    """

    def __init__(self, steps: Counts, experiments: Counts) -> None:
        self.registry = CollectorRegistry()
        self.reconciles = Counter(
            "expunge_reconciles", "Looks at an Experiment, by how they ended.", ["result"], registry=self.registry
        )
        self.gaps = Histogram(
            "expunge_step_gap_seconds",
            "From a step's end, as it is heard of, to its successor's Job.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.calls = Counter(
            "expunge_api_calls", "Calls to the API server, watches apart.", ["method", "code"], registry=self.registry
        )
        self.gpu_seconds = Counter(
            "expunge_gpu_seconds",
            "GPUs that finished steps asked for, times their seconds.",
            ["kind"],
            registry=self.registry,
        )
        self._asked = {
            ("expunge_steps", "Steps of Experiments that are at work, by state.", "state"): steps,
            ("expunge_experiments", "Experiments by phase.", "phase"): experiments,
        }
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, whose values are read only at the scrape."""
        for (name, words, label), ask in self._asked.items():
            family = GaugeMetricFamily(name, words, labels=[label])
            for value, count in ask().items():
                family.add_metric([value], count)
            yield family

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
