"""Clients of the HTTP measures: many keep-alive connections in one process that costs little itself.

``python -m bench.driver '{"port": 8080, "talk": "pairs", ...}'`` prints one JSON object with the results.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import dataclass, replace
from typing import Literal

WRONG_CLIENTS = 8  # that send the wrongs beside others
ASSIGNED = b"\ninput_eviofile_list="  # is in a script with a slice, the original's as well, and in no message


@dataclass(frozen=True)
class Order:
    """What to drive.

    port      of the server;  clients  connections
    talk      pairs of checkout and report; original, the same without a token, as clients of the original; lines of
              the bound; or wrongs, checkouts with a wrong magic, from other addresses than the pairs
    seconds   how long, or requests  how many at least [0 = no limit]
    rate      requests a second in all, sent when they are due; 0 = each as soon as the one before is answered
    cluster0  number of the first client's cluster;  project  whose work
    wrongs_per_s  as many wrongs a second beside all that; they are in no result
    host      of the server;  root  path that its routes are below;  magic  of the project
    """

    port: int
    talk: Literal["pairs", "original", "lines", "wrongs"]
    clients: int = 16
    seconds: float = 5.0
    requests: int = 0
    rate: float = 0.0
    cluster0: int = 1
    project: str = "p"
    wrongs_per_s: float = 0.0
    host: str = "127.0.0.1"
    root: str = "/osgprod"
    magic: str = "m"


class Client:
    """One job host: a connection that asks, reports, and asks as the next job.

    Parameters
    ----------
    order : Order
        See there.
    number : int
        Of this client [0 ..].
    interval : float
        From one request to when the next is due [s]; 0 = the next is due when this one is answered.
    """

    def __init__(self, order: Order, number: int, interval: float) -> None:
        other = (f"127.0.{1 + number // 250}.{1 + number % 250}", 0) if order.talk == "wrongs" else None
        self.socket = socket.create_connection((order.host, order.port), source_address=other)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.interval = interval
        self.is_idle = True
        self.is_checkout = True
        self.talk = order.talk
        self._root, self._host = order.root.encode(), order.host.encode()
        self._project = order.project.encode()
        self._magic = b"wrong" if order.talk == "wrongs" else order.magic.encode()
        self._cluster = order.cluster0 + number
        self._process = 0
        self._answer = b""
        self._token = b""

    def send(self) -> None:
        """Sends the next request."""
        self.is_idle = False
        if self.talk == "lines":
            self._ask(b"line")
        elif self.is_checkout:
            self._process += 1
            self._ask(
                b"workscript.bash?project=%s&cluster=%d&process=%d&cpus=1&magic=%s",
                *(self._project, self._cluster, self._process, self._magic),
            )
        else:
            self._ask(
                b"workscript.exit?exitcode=0&cluster=%d&process=%d&project=%s&magic=%s%s",
                *(self._cluster, self._process, self._project, self._magic, self._token),
            )

    def _ask(self, target: bytes, *values: object) -> None:
        self.socket.sendall(
            b"GET %s/%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: curl/8.14.1\r\nAccept: */*\r\n\r\n"
            % (self._root, target % values, self._host)
        )

    def receive(self) -> bool:
        """Takes the received bytes; true when the answer is complete. An unexpected answer ends the program."""
        data = self.socket.recv(1 << 18)
        answer = self._answer + data
        head, found, body = answer.partition(b"\r\n\r\n")
        status = b"403" if self.talk == "wrongs" else b"200"
        if not data or (found and not head.startswith(b"HTTP/1.1 " + status)):
            sys.exit(f"driver: unexpected answer: {answer[:300]!r}")
        self._answer = answer
        if not found or not _is_whole(head, body):
            return False
        self._answer = b""
        self.is_idle = True
        if self.talk == "pairs":
            wanted = b"assigned" if self.is_checkout else b"done"
            if _header(head, b"osgprod-status") != wanted:
                sys.exit(f"driver: unexpected answer: {answer[:300]!r}")
            if self.is_checkout:
                self._token = b"&token=" + _header(head, b"osgprod-token")
        elif self.talk == "original" and self.is_checkout and ASSIGNED not in body:
            sys.exit(f"driver: no slice is in this answer: {answer[:300]!r}")
        self.is_checkout = self.talk in ("wrongs", "lines") or not self.is_checkout
        return True


def _is_whole(head: bytes, body: bytes) -> bool:
    length = _header(head, b"content-length")
    return len(body) >= int(length) if length else (b"\r\n" + body).endswith(b"\r\n0\r\n\r\n")  # chunks


def _header(head: bytes, name: bytes) -> bytes:
    """The value of a header; empty when it is not there."""
    begin = head.lower().find(b"\r\n" + name + b": ")
    return head[begin + len(name) + 4 :].partition(b"\r\n")[0] if begin >= 0 else b""


def drive(order: Order) -> dict[str, float]:
    """Runs the clients.

    Returns
    -------
    Requests, per_s [requests/s], p50_ms and p99_ms of checkouts or lines, from when they were due.
    """
    interval = order.clients / order.rate if order.rate else 0.0
    clients = [Client(order, number, interval) for number in range(order.clients)]
    if order.wrongs_per_s:
        wrongs = replace(order, talk="wrongs")
        clients += [
            Client(wrongs, number, WRONG_CLIENTS / order.wrongs_per_s) for number in range(WRONG_CLIENTS)
        ]
    poll = select.epoll()
    by_number = {client.socket.fileno(): client for client in clients}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    begin = time.perf_counter()
    end = begin + order.seconds if order.seconds else float("inf")
    for position, client in enumerate(clients):
        client.due = begin + position * client.interval / len(clients)
    latencies: list[float] = []
    count, now = 0, begin
    idle = list(clients)
    # Continue after the end until the first answer: a trial run is short, and the machine may be busy.
    while (now < end or (not latencies and now < end + 60)) and not 0 < order.requests <= count:
        still_idle = []
        for client in idle:
            if client.due <= now:
                client.send()
            else:
                still_idle.append(client)
        idle = still_idle
        wait = max(min(client.due for client in idle) - now, 0.0) if idle else 1.0
        events = poll.poll(min(wait, 1.0))
        now = time.perf_counter()
        for number, _ in events:
            client = by_number[number]
            was_checkout = client.is_checkout
            if not client.receive():
                continue
            if client.talk == order.talk:
                count += 1
                if was_checkout:
                    latencies.append(now - client.due)
            client.due = client.due + client.interval if client.interval else now
            idle.append(client)
    if not latencies:
        sys.exit(f"driver: no answer within {order.seconds} s")
    latencies.sort()
    return {
        "requests": count,
        "per_s": count / (now - begin),
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


if __name__ == "__main__":
    print(json.dumps(drive(Order(**json.loads(sys.argv[1])))))
