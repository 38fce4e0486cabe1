"""HTTP/1.1 as uvicorn speaks it, with bounds that it lacks: on connections, and on how long a head may take."""

from __future__ import annotations

import asyncio
import json
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from agegen.serve.limits import Limits

_REASON = {"status": 503, "reason": "too many connections are open; try again"}


class BoundedProtocol(H11Protocol):
    """Closes connections that are silent, or send a head by the drop (slowloris), and refuses more than are allowed.

    Bodies that come by the drop are bounded by who reads them.
    """

    limits = Limits()
    _head_due: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the head of the first request."""
        super().connection_made(transport)
        # asyncio sets it on sockets alone that name their protocol, and an accepted one doesn't: without it the second
        # part of an answer waits 40 ms for the first to be acknowledged.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.connections:
            transport.write(_format_refusal())
            transport.close()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Take what comes; a head that has begun must end in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._head_due = None
            return
        self._wait_for_head()

    def _wait_for_head(self) -> None:
        if self._head_due is None:
            self._head_due = self.loop.time() + self.limits.head_seconds
        # The timer that uvicorn has for silence between requests, and cancels when anything comes.
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._head_due, self.timeout_keep_alive_handler)


def _format_refusal() -> bytes:
    body = json.dumps(_REASON).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Retry-After: 2\r\nConnection: close\r\n\r\n".encode() + body
