"""The metrics of a server in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts requests and batches of one server.

    `waiting` returns the number of records that wait for the model, `inside` the number of requests
    in memory.
    """

    def __init__(self, waiting: Callable[[], int], inside: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("ddl_requests", "Requests to /predict by status.", ["status"], registry=registry)
        self._seconds = Histogram(
            "ddl_request_seconds", "Time from the head of a request to its answer.", registry=registry, buckets=SECONDS
        )
        self._records = Histogram(
            "ddl_batch_records", "Records in a batch of the model.", registry=registry, buckets=RECORDS
        )
        self._batch_seconds = Histogram(
            "ddl_batch_seconds", "Time of a batch on the thread of the model.", registry=registry, buckets=SECONDS
        )
        queue = Gauge("ddl_queue_records", "Records that wait for the model.", registry=registry)
        queue.set_function(waiting)
        open_ = Gauge("ddl_requests_in_progress", "Requests to /predict in progress.", registry=registry)
        open_.set_function(inside)
        self._of_status: dict[int, Counter] = {}

    def request(self, status: int, seconds: float) -> None:
        """Count a request that was answered with `status`."""
        counter = self._of_status.get(status)
        if counter is None:
            counter = self._of_status[status] = self._requests.labels(str(status))
        counter.inc()
        self._seconds.observe(seconds)

    def batch(self, records: int, seconds: float) -> None:
        """Count a batch of the model."""
        self._records.observe(records)
        self._batch_seconds.observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus, version 0.0.4."""
        return generate_latest(self._registry)
