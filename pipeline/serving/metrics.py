"""What an endpoint counts, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PATHS = ("/", "/health", "/ping", "/version", "/metrics", "/invocations")
"""Other paths are counted together: a client must not make up new series."""


class Metrics:
    """The metrics of one endpoint."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "perceiver_requests", "Requests", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "perceiver_request_seconds", "Time of a request", ("path",), registry=self._registry
        )
        self._answers = Counter(
            "perceiver_inputs", "Inputs by their result", ("result",), registry=self._registry
        )
        self._batches = Histogram(
            "perceiver_batch_inputs",
            "Inputs that the model answered together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self._registry,
        )
        self._waiting = Gauge(
            "perceiver_inputs_waiting", "Inputs without an answer yet", registry=self._registry
        )
        for result in ("answered", "unusable"):
            self._answers.labels(result)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        known = path if path in PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def asked(self) -> None:
        """Count an input that waits for its answer."""
        self._waiting.inc()

    def ended(self) -> None:
        """Count an input that waits no more."""
        self._waiting.dec()

    def answered(self, *, usable: bool, batch: int) -> None:
        """Count an answer. Of those that were made together, one has their number as `batch`."""
        self._answers.labels("answered" if usable else "unusable").inc()
        if batch:
            self._batches.observe(batch)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self._registry)
