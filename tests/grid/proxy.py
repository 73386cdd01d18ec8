"""A TCP proxy on loopback that adds a delay, and counts bytes and connections."""

from __future__ import annotations

import queue
import socket
import threading
import time
from typing import Self


class Proxy:
    """Passes connections on to a port of 127.0.0.1.

    Parameters
    ----------
    target : int
        Port.
    delay_s : float
        Each way, the connection's own round trip too [s].
    bytes_per_s : float | None
        How fast it passes on what the client sends; None = at once.
    """

    def __init__(self, target: int, delay_s: float = 0.0, bytes_per_s: float | None = None) -> None:
        self._target, self._delay_s, self._rate = target, delay_s, bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.to_server = 0
        self.to_client = 0
        self.first_lines: list[bytes] = []  # of each burst from a client: its requests, when it is plain HTTP
        self._closed = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        time.sleep(2 * self._delay_s)
        try:
            server = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        threads = [
            threading.Thread(target=self._pump, args=pair, daemon=True)
            for pair in ((client, server, True), (server, client, False))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, is_upward: bool) -> None:
        pending: queue.Queue[tuple[float, bytes]] = queue.Queue()
        writer = threading.Thread(target=self._write, args=(pending, sink), daemon=True)
        writer.start()
        data = b"-"
        while data:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if is_upward:
                self.to_server += len(data)
                self.first_lines += [data.split(b"\r\n")[0]] if data else []
                if self._rate:
                    time.sleep(len(data) / self._rate)
            else:
                self.to_client += len(data)
            pending.put((time.monotonic() + self._delay_s, data))
        writer.join()

    def _write(self, pending: queue.Queue[tuple[float, bytes]], sink: socket.socket) -> None:
        data = b"-"
        while data:
            due, data = pending.get()
            time.sleep(max(due - time.monotonic(), 0))
            try:
                if data:
                    sink.sendall(data)
                else:
                    sink.shutdown(socket.SHUT_WR)
            except OSError:
                return
