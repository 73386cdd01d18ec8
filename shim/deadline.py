"""An end to a request that a server answers a byte at a time: the timeout of a socket begins again with each byte."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator

REQUEST_S = 300.0  # for a request, with all that is read of its answer


@contextlib.contextmanager
def ends_within(connection: http.client.HTTPConnection, seconds: float) -> Iterator[None]:
    """Connect if need be, then end the connection when the block takes too long.

    To connect has the connection's own timeout: for each address of the host, and for a whole TLS handshake.

    Parameters
    ----------
    connection : http.client.HTTPConnection
        On which the block makes one request and reads its answer.
    seconds : float
        How long the block may take [s].

    Raises
    ------
    TimeoutError
        The block took longer.
    OSError
        The host can't be reached.
    """
    if connection.sock is None:
        connection.connect()
    is_late, link = threading.Event(), connection.sock

    def hang_up() -> None:
        is_late.set()
        with contextlib.suppress(OSError):  # it is closed already
            socket.socket.shutdown(link, socket.SHUT_RDWR)  # SSLSocket's own is not for use by another thread

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:  # of any kind: what had come looks like an answer that ends here
        if not is_late.is_set():
            raise
    finally:
        timer.cancel()
    if is_late.is_set():  # also where the part of an answer that has come looks like a whole one
        raise TimeoutError(f"no whole answer within {seconds:g} s")
