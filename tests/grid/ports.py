"""Ports of the loopback that nobody uses."""

import socket


def free_port() -> int:
    """Returns a free TCP port of 127.0.0.1; it is ours only once somebody listens there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
