"""What the service tells of itself at ``/metrics``, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agegen.predict.estimator import BATCH_FACES
from agegen.predict.results import PhotoPrediction

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds: a small picture alone takes 0.02, a queue of 50 a few.
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_FACES = (1, 2, 4, 8, 16, 32, BATCH_FACES)


class Measures:
    """The counters of one service."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        names = ("route", "method", "status")
        self._requests = Counter("agegen_requests", "Requests answered.", names, registry=registry)
        self._seconds = Histogram(
            "agegen_request_seconds", "From head to answer.", ("route",), buckets=_SECONDS, registry=registry
        )
        self._pictures = Counter("agegen_pictures", "Pictures looked at.", ("status",), registry=registry)
        self._faces = Counter("agegen_faces", "Faces estimated.", ("model",), registry=registry)
        self._batches = Histogram(
            "agegen_batch_faces", "Faces estimated in one batch.", ("model",), buckets=_FACES, registry=registry
        )
        self._waiting = Gauge("agegen_requests_under_way", "Requests read, waiting or worked on.", registry=registry)
        self._held = Gauge("agegen_held_bytes", "Bytes of bodies in memory.", registry=registry)

    def watch(self, requests: Callable[[], float], held: Callable[[], float]) -> None:
        """Report the number of requests and the bytes that their bodies hold, as they are at each scrape."""
        self._waiting.set_function(requests)
        self._held.set_function(held)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_images(self, found: list[PhotoPrediction]) -> None:
        """Count pictures, or their pages, by what was found."""
        for photo in found:
            self._pictures.labels(photo.status).inc()

    def count_batch(self, model: str, faces: int) -> None:
        """Count a batch; called from the thread that runs the model."""
        self._faces.labels(model).inc(faces)
        self._batches.labels(model).observe(faces)

    def format(self) -> bytes:
        """Return all of it as text."""
        return generate_latest(self._registry)
