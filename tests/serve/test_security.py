"""Limits on connections, with an application that answers at once or after a while."""

import asyncio
import re
import select
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import pytest
import uvicorn

from agegen.serve.config import Limits
from agegen.serve.metrics import ServiceMetrics
from agegen.serve.security import ConnectionLimiter, identify_client

IDLE = 0.5
LIMITS = Limits(connections=5, head_seconds=IDLE, seconds=2.0)
OK = [b"HTTP/1.1 200"]
# More than the buffers of both sockets hold.
LARGE = 20_000_000


async def answer(scope, receive, send):
    """Answer `GET /` without reading the body, `GET /slow` after three times the idle timeout."""
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * IDLE)
    body = bytes(LARGE) if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_limiter(limits=LIMITS):
    return ConnectionLimiter(answer, ServiceMetrics(), limits)


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
    with run_server(make_limiter()) as server:
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
        run_server(make_limiter(), "::1") as (port, _),
        socket.create_connection(("::1", port)) as one,
    ):
        one.settimeout(10)
        one.sendall(make_head("/slow"))
        assert read_responses(one) == OK


def is_reset(one):
    """Return whether the server has reset a connection, without reading from it."""
    poll = select.poll()
    poll.register(one, 0)
    return bool(poll.poll(0))


def wait_until(condition, seconds=10):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() < started + seconds
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_client_that_reads_nothing_is_disconnected(connect):
    one = connect(make_head("/large"))
    assert LIMITS.seconds / 2 < wait_until(lambda: is_reset(one)) < LIMITS.seconds + 3


def read_slowly(one, size, rate):
    """Read up to this size at a rate in bytes per second; return how much came before the connection was closed."""
    started, done = time.monotonic(), 0
    with suppress(ConnectionResetError):
        while done < size and (part := one.recv(100_000)):
            done += len(part)
            time.sleep(max(0.0, started + done / rate - time.monotonic()))
    return done


def test_pipelined_responses_share_the_time_for_reading(connect):
    """A client that reads each response just in time would otherwise occupy its connection for ever."""
    one = connect(make_head("/large") * 10)
    assert read_slowly(one, 10 * LARGE, 1.5 * LARGE / LIMITS.seconds) < 4 * LARGE


def test_a_slow_client_that_reads_gets_the_whole_response(connect):
    for _ in range(3):
        one = connect(make_head("/large"))
        assert read_slowly(one, LARGE, 1.5 * LARGE / LIMITS.seconds) >= LARGE


def test_connections_per_client_are_limited():
    """Beyond the limit a client loses the connection that has waited for it the longest; others are not affected."""
    metrics = ServiceMetrics()
    limiter = ConnectionLimiter(
        answer, metrics, Limits(connections=50, client_connections=3, head_seconds=9, seconds=9)
    )
    with run_server(limiter) as (port, _), ExitStack() as stack:

        def connect(content=b"", address="127.0.0.1"):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), source_address=(address, 0)))
            one.settimeout(10)
            one.sendall(content)
            time.sleep(0.05)
            return one

        other = connect(address="127.0.0.2")
        busy, idle, unread = connect(make_head("/slow")), connect(), connect(make_head("/large"))
        newest = connect(make_head())
        assert read_responses(newest) == OK
        wait_until(lambda: is_reset(idle))
        assert not is_reset(unread)
        newest.sendall(make_head("/slow"))
        connect(make_head("/slow"))
        wait_until(lambda: is_reset(unread))
        # All three have a request in progress.
        refused = connect()
        assert refused.recv(1000).startswith(b"HTTP/1.1 503")
        assert b'status="503"} 1.0' in metrics.format()
        assert read_responses(busy) == OK
        other.sendall(make_head())
        assert read_responses(other) == OK


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
    ],
)
def test_clients_are_told_apart_by_address(address, client):
    assert identify_client(address) == client


@pytest.mark.parametrize("chunk", [1000, 100_000])
def test_bodies_in_chunks_are_parsed(connect, chunk):
    content = f"{chunk:x}\r\n".encode() + bytes(chunk) + b"\r\n"
    one = connect(make_head("/slow", "Transfer-Encoding: chunked\r\n") + content * (3_000_000 // chunk) + b"0\r\n\r\n")
    assert read_responses(one) == OK


def test_requests_that_take_long_to_parse_are_refused(connect):
    """A few clients that send a body in chunks of one byte would otherwise occupy the event loop."""
    crowd = [connect(make_head("/slow", "Transfer-Encoding: chunked\r\n")) for _ in range(4)]
    started = time.monotonic()
    for one in crowd:
        with suppress(ConnectionError):
            one.sendall(b"1\r\nx\r\n" * 50_000)
    other = connect(make_head())
    assert read_responses(other) == OK
    assert time.monotonic() < started + 2
    assert all(measure_closing(one) < 2 for one in crowd)
