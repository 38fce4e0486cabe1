"""Load test of ``agegen serve``: throughput, correct responses and constant memory, also with malicious clients.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/serving_load.py --data data/utkface [--seconds 15]

The data must be aligned crops, of which photos of 1920×1280 pixels are composed. Prints requests/s, p50 and p99, and
the rate of :meth:`agegen.Estimator.predict_many` in one process on the same photos, measured alternately.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from prediction_speed import compose_photos

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from running import Service

from agegen import Estimator

PHOTOS = 60
SIZE = (1920, 1280)
SLOW = 40
BODY = 20_000_000


def read_memory(process: subprocess.Popen[str]) -> float:
    """Return the resident memory of a process in megabytes."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def post(connection: http.client.HTTPConnection, content: bytes) -> tuple[int, list[dict]]:
    connection.request("POST", "/v1/faces", content, {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def load(port: int, images: list[bytes], expected: list[list], clients: int, seconds: float) -> dict[str, object]:
    """Send requests from many clients for some seconds; return rate, latencies, and counts of statuses and errors."""
    times: list[float] = []
    counts: Counter[object] = Counter()
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        index = number
        while time.monotonic() < until:
            index = (index + 7) % len(images)
            started = time.monotonic()
            status, rows = post(connection, images[index])
            times.append(time.monotonic() - started)
            counts[status] += 1
            counts["wrong"] += status == 200 and not rows_match(rows, expected[index])
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = round(len(times) / (time.monotonic() - started), 1)
    p50, p99 = (round(float(value), 3) for value in np.percentile(times, [50, 99]))
    return {"rate": rate, "p50": p50, "p99": p99, **{str(key): count for key, count in counts.items()}}


def rows_match(rows: list[dict], expected: list) -> bool:
    """Return whether rows are those of the expected faces; in another batch the last digit may differ."""
    faces = [row for row in rows if row["status"] == "ok"]
    return len(faces) == len(expected) and all(
        tuple(row["box"]) == face.box and abs(row["age"] - face.age) < 0.11 and row["gender"] == face.gender
        for row, face in zip(faces, expected, strict=True)
    )


def predict(estimator: Estimator, images: list[bytes]) -> tuple[float, list[list]]:
    """Return images/s in this process, and the faces of each image."""
    started = time.monotonic()
    found = [list(photo.faces) for photo in estimator.predict_many((f"{i}", one) for i, one in enumerate(images))]
    return len(images) / (time.monotonic() - started), found


def attack(port: int, stop: threading.Event) -> list[threading.Thread]:
    """Start clients with slow heads and bodies, garbage, decompression bombs, and clients that disconnect early."""
    bomb, large = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.zeros((12_000, 10_000), dtype=np.uint8)).save(bomb, "PNG")
    Image.fromarray(np.zeros((10_000, 10_000), dtype=np.uint8)).save(large, "PNG")
    noise = os.urandom(BODY)

    def drip(start: bytes) -> None:
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port)) as one:
                    one.sendall(start)
                    while not stop.is_set():
                        one.sendall(b"X")
                        time.sleep(0.5)
            except OSError:
                time.sleep(0.1)

    def send(content: bytes, read: bool, pause: float) -> None:
        head = f"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port)) as one:
                    one.settimeout(60)
                    one.sendall(head + content)
                    if read:
                        one.recv(1000)
            except OSError:
                pass
            time.sleep(pause)

    jobs = [(drip, (b"POST /v1/faces HTTP/1.1\r\n",))] * (SLOW // 2)
    jobs += [(drip, (b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n\r\n",))] * (SLOW // 2)
    jobs += [(send, (bomb.getvalue(), True, 0.5)), (send, (large.getvalue(), True, 2.0)), (send, (noise, True, 1.0))]
    jobs += [(send, (noise[:300_000], False, 0.2))]
    threads = [threading.Thread(target=job, args=words, daemon=True) for job, words in jobs]
    for thread in threads:
        thread.start()
    return threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = compose_photos(Path(folder) / "photos", PHOTOS, SIZE, options.data)
        images = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    estimator = Estimator.load()
    _, expected = predict(estimator, images)
    command = [sys.executable, "-m", "agegen", "serve", "--port", "0", "--queue", "128", "--no-log"]
    service = Service(command, dict(os.environ))
    try:
        load(service.port, images, expected, options.clients, 3)
        rates: dict[str, list[float]] = {"service": [], "alone": []}
        for _ in range(options.rounds):
            rates["alone"].append(predict(estimator, images * 6)[0])
            before = read_memory(service.process)
            result = load(service.port, images, expected, options.clients, options.seconds)
            rates["service"].append(float(result["rate"]))
            print(f"{options.clients} clients: {result}; memory {before:.0f} → {read_memory(service.process):.0f} MB")
        print({name: round(statistics.median(values), 1) for name, values in rates.items()}, "images/s")
        one = load(service.port, images, expected, 1, options.seconds)
        print(f"1 client: {one}")
        stop = threading.Event()
        attack(service.port, stop)
        before = read_memory(service.process)
        result = load(service.port, images, expected, 8, options.seconds)
        stop.set()
        print(f"8 clients during attacks: {result}; memory {before:.0f} → {read_memory(service.process):.0f} MB")
        # Decoding the last bomb takes some seconds.
        time.sleep(8)
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{service.process.pid}/status").read_text())
        print(f"peak {int(peak[1]) / 1e3:.0f} MB; afterwards {read_memory(service.process):.0f} MB")
        code, log = service.stop()
        print(f"exit code {code}; end of the log: {log[-500:]!r}")
    finally:
        service.process.kill()


if __name__ == "__main__":
    main()
