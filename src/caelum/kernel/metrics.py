"""What a node tells of itself to Prometheus: calls and their latencies, queue depths, the event loop's lag.

Invariant: the hot path only adds numbers; all formatting happens when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from caelum.kernel.loop_watch import BOUNDS, INTERVAL, Lags, LoopWatch

BUCKETS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0)


class CallStats:
    """Numbers of one kind of call."""

    __slots__ = ("buckets", "count", "errors", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.errors = 0
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    def record(self, seconds: float, failed: bool) -> None:
        """Add one call."""
        self.count += 1
        self.seconds += seconds
        self.errors += failed
        self.buckets[bisect_left(BUCKETS, seconds)] += 1

    def cumulative(self) -> Iterator[tuple[str, float]]:
        """The histogram as Prometheus wants it."""
        return cumulative(BUCKETS, self.buckets)


def cumulative(bounds: tuple[float, ...], counts: list[int]) -> Iterator[tuple[str, float]]:
    """A histogram as Prometheus wants it, of what is counted from bound to bound."""
    total = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else str(bound)), total


class Metrics:
    """The registry of one node. `collect_from` adds a source that is asked at each scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.loop = LoopWatch()
        self.collect_from(self._loop_lag)

    def collect_from(self, source: Callable[[], Iterable[Metric]]) -> None:
        """Ask `source` for metrics at each scrape."""
        self.registry.register(_Source(source))

    def render(self) -> bytes:
        """The text that a scrape gets."""
        return generate_latest(self.registry)

    def _loop_lag(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("caelum_loop_lag_seconds", "How late the event loop was", value=self.loop.last)
        yield GaugeMetricFamily("caelum_loop_lag_worst_seconds", "Worst lag since start", value=self.loop.worst)
        yield self._lags("caelum_loop_lag_sampled_seconds", f"Lag, looked at each {INTERVAL} s", self.loop.lags)
        own = "The same without the time for which other programs had the processors"
        yield self._lags("caelum_loop_lag_own_seconds", own, self.loop.own_lags)

    def _lags(self, name: str, text: str, lags: Lags) -> Metric:
        family = HistogramMetricFamily(name, text)
        family.add_metric([], list(cumulative(BOUNDS, lags.counts)), lags.sum)
        return family


class _Source:
    def __init__(self, source: Callable[[], Iterable[Metric]]) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return self._source()

    def describe(self) -> Iterable[Metric]:
        return ()


def calls_of(stats: Callable[[], Iterable[tuple[str, str, CallStats]]]) -> Callable[[], Iterator[Metric]]:
    """A source for calls, given as (service, message, numbers)."""

    def source() -> Iterator[Metric]:
        labels = ["service", "message"]
        latency = HistogramMetricFamily("caelum_call_seconds", "Time to the answer", labels=labels)
        errors = CounterMetricFamily("caelum_call_errors", "Calls that failed", labels=labels)
        for service, message, numbers in stats():
            if numbers.count:
                latency.add_metric([service, message], list(numbers.cumulative()), numbers.seconds)
                errors.add_metric([service, message], numbers.errors)
        yield latency
        yield errors

    return source


def queue_depth(depth: Callable[[], tuple[int, int, int]]) -> Callable[[], Iterator[Metric]]:
    """A source for the work queues, given as (queues, running, waiting)."""

    def source() -> Iterator[Metric]:
        queues, running, pending = depth()
        yield GaugeMetricFamily("caelum_queues", "Work queues that hold tasks", value=queues)
        yield GaugeMetricFamily("caelum_queue_running", "Tasks that run in work queues", value=running)
        yield GaugeMetricFamily("caelum_queue_pending", "Tasks that wait in work queues", value=pending)

    return source


def database_use(count: Callable[[], tuple[int, int]]) -> Callable[[], Iterator[Metric]]:
    """A source for the database, given as (transactions, statements)."""

    def source() -> Iterator[Metric]:
        transactions, statements = count()
        yield CounterMetricFamily("caelum_database_transactions", "Transactions that could write", value=transactions)
        yield CounterMetricFamily("caelum_database_statements", "Statements sent", value=statements)

    return source


def bus_use(count: Callable[[], int]) -> Callable[[], Iterator[Metric]]:
    """A source for the bus, given as the messages that this node sent to the broker."""

    def source() -> Iterator[Metric]:
        yield CounterMetricFamily("caelum_bus_sent", "Messages sent over the broker", value=count())

    return source
