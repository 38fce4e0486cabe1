"""Metrics of the service for ``/metrics``, in the Prometheus text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agegen.predict.estimator import BATCH_FACES
from agegen.predict.results import PhotoPrediction

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Histogram buckets in seconds: a single small image takes 0.02 s, a queue of 50 requests a few seconds.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FACES = (1, 2, 4, 8, 16, 32, BATCH_FACES)


class ServiceMetrics:
    """The counters, gauges and histograms of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self._requests = Counter("agegen_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "agegen_request_seconds",
            "Time from the head of a request to the end of its response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Counter("agegen_pictures", "Images processed.", ("status",), registry=registry)
        self._faces = Counter("agegen_faces", "Faces estimated.", ("model",), registry=registry)
        self._batches = Histogram(
            "agegen_batch_faces", "Faces per inference batch.", ("model",), buckets=_FACES, registry=registry
        )
        self._queued = Gauge(
            "agegen_requests_under_way", "Requests being received, waiting or in progress.", registry=registry
        )
        self._held = Gauge("agegen_held_bytes", "Size of all request bodies in memory.", registry=registry)

    def observe_queue(self, count_requests: Callable[[], float], count_bytes: Callable[[], float]) -> None:
        """Call these functions at each scrape: the number of requests in the queue, and the bytes of their bodies."""
        self._queued.set_function(count_requests)
        self._held.set_function(count_bytes)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_images(self, photos: list[PhotoPrediction]) -> None:
        """Count processed images (or pages) by status."""
        for photo in photos:
            self._images.labels(photo.status).inc()

    def count_batch(self, model: str, faces: int) -> None:
        """Count an inference batch; called by the thread that runs the model."""
        self._faces.labels(model).inc(faces)
        self._batches.labels(model).observe(faces)

    def format(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)
