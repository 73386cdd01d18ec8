"""uvicorn's HTTP protocol with answers in one piece, and with bounds to what a connection may send, and for how long.

uvicorn with httptools takes request heads of any length, and waits for the end of a request for ever, and for a client
that does not read its answers: clients that send a byte a minute, or one that never ends its head, would use up the
connections or the memory. And it writes head and body of an answer one by one: the client wakes up twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 32768  # of request line and headers; what arrives in one piece may be a piece longer
REQUEST_TIMEOUT_S = 30.0  # from a request's first byte, or from the connection, to the last byte of its body
# How long the kernel may take no byte of an answer. It takes more as soon as a third of its buffer of 1 MB is free.
UNREAD_TIMEOUT_S = 120.0
CHECK_S = 5.0
GRACE_S = 1.0  # of a connection without a request yet, when the server ends
END_S = 10.0  # of all others: as long as a call of the database may take


CONTINUE = b"HTTP/1.1 100 "


class _InOnePiece:
    """A transport that keeps the head of an answer until the first bytes of its body come, or the answer ends.

    Parameters
    ----------
    transport : asyncio.Transport
        That sends it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # any attribute of the transport
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # uvloop would raise an error after abort()
            self._head = b""
        elif self._head:
            head, self._head = self._head, b""
            # asyncio would try for ever to send an empty piece (CPython 3.12 and 3.13).
            self._transport.writelines((head, data) if data else (head,))
        elif data.startswith(b"HTTP/") and not data.startswith(CONTINUE):
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()


class BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    _head_bytes: int | None = None  # of the head that is not yet here as a whole, less its first piece
    _since: float | None = None  # when the request began that is not yet here as a whole
    _timer: asyncio.TimerHandle | None = None
    # Bytes of answers that wait for the client, and since when there are as many.
    _unsent: tuple[int, float] = (0, 0.0)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._pieces = self.transport = _InOnePiece(transport)  # type: ignore[assignment]
        self._since = self.loop.time()
        self._timer = self.loop.call_later(CHECK_S, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._head_bytes
        super().data_received(data)
        if before is not None and self._head_bytes == before:
            self._head_bytes = before + len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._since = 0, self.loop.time()

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._pieces.flush()  # of an answer to HEAD
        super().on_response_complete()

    def shutdown(self) -> None:
        self.loop.call_later(END_S, self.transport.abort)
        if self.cycle is None:  # a new connection is about to send a request
            self.loop.call_later(GRACE_S, super().shutdown)
        else:
            super().shutdown()

    def _check(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent[0]:
            self._unsent = unsent, now
        if now - self._unsent[1] > UNREAD_TIMEOUT_S:
            self.transport.abort()
            return
        if self._since is not None and now - self._since > REQUEST_TIMEOUT_S:
            self._refuse(b"408 Request Timeout")
        self._timer = self.loop.call_later(CHECK_S, self._check)

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            self.transport.close()
