"""Load ``agegen serve``: many clients at once, right answers, flat memory, and clients that mean harm.

    HF_HOME=../shared/hf HF_HUB_OFFLINE=1 python tests/benchmarks/serving_load.py --data data/utkface [--seconds 15]

The data must be aligned crops; photographs of 1920×1280 are composed of them. Prints requests/s, p50 and p99 beside
the rate of :meth:`agegen.Estimator.predict_many` in one process on the same pictures, taken in turns.
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
    """Return the megabytes that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(connection: http.client.HTTPConnection, content: bytes) -> tuple[int, list[dict]]:
    connection.request("POST", "/v1/faces", content, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def load(port: int, pictures: list[bytes], right: list[list], clients: int, seconds: float) -> dict[str, object]:
    """Ask from many clients for some seconds; return counts, times, and how many answers were wrong."""
    times: list[float] = []
    told: Counter[object] = Counter()
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        place = number
        while time.monotonic() < until:
            place = (place + 7) % len(pictures)
            began = time.monotonic()
            status, rows = ask(connection, pictures[place])
            times.append(time.monotonic() - began)
            told[status] += 1
            told["wrong"] += status == 200 and not agrees(rows, right[place])
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = round(len(times) / (time.monotonic() - began), 1)
    p50, p99 = (round(float(value), 3) for value in np.percentile(times, [50, 99]))
    return {"rate": rate, "p50": p50, "p99": p99, **{str(key): count for key, count in told.items()}}


def agrees(rows: list[dict], expected: list) -> bool:
    """Return whether rows are the expected faces; in another batch the last digit may differ."""
    faces = [row for row in rows if row["status"] == "ok"]
    return len(faces) == len(expected) and all(
        tuple(row["box"]) == face.box and abs(row["age"] - face.age) < 0.11 and row["gender"] == face.gender
        for row, face in zip(faces, expected, strict=True)
    )


def predict(estimator: Estimator, pictures: list[bytes]) -> tuple[float, list[list]]:
    """Return pictures/s in this process, and the faces of each."""
    began = time.monotonic()
    found = [list(photo.faces) for photo in estimator.predict_many((f"{i}", one) for i, one in enumerate(pictures))]
    return len(pictures) / (time.monotonic() - began), found


def harm(port: int, stop: threading.Event) -> list[threading.Thread]:
    """Begin to send what no good client sends: slow heads and bodies, garbage, bombs, and to go away in the midst."""
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
        pictures = [path.read_bytes() for path in sorted(photos.glob("*.jpg"))]
    estimator = Estimator.load()
    _, right = predict(estimator, pictures)
    command = [sys.executable, "-m", "agegen", "serve", "--port", "0", "--queue", "128", "--no-log"]
    service = Service(command, dict(os.environ))
    try:
        load(service.port, pictures, right, options.clients, 3)
        rates: dict[str, list[float]] = {"service": [], "alone": []}
        for _ in range(options.rounds):
            rates["alone"].append(predict(estimator, pictures * 6)[0])
            before = read_memory(service.process)
            result = load(service.port, pictures, right, options.clients, options.seconds)
            rates["service"].append(float(result["rate"]))
            print(f"{options.clients} clients: {result}; memory {before:.0f} → {read_memory(service.process):.0f} MB")
        print({name: round(statistics.median(values), 1) for name, values in rates.items()}, "pictures/s")
        one = load(service.port, pictures, right, 1, options.seconds)
        print(f"1 client: {one}")
        stop = threading.Event()
        harm(service.port, stop)
        before = read_memory(service.process)
        result = load(service.port, pictures, right, 8, options.seconds)
        stop.set()
        print(f"8 clients among harm: {result}; memory {before:.0f} → {read_memory(service.process):.0f} MB")
        # The last bomb takes some seconds.
        time.sleep(8)
        peak = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{service.process.pid}/status").read_text())
        print(f"peak {int(peak[1]) / 1e3:.0f} MB; afterwards {read_memory(service.process):.0f} MB")
        code, log = service.stop()
        print(f"ended with {code}; logged: {log[-500:]!r}")
    finally:
        service.process.kill()


if __name__ == "__main__":
    main()
