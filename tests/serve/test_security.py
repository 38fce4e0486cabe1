"""Limits on connections, with an application that answers at once or after a while."""

import asyncio
import re
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from agegen.serve.security import ConnectionLimiter

IDLE = 0.5
OK = [b"HTTP/1.1 200"]


async def answer(scope, receive, send):
    """Answer `GET /` without reading the body, `GET /slow` after three times the idle timeout."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * IDLE)
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def run_server(limiter, host="127.0.0.1"):
    """Run uvicorn in a thread; yield its port and the transports of all connections."""
    transports = []

    class Recorder(limiter.make_protocol()):
        def connection_made(self, transport):
            super().connection_made(transport)
            transports.append(transport)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        config = uvicorn.Config(
            limiter, http=Recorder, loop="asyncio", lifespan="off", ws="none", proxy_headers=False, log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield listener.getsockname()[1], transports
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def server():
    with run_server(ConnectionLimiter(answer, 5, IDLE)) as server:
        yield server


@pytest.fixture
def connect(server):
    """Open connections, closed after the test; wait until the server has forgotten those of the test before."""
    port, transports = server
    opened = []
    deadline = time.monotonic() + 10
    while not all(transport.is_closing() for transport in transports):
        assert time.monotonic() < deadline
        time.sleep(0.02)

    def connect(content=b""):
        one = socket.create_connection(("127.0.0.1", port))
        opened.append(one)
        one.settimeout(10)
        one.sendall(content)
        return one

    yield connect
    for one in opened:
        one.close()


def make_head(path="/", more=""):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode()


def read_responses(one, count=1):
    """Return the status lines of a number of responses."""
    content = b""
    while content.count(b"\r\n\r\nok") < count:
        part = one.recv(1000)
        assert part, content
        content += part
    return re.findall(rb"HTTP/1\.1 \d+", content)


def measure_closing(one, drip=b""):
    """Return the seconds until the server closes a connection, on which `drip` is sent again and again."""
    started = time.monotonic()
    one.settimeout(0.05)
    while time.monotonic() < started + 10:
        try:
            if one.recv(1000) == b"":
                break
        except TimeoutError:
            pass
        except ConnectionResetError:
            break
        try:
            one.sendall(drip)
        except OSError:
            break
    return time.monotonic() - started


def test_a_silent_connection_is_closed(connect):
    assert IDLE / 2 < measure_closing(connect()) < 5


def test_a_head_sent_byte_by_byte_is_cut_off(connect):
    assert IDLE / 2 < measure_closing(connect(b"GET / HTTP/1.1\r\n"), b"X: y\r\n") < 5


def test_a_second_head_sent_byte_by_byte_is_cut_off(connect):
    one = connect(make_head())
    assert read_responses(one) == OK
    assert IDLE / 2 < measure_closing(one, b"X") < 5


def test_the_body_of_an_answered_request_is_cut_off(connect):
    """The application never reads the body, so no timeout of its own applies."""
    assert IDLE / 2 < measure_closing(connect(make_head(more="Content-Length: 9000\r\n")), b"X") < 5


def test_a_request_in_progress_is_not_idle(connect):
    one = connect(make_head("/slow"))
    assert read_responses(one) == OK
    one.sendall(make_head("/slow"))
    assert read_responses(one) == OK


def test_pipelined_requests_are_answered(connect):
    one = connect(make_head() + make_head("/slow") + make_head())
    assert read_responses(one, 3) == OK * 3
    assert measure_closing(one) < 5


def test_too_many_connections_get_503_and_open_ones_are_answered(connect):
    crowd = [connect() for _ in range(5)]
    late = connect()
    assert late.recv(1000).startswith(b"HTTP/1.1 503")
    assert late.recv(1000) == b""
    crowd[0].sendall(make_head())
    assert read_responses(crowd[0]) == OK
    # A closed connection makes room for another.
    crowd[1].close()
    time.sleep(0.1)
    assert read_responses(connect(make_head())) == OK


def test_nagles_algorithm_is_off(connect, server):
    one = connect(make_head())
    assert read_responses(one) == OK
    assert server[1][-1].get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_ipv6_connections_are_matched_with_their_requests():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6")
    with (
        run_server(ConnectionLimiter(answer, 5, IDLE), "::1") as (port, _),
        socket.create_connection(("::1", port)) as one,
    ):
        one.settimeout(10)
        one.sendall(make_head("/slow"))
        assert read_responses(one) == OK
