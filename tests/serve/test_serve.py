"""The service over a socket: the same rows as `predict`, errors with reasons, and protection from bad clients."""

import base64
import gzip
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import numpy as np
import pytest
from attacks import EPS, make_pages, make_rle_bmp, make_segments
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from PIL import Image
from running import run_service

from agegen.cli.help import find_pages

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def service():
    with run_service("--model", "compact", "--model", "scratch") as service:
        yield service


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.address, timeout=60) as client:
        yield client


def encode(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def predict(agegen, *words):
    result = agegen("predict", *words, "--json", "-")
    return json.loads(result.stdout)


def drop_file_names(rows):
    return [{name: value for name, value in row.items() if name != "file"} for row in rows]


def read_metric(client, name):
    match = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(match[1]) if match else 0.0


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_images_that_curl_changed_are_explained(client, portrait, kind):
    """`curl -d @FILE` removes line breaks and sends the same content type as `--data-binary`."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    content = encode(Image.open(portrait).convert("RGB"), kind)
    changed = content.translate(None, b"\r\n\0")
    answer = client.post("/v1/faces", content=changed, headers=form)
    assert answer.status_code == 422
    assert "--data-binary @FILE" in answer.json()["reason"]
    assert "--data-binary" not in client.post("/v1/faces", content=changed, headers=JPEG).json()["reason"]
    assert client.post("/v1/faces", content=content, headers=form).status_code == 200


@pytest.mark.parametrize("model", ["compact", "scratch"])
def test_rows_equal_those_of_predict(client, agegen, portrait, model):
    answer = client.post("/v1/faces", params={"model": model}, content=portrait.read_bytes(), headers=JPEG)
    expected = predict(agegen, portrait, "--model", model)
    assert answer.status_code == 200
    assert [row["file"] for row in answer.json()] == ["-"]
    assert drop_file_names(answer.json()) == drop_file_names(expected)
    assert len(expected) == 1


def test_a_form_with_several_images(client, agegen, portrait, tmp_path):
    (tmp_path / "empty.png").write_bytes(encode(Image.new("RGB", (300, 200), "navy")))
    (tmp_path / "broken.jpg").write_bytes(portrait.read_bytes()[:3000])
    names = [portrait, tmp_path / "empty.png", tmp_path / "broken.jpg"]
    files = [("image", (path.name, path.read_bytes(), "image/jpeg")) for path in names]
    answer = client.post("/v1/faces", files=files)
    assert answer.status_code == 200
    rows = answer.json()
    assert [(row["file"], row["status"]) for row in rows] == [
        (portrait.name, "ok"),
        ("empty.png", "no_face"),
        ("broken.jpg", "unreadable"),
    ]
    assert drop_file_names(rows) == drop_file_names(predict(agegen, *names))


def test_query_parameters(client, agegen, portrait):
    content = portrait.read_bytes()
    with_ages = client.post("/v1/faces?distribution=1", content=content).json()[0]
    assert with_ages == predict(agegen, portrait, "--distribution")[0] | {"file": "-"}
    assert sum(with_ages["distribution"]) == pytest.approx(1, abs=1e-3)
    score = with_ages["score"]
    assert client.post("/v1/faces?min_score=1", content=content).json()[0]["status"] == "no_face"
    assert client.post(f"/v1/faces?min_score={score - 0.001}", content=content).json()[0]["status"] == "ok"
    # Parameters of one request do not affect the next.
    assert client.post("/v1/faces", content=content).json()[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/v1/faces", 405, "Method Not Allowed"),
        ("POST", "/v1/models", 405, "Method Not Allowed"),
        ("GET", "/nothing", 404, "Not Found"),
        ("POST", "/v1/faces?model=vgg17", 422, "unknown model: 'vgg17'. Choose from compact, scratch."),
        ("POST", "/v1/faces?modle=compact", 422, "unknown parameter: 'modle'. Use model, min_score, distribution."),
        ("POST", "/v1/faces?min_score=high", 422, "min_score must be a number from 0 to 1"),
        ("POST", "/v1/faces?min_score=nan", 422, "min_score must be a number from 0 to 1"),
        ("POST", "/v1/faces?distribution=2", 422, "distribution must be 0 or 1"),
        ("POST", "/v1/faces", 422, "the body is empty. Send an image."),
    ],
)
def test_invalid_requests_get_a_status_and_a_reason(client, method, path, status, reason):
    answer = client.request(method, path)
    assert answer.status_code == status == answer.json()["status"]
    assert reason in answer.json()["reason"]


@pytest.mark.parametrize(
    ("kind", "content", "status", "reason"),
    [
        ("application/xml", b"<a/>", 415, "application/xml"),
        ("application/json", b"{}", 422, "unsupported JSON"),
        ("application/json", b"[]", 422, "unsupported JSON"),
        ("application/json", b"{", 422, "invalid JSON"),
        ("application/json", b"\xff", 422, "invalid JSON"),
        ("application/json", b'{"images": [], "model": "compact"}', 422, "parameters belong in the query"),
        ("application/json", b'{"images": []}', 422, "the body is empty"),
        ("application/json", b'{"images": ["aGk="]}', 422, "unsupported image in the JSON body"),
        ("application/json", b'{"images": [{"data": 7}]}', 422, "unsupported image in the JSON body"),
        ("application/json", b'{"images": [{"data": "", "file": 7}]}', 422, "unsupported image in the JSON body"),
        ("application/json", b'{"images": [{"data": "", "name": "a"}]}', 422, "unsupported image in the JSON body"),
        ("application/json", b'{"images": [{"data": "a*b="}]}', 422, "not valid base64"),
        ("application/json", '{"images": [{"data": "ä"}]}'.encode(), 422, "not valid base64"),
        ("application/json", b'{"images": [{"data": "aGk="}]}', 422, "not a readable image"),
        ("application/json", b'{"images": [' + b'{"data": ""},' * 32 + b'{"data": ""}]}', 422, "too many images: 33"),
        ("application/json", b"[" * 100_000, 422, "too many values"),
        ("text/html", b"<html>", 415, "text/html"),
        ("image/jpeg", b"not an image", 422, "not a readable image"),
        ("image/png", b"\x89PNG\r\n\x1a\n" + bytes(500), 422, "not a readable image"),
        ("multipart/form-data", b"x", 422, "Missing boundary"),
        ("multipart/form-data; boundary=a", b"garbage", 422, "invalid form"),
        ("multipart/form-data; boundary=a", b"--a\r\nX: y\r\n\r\nz\r\n--a--\r\n", 422, "invalid form"),
        (
            "multipart/form-data; boundary=a",
            b'--a\r\nContent-Disposition: form-data; name="a"\r\n\r\nz\r\n--a--\r\n',
            422,
            "contains no file",
        ),
    ],
)
def test_bodies_without_an_image(client, kind, content, status, reason):
    answer = client.post("/v1/faces", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status == answer.json()["status"]
    assert reason in answer.json()["reason"]
    assert "Traceback" not in answer.text


def test_images_in_json(client, portrait):
    content = portrait.read_bytes()
    text = base64.encodebytes(content).decode()
    expected = drop_file_names(client.post("/v1/faces?model=scratch", content=content).json())
    images = [{"data": text}, {"file": "a/\ud800ä.jpg", "data": "data:image/jpeg;base64," + text.replace("\n", "")}]
    body = json.dumps({"images": images})
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = client.post("/v1/faces?model=scratch", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert [row["file"] for row in answer.json()] == ["-", "a/?ä.jpg"]
    assert drop_file_names(answer.json()) == expected * 2
    schema = client.get("/openapi.json").json()["paths"]["/v1/faces"]["post"]["requestBody"]["content"]
    Draft202012Validator(schema["application/json"]["schema"]).validate({"images": images})


def test_compressed_bodies(client, portrait):
    content = portrait.read_bytes()
    expected = client.post("/v1/faces", content=content).json()
    for kind, body in (
        ("image/jpeg", content),
        ("application/json", json.dumps({"images": [{"data": base64.b64encode(content).decode()}]}).encode()),
    ):
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        answer = client.post("/v1/faces", content=gzip.compress(body, mtime=0), headers=headers)
        assert (answer.status_code, answer.json()) == (200, expected)


@pytest.mark.parametrize(
    ("encoding", "content", "status", "reason"),
    [
        ("br", b"x", 415, "unsupported content encoding: br"),
        ("gzip, gzip", b"x", 415, "unsupported content encoding"),
        ("gzip", b"not gzip", 422, "not valid gzip"),
        ("gzip", gzip.compress(bytes(100), mtime=0)[:-4], 422, "truncated gzip"),
        ("gzip", gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0), 422, "data after its gzip stream"),
        # 25 KB that decompress to more than 25 MB.
        ("gzip", gzip.compress(bytes(25_000_001), mtime=0), 413, "larger than 25 MB"),
    ],
)
def test_invalid_compressed_bodies(client, encoding, content, status, reason):
    answer = client.post("/v1/faces", content=content, headers={"Content-Encoding": encoding})
    assert answer.status_code == status
    assert reason in answer.json()["reason"]


def test_bodies_that_take_long_to_parse(client):
    """Punycode is decoded in quadratic time, and millions of JSON values take gigabytes."""
    part = b'--a\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"-" + b"a" * 1_000_000 + b"\r\n--a--\r\n"
    values = b'{"images": [' + b"{}," * 8_000_000 + b"{}]}"
    started = time.monotonic()
    for kind, content, reason in (
        ("multipart/form-data; charset=punycode; boundary=a", part, "contains no file"),
        ("multipart/form-data; boundary=a; charset*=punycode; charset=punycode", part, "contains no file"),
        ("application/json", values, "too many values"),
    ):
        answer = client.post("/v1/faces", content=content, headers={"Content-Type": kind})
        assert (answer.status_code, reason in answer.json()["reason"]) == (422, True)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_decompression_bombs_and_many_pages(client):
    large = encode(Image.fromarray(np.zeros((10_000, 10_000), dtype=np.uint8)))
    assert client.post("/v1/faces", content=large).json()[0]["status"] == "no_face"
    bomb = encode(Image.fromarray(np.zeros((12_000, 10_000), dtype=np.uint8)))
    answer = client.post("/v1/faces", content=bomb)
    assert answer.status_code == 422
    assert "12000 pixels are too many" in answer.json()["reason"]
    pages = [Image.new("L", (8, 8))] * 40
    answer = client.post("/v1/faces", content=encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (answer.status_code, answer.json()["reason"]) == (422, "too many pages. At most 32 are allowed.")


@pytest.mark.slow
def test_images_that_take_minutes_to_decode(portrait, tmp_path):
    """Each is stopped after a third of the timeout, so others are answered, and SIGTERM ends the service in time."""
    hostile = [make_rle_bmp(20_000_000), make_segments(5_000_000), make_pages(200_000), EPS]
    reasons = ["decoding it takes more than 4 seconds"] * 2
    reasons += ["too many pages. At most 32 are allowed.", "not a readable image (unknown format)"]
    called = tmp_path / "called"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {called}\n")
    (tmp_path / "gs").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with run_service(limits="seconds=12.0", PATH=path) as service, ThreadPoolExecutor(5) as pool:

        def post(content):
            return httpx.post(f"{service.address}/v1/faces", content=content, timeout=60)

        answers = [pool.submit(post, content) for content in hostile]
        time.sleep(1)
        assert post(portrait.read_bytes()).status_code == 200
        assert [(answer.result().status_code, answer.result().json()["reason"]) for answer in answers] == [
            (422, reason) for reason in reasons
        ]
        assert not called.exists()
        pool.submit(post, hostile[0])
        time.sleep(1)
        started = time.monotonic()
        code, _ = service.stop()
        assert (code, time.monotonic() - started < 12) == (0, True)


def test_bodies_that_are_too_large(portrait):
    with (
        run_service("--model", "compact", "--max-body", 1) as service,
        httpx.Client(base_url=service.address) as client,
    ):
        content = bytes(3_000_000)
        answers = [client.post("/v1/faces", content=content), client.post("/v1/faces", content=iter([content] * 3))]
        files = {"image": ("a.jpg", content)}
        answers.append(client.post("/v1/faces", files=files))
        for answer in answers:
            assert (answer.status_code, answer.json()["reason"]) == (413, "the body is larger than 1 MB")
        assert client.post("/v1/faces", content=portrait.read_bytes()).status_code == 200
        assert read_metric(client, "agegen_held_bytes") == 0


def test_health_models_and_document(client, portrait):
    assert client.get("/healthz").json() == {"status": "ok"}
    models = client.get("/v1/models").json()
    assert models["default"] == "compact"
    assert [model["name"] for model in models["models"]] == ["compact", "scratch"]
    assert "UTKFace" in models["models"][0]["licence"]
    document = client.get("/openapi.json").json()
    validate(document)
    check = {"components": document["components"], "$ref": "#/components/schemas/Row"}
    for query in ("", "?distribution=1"):
        rows = client.post(f"/v1/faces{query}", content=portrait.read_bytes()).json()
        for row in rows:
            Draft202012Validator(check).validate(row)
    Draft202012Validator(check | {"$ref": "#/components/schemas/Models"}).validate(models)
    wrong = client.post("/v1/faces").json()
    Draft202012Validator(check | {"$ref": "#/components/schemas/Error"}).validate(wrong)
    assert not Draft202012Validator(check).is_valid({"file": "a"})


def test_metrics_count(client, portrait):
    names = (
        'agegen_requests_total{method="POST",route="/v1/faces",status="200"}',
        'agegen_faces_total{model="scratch"}',
        'agegen_pictures_total{status="ok"}',
    )
    before = [read_metric(client, name) for name in names]
    assert client.post("/v1/faces?model=scratch", content=portrait.read_bytes()).status_code == 200
    assert [read_metric(client, name) for name in names] == [count + 1 for count in before]
    client.get("/some/secret")
    assert "secret" not in client.get("/metrics").text


def test_other_host_names_and_other_web_pages_are_rejected(service):
    with httpx.Client(base_url=service.address) as client:
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            answer = client.post("/v1/faces", headers=headers)
            assert answer.status_code == 403, headers
            assert answer.json()["reason"]
        own = {"Origin": service.address}
        assert client.get("/v1/models", headers=own).status_code == 200
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=own).headers


def test_the_token(agegen, portrait):
    result = agegen("serve", "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 1
    assert "Give --token TOKEN" in result.stderr
    with run_service("--model", "compact", "--host", "0.0.0.0", AGEGEN_TOKEN="sesame") as service:
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
            for path in ("/v1/models", "/metrics"):
                refused = client.get(path)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/v1/faces", content=b"x", headers={"Authorization": "Bearer open"}).status_code == 401
            assert (
                client.post("/v1/faces", content=b"x", headers={"Authorization": "Bearer ü".encode()}).status_code
                == 401
            )
            for path in ("/", "/healthz", "/openapi.json"):
                assert client.get(path).status_code == 200
            # A request forwarded by a reverse proxy.
            headers = {"Authorization": "Bearer sesame", "Host": "faces.example", "Origin": "https://faces.example"}
            assert client.post("/v1/faces", content=portrait.read_bytes(), headers=headers).status_code == 200
        _, log = service.stop()
    assert "sesame" not in log


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"A" * 100_000, 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n Folded\xff: \0\r\n\r\n", 400),
        (b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /v1/faces HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://a\r\n\r\n", 400),
        (b"GET /healthz HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /v1/models/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_every_error_is_json_and_counted(client, service, request_bytes, status):
    def count():
        totals = re.findall(rf'^agegen_requests_total{{.*status="{status}"}} (\S+)$', client.get("/metrics").text, re.M)
        return sum(map(float, totals))

    before = count()
    with socket.create_connection(("127.0.0.1", service.port)) as one:
        one.settimeout(10)
        one.sendall(request_bytes)
        head, body = b"", b""
        while not body.endswith(b"}"):
            head += (part := one.recv(10_000))
            assert part, head
            body = head.partition(b"\r\n\r\n")[2]
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    assert b"\r\ncontent-type: application/json\r\n" in head.lower()
    assert json.loads(body).keys() == {"status", "reason"}
    assert json.loads(body)["status"] == status
    assert count() == before + 1


def test_the_log_has_one_line_per_request(portrait):
    with run_service("--model", "compact") as service:
        with httpx.Client(base_url=service.address) as client:
            kind = {"Content-Type": "multipart/form-data; boundary=CCC"}
            assert client.post("/v1/faces", content=b"--XXX-secret\r\n", headers=kind).status_code == 422
            assert set(client.delete("/v1/models").headers["allow"].split(", ")) == {"GET", "HEAD"}
        for content in (b"secret\r\n\r\n", make_post(b"", 9) + b"x" * 9 + b"secret \0\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", service.port)) as one:
                one.settimeout(10)
                one.sendall(content)
                while one.recv(10_000):
                    pass
        _, log = service.stop()
    lines = [re.sub(r"^\d\d:\d\d:\d\d (.*) \d+ ms$", r"\1", line) for line in log.splitlines()]
    assert lines[:3] == ["POST /v1/faces 422", "DELETE /v1/models 405", "other other 400"]
    assert sorted(lines[3:]) == ["POST /v1/faces 422", "other other 400"]


@pytest.mark.slow
def test_fifty_at_once(client, service, portrait):
    content = portrait.read_bytes()
    expected = client.post("/v1/faces", content=content).json()

    def ask(_):
        with httpx.Client(base_url=service.address, timeout=60) as one:
            answer = one.post("/v1/faces", content=content)
            return answer.status_code, answer.json()

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    # In another batch the order of summation may differ, and with it the last digit.
    for status, rows in answers:
        assert status == 200
        assert rows[0]["box"] == expected[0]["box"]
        assert rows[0]["age"] == pytest.approx(expected[0]["age"], abs=0.11)
    assert read_metric(client, "agegen_requests_under_way") == 0


def test_the_queue_is_limited(portrait):
    large = encode(Image.fromarray(np.zeros((2500, 2500), dtype=np.uint8)))
    with (
        run_service("--model", "compact", "--queue", 1) as service,
        httpx.Client(base_url=service.address) as client,
        socket.create_connection(("127.0.0.1", service.port)) as busy,
    ):
        busy.sendall(make_post(large))
        wait_for(client, "agegen_requests_under_way", 1)
        answer = client.post("/v1/faces", content=portrait.read_bytes())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "the queue is full (1 requests)" in answer.json()["reason"]
        # A client that disconnects frees its slot, once its image is done.
        busy.close()
        wait_for(client, "agegen_requests_under_way", 0)
        assert client.post("/v1/faces", content=portrait.read_bytes()).status_code == 200
        assert read_metric(client, "agegen_held_bytes") == 0


def make_post(content, size=None):
    """Return a request of POST /v1/faces; `size` is the announced one if the content is only a part of the body."""
    size = len(content) if size is None else size
    return f"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode() + content


def open_silent(port, stack):
    """A connection that sends nothing."""
    return stack.enter_context(socket.create_connection(("127.0.0.1", port)))


def open_slow_head(port, stack):
    """A connection that sends a part of a request's head."""
    one = open_silent(port, stack)
    one.sendall(b"POST /v1/faces HTTP/1.1\r\nX-")
    return one


def open_slow_body(port, stack):
    """A connection that sends a part of a request's body."""
    one = open_silent(port, stack)
    one.sendall(make_post(b"half", 1000))
    return one


def open_unread(port, stack):
    """A connection that sends requests for more than its buffers hold and reads no response."""
    one = stack.enter_context(socket.socket())
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(20):
            one.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
    return one


def is_closed(one):
    """Return whether the service has closed or reset a connection, without reading from it."""
    poll = select.poll()
    poll.register(one, select.POLLRDHUP)
    return bool(poll.poll(0))


@pytest.mark.slow
@pytest.mark.parametrize("open_one", [open_silent, open_slow_head, open_slow_body, open_unread])
def test_other_clients_are_answered_while_bad_ones_are_connected(portrait, open_one):
    """More bad connections than the queue has places; they are closed after the timeout."""
    with (
        run_service("--model", "compact", "--queue", 4, "--timeout", 4, "--no-log") as service,
        httpx.Client(base_url=service.address, timeout=3) as client,
        ExitStack() as stack,
    ):
        bad = [open_one(service.port, stack) for _ in range(20)]
        for _ in range(3):
            assert client.post("/v1/faces", content=portrait.read_bytes()).status_code == 200
            time.sleep(0.2)
        assert not any(map(is_closed, bad))
        if open_one is open_unread:
            started = time.monotonic()
            while not all(map(is_closed, bad)):
                assert time.monotonic() < started + 20
                time.sleep(0.1)
        assert client.post("/v1/faces", content=portrait.read_bytes()).status_code == 200


@pytest.mark.slow
def test_slow_bodies_lose_their_memory_to_other_requests(portrait):
    """Clients that announce a body and stop just before its end cannot occupy the memory for bodies."""
    content = portrait.read_bytes()
    size = len(content)
    with (
        run_service(limits=f"held={3 * size}, seconds=9.0") as service,
        httpx.Client(base_url=service.address, timeout=5) as client,
        ExitStack() as stack,
    ):
        slow = [open_silent(service.port, stack) for _ in range(3)]
        for one in slow:
            one.sendall(make_post(content[:-1], size))
        wait_for(client, "agegen_held_bytes", 3 * (size - 1))
        # At first nothing says that they are slow.
        assert client.post("/v1/faces", content=content).status_code == 429
        time.sleep(2.5)
        assert client.post("/v1/faces", content=content).status_code == 200
        slow[0].settimeout(5)
        answer = b"".join(iter(lambda: slow[0].recv(10_000), b""))
        assert answer.startswith(b"HTTP/1.1 429")
        assert b"memory limit" in answer
        # The others have kept theirs.
        for one in slow[1:]:
            one.sendall(content[-1:])
            one.settimeout(5)
            assert one.recv(10_000).startswith(b"HTTP/1.1 200")
        wait_for(client, "agegen_held_bytes", 0)
        wait_for(client, "agegen_requests_under_way", 0)


@pytest.mark.slow
@pytest.mark.parametrize("open_one", [open_silent, open_slow_head, open_slow_body, open_unread])
def test_sigterm_ends_the_service_within_the_timeout(open_one):
    with run_service("--model", "compact", "--timeout", 3) as service, ExitStack() as stack:
        bad = [open_one(service.port, stack) for _ in range(20)]
        time.sleep(0.5)
        started = time.monotonic()
        code, log = service.stop()
        assert time.monotonic() - started < 3
        if open_one is open_slow_body:
            answer = b"".join(iter(lambda: bad[0].recv(10_000), b""))
            assert answer.startswith(b"HTTP/1.1 503")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "the service is stopping"
            assert log.count("POST /v1/faces 503") == 20
    assert code == 0, log
    assert "Traceback" not in log


# Threads that never end stand for any decoder or inference that hangs.
HANGING = """
import time
from agegen.serve.{module} import {owner}
{owner}.{method} = lambda *_: time.sleep(1000)
from agegen.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hang", "reason"),
    [
        ({"module": "requests", "owner": "RequestQueue", "method": "_extract"}, "1 images and 0 batches in progress"),
        ({"module": "models", "owner": "Batcher", "method": "_run_batch"}, "0 images and 1 batches in progress"),
    ],
)
def test_sigterm_ends_the_service_within_the_timeout_if_a_thread_hangs(portrait, hang, reason):
    with (
        run_service("--model", "compact", "--timeout", 3, script=HANGING.format(**hang)) as service,
        ExitStack() as stack,
    ):
        one = open_silent(service.port, stack)
        one.sendall(make_post(portrait.read_bytes()))
        time.sleep(1)
        started = time.monotonic()
        code, log = service.stop()
        assert time.monotonic() - started < 3
        assert one.recv(1000).startswith(b"HTTP/1.1 503")
    assert code == 1
    assert reason in log
    assert "Traceback" not in log


def wait_for(client, name, value):
    for _ in range(400):
        if read_metric(client, name) == value:
            return
        time.sleep(0.05)
    raise AssertionError(f"{name} is not {value}")


def test_slow_clients_are_disconnected(portrait):
    with run_service(limits="seconds=1.0, head_seconds=1.0, connections=8") as service:

        def open_one(start):
            one = socket.create_connection(("127.0.0.1", service.port))
            one.settimeout(10)
            one.sendall(start)
            return one

        silent, dripping = open_one(b" "[:0]), open_one(b"POST /v1/faces HTTP/1.1\r\n")
        body = open_one(b"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n")
        began = time.monotonic()

        def drip():
            for number in range(40):
                time.sleep(0.1)
                try:
                    dripping.sendall(f"X-{number}: y\r\n".encode())
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        # Other clients are answered meanwhile.
        answer = httpx.post(f"{service.address}/v1/faces", content=portrait.read_bytes(), timeout=30)
        assert answer.status_code == 200
        assert silent.recv(100) == b""
        # Sending to a closed connection resets it.
        with suppress(ConnectionResetError):
            assert dripping.recv(100) == b""
        assert time.monotonic() - began < 4
        answer = b"".join(iter(lambda: body.recv(1000), b"")).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "not received within 1 seconds" in answer
        thread.join()
        crowd = [open_one(b"") for _ in range(8)]
        with socket.create_connection(("127.0.0.1", service.port)) as late:
            late.settimeout(10)
            assert late.recv(1000).startswith(b"HTTP/1.1 503")
        for one in crowd:
            one.close()
        for garbage in (b"\x16\x03\x01\x02\x00", b"GET /\r\n\r\n", b"A" * 100_000):
            with open_one(garbage) as one:
                assert one.recv(100).startswith(b"HTTP/1.1 400")


def test_requests_in_progress_are_answered_after_sigterm(portrait):
    with run_service("--model", "compact") as service:
        content = portrait.read_bytes()
        with socket.create_connection(("127.0.0.1", service.port)) as one:
            head = f"POST /v1/faces HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            one.sendall(head.encode() + content[:1000])
            with httpx.Client(base_url=service.address) as client:
                wait_for(client, "agegen_requests_under_way", 1)
            service.process.terminate()
            time.sleep(0.3)
            one.sendall(content[1000:])
            one.settimeout(20)
            answer = b"".join(iter(lambda: one.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])[0]["status"] == "ok"
        code, log = service.process.wait(20), service.process.stderr.read()
    assert code == 0, log
    assert "Traceback" not in log


def test_nothing_is_stored_or_logged(portrait, tmp_path):
    with run_service("--model", "compact", TMPDIR=str(tmp_path / "none")) as service:
        files = {"image": ("secret-name.jpg", portrait.read_bytes() + bytes(4_000_000))}
        answer = httpx.post(f"{service.address}/v1/faces?min_score=0.125", files=files, timeout=30)
        # A part of this size would be written to a temporary file, and the folder for these does not exist.
        assert answer.json()[0]["file"] == "secret-name.jpg"
        code, log = service.stop()
    assert code == 0
    assert re.search(r"POST /v1/faces 200 \d+ ms", log)
    assert "secret" not in log
    assert "0.125" not in log


def test_startup_errors_are_one_line(agegen, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = agegen("serve", "--port", taken.getsockname()[1])
    assert result.exit_code == 1
    assert "Choose another port with --port" in result.stderr
    for words, reason in (
        (["--token", ""], "invalid token: it is empty"),
        (["--token", "  "], "invalid token: it has blanks"),
        (["--token", "sesame\n"], "invalid token: it has blanks"),
        (["--token", "sésame"], "characters other than ASCII"),
        (["--allow-origin", "https://a.example"], "--allow-origin requires --token"),
        (["--token", "x" * 16, "--allow-origin", "*"], "invalid --allow-origin: '*'"),
        (["--token", "x" * 16, "--allow-origin", "null"], "invalid --allow-origin: 'null'"),
        (["--token", "x" * 16, "--allow-origin", "https://a.example/page"], "invalid --allow-origin"),
        (["--timeout", "inf"], "--timeout must be greater than 0"),
        (["--model", "vgg17"], "vgg17"),
        (["--model", "compact/closed"], "no bundled weights 'closed'"),
        (["--model", "compact", "--model", "compact"], "two models have the name 'compact'"),
        (["--run", tmp_path / "none"], "none"),
    ):
        result = agegen("serve", "--port", 0, *words)
        assert result.exit_code == 1, words
        assert reason in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("token", ["", " ", "é"])
def test_invalid_tokens_of_the_environment_are_one_line(agegen, monkeypatch, token):
    monkeypatch.setenv("AGEGEN_TOKEN", token)
    result = agegen("serve", "--port", 0)
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


def read_example(language):
    text = find_pages()["serve"].read_text(encoding="utf-8")
    (example,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return example


@pytest.mark.parametrize(
    ("language", "command", "answers"),
    [
        ("sh", ["bash", "-euc"], 3),
        ("js", ["node", "--input-type=module", "-e"], 1),
        ("python", [sys.executable, "-c"], 1),
    ],
)
def test_examples_of_the_help_page(portrait, tmp_path, monkeypatch, language, command, answers):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    monkeypatch.setenv("AGEGEN_TOKEN", "0123456789abcdef")
    shutil.copy(portrait, tmp_path / "face.jpg")
    with run_service("--model", "compact") as service:
        example = read_example(language)
        assert "localhost:8000" in example
        code = example.replace("localhost:8000", f"localhost:{service.port}")
        result = subprocess.run([*command, code], capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        # Without a token the example shows the reason.
        refused = subprocess.run(
            [*command, code], env=os.environ | {"AGEGEN_TOKEN": "x"}, capture_output=True, text=True, timeout=60
        )
        assert "missing or invalid token" in refused.stdout + refused.stderr
    decoder, rows, text = json.JSONDecoder(), [], result.stdout.strip()
    for _ in range(answers):
        answer, end = decoder.raw_decode(text)
        rows, text = rows + answer, text[end:].strip()
    assert text == ""
    assert [row["status"] for row in rows] == ["ok"] * (answers + (language == "sh"))


@pytest.mark.slow
def test_short_tokens_get_a_warning():
    for token, warned in (("sesame", True), ("0123456789abcdef", False)):
        with run_service("--model", "compact", "--token", token) as service:
            assert httpx.get(f"{service.address}/healthz").status_code == 200
            _, log = service.stop()
        assert ("warning: the token is short (6 characters)" in log) == warned
        assert token not in log


def test_named_web_pages_may_send_requests(portrait):
    page = "https://faces.example"
    words = ("--model", "compact", "--token", "0123456789abcdef", "--allow-origin", "https://Faces.example:443/")
    with run_service(*words) as service, httpx.Client(base_url=service.address) as client:
        ask = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        asked = client.options("/v1/faces", headers=ask)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == page
        assert "Authorization" in asked.headers["access-control-allow-headers"]
        assert "POST" in asked.headers["access-control-allow-methods"]
        headers = {"Origin": page, "Authorization": "Bearer 0123456789abcdef"}
        answer = client.post("/v1/faces", content=portrait.read_bytes(), headers=headers)
        assert answer.status_code == 200
        # The page can also read why a request failed.
        refused = client.post("/v1/faces", content=portrait.read_bytes(), headers={"Origin": page})
        assert refused.status_code == 401
        for each in (answer, refused):
            assert each.headers["access-control-allow-origin"] == page
            assert each.headers["vary"] == "Origin"
            assert "access-control-allow-credentials" not in each.headers
        for other in ("https://evil.example", "http://faces.example", "https://faces.example.evil.example", "null"):
            for method in ("OPTIONS", "POST"):
                refused = client.request(method, "/v1/faces", headers=ask | headers | {"Origin": other})
                assert refused.status_code == 403
                assert "access-control-allow-origin" not in refused.headers


def test_a_run_is_served_by_its_name(trained_run, portrait, agegen):
    with run_service("--run", trained_run, "--model", "compact") as service:
        answer = httpx.post(f"{service.address}/v1/faces?model=scratch", content=portrait.read_bytes(), timeout=30)
    assert drop_file_names(answer.json()) == drop_file_names(predict(agegen, portrait, "--run", trained_run))
