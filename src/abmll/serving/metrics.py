"""What is counted of a server, for Prometheus; no text of a request is in it."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
_ROWS = (1, 4, 16, 64, 256)


class Metrics:
    """Counters of one server.

    Args:
        waiting: gives the number of rows that wait.

    >>> metrics = Metrics(lambda: 3)
    >>> metrics.request("/v1/classify", 200, 0.2)
    >>> b'abmll_requests_total{path="/v1/classify",status="200"} 1.0' in metrics.text()
    True
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("abmll_requests", "Requests.", ("path", "status"), registry=registry)
        self._latency = Histogram(
            "abmll_request_seconds", "Seconds of a request.", ("path",), buckets=_SECONDS, registry=registry
        )
        self._rows = Counter("abmll_rows", "Rows answered.", ("task",), registry=registry)
        self._silent = Counter(
            "abmll_rows_abstained", "Rows not answered, by the promise.", ("task",), registry=registry
        )
        self._batch = Histogram("abmll_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry)
        self._busy = Counter("abmll_model_seconds", "Seconds that the model took.", ("task",), registry=registry)
        Gauge("abmll_rows_waiting", "Rows that wait.", registry=registry).set_function(waiting)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; `path` is one of the application's own, never what a client made up."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def batch(self, name: str, rows: int, seconds: float) -> None:
        """A batch was answered by the model."""
        self._batch.observe(rows)
        self._busy.labels(name).inc(seconds)

    def answered(self, task: str, rows: int, silent: int) -> None:
        """Rows of a request were answered, and so many of them abstained from."""
        self._rows.labels(task).inc(rows)
        self._silent.labels(task).inc(silent)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
