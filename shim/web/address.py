"""Who asks: the peer's address, or the one that a trusted proxy names.

X-Forwarded-For is a list to which each proxy adds, at its right end, the address that it saw. What stands left of the
first address that no trusted proxy has added was written by the client, and is worth nothing.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from shim.config import SettingError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNIX = "unix"  # how the setting names a peer behind a unix socket, which has no address


class TrustedProxies:
    """The peers whose X-Forwarded-For is believed.

    Parameters
    ----------
    setting : str
        Addresses, networks (10.0.0.0/8) and the word unix, separated by commas or spaces; '' = nobody.

    Raises
    ------
    SettingError
        Anything else, also *: trusting every peer would let clients choose their address.
    """

    def __init__(self, setting: str) -> None:
        words = setting.replace(",", " ").split()
        self._unix = UNIX in words
        self._networks: list[Network] = []
        for word in words:
            try:
                if word != UNIX:
                    self._networks.append(_network(word))
            except ValueError:
                raise SettingError(
                    "OSGPROD_TRUSTED_PROXIES", word, "an address, a network, or the word unix"
                ) from None

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Returns the client's address in its plain form; None when it can't be known.

        Parameters
        ----------
        peer : str | None
            The address at the other end of the connection; None or '' = a unix socket.
        headers : Iterable[tuple[bytes, bytes]]
            Of the request, names in lower case, in the order in which they came.
        """
        if not (self._unix or self._networks) or not self._is_trusted(peer or UNIX):
            return plain(peer or "")
        lines = [value for name, value in headers if name == b"x-forwarded-for"]
        hops = [hop.strip() for hop in b",".join(lines).decode("latin-1").split(",") if hop.strip()]
        client = plain(peer or "")
        for hop in reversed(hops):
            client = plain(_without_port(hop))
            if client is None or not self._is_trusted(client):
                break
        return client

    def _is_trusted(self, peer: str) -> bool:
        if peer == UNIX:
            return self._unix
        text = plain(peer)
        address = ipaddress.ip_address(text) if text else None
        return address is not None and any(address in network for network in self._networks)


@functools.lru_cache(maxsize=4096)
def plain(text: str) -> str | None:
    """Returns an address as PostgreSQL writes it: v4-mapped ones as IPv4, no zone; None for any other text."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


def _network(word: str) -> Network:
    network = ipaddress.ip_network(word, strict=False)
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped:
        return ipaddress.ip_network(
            f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}", strict=False
        )
    return network


def _without_port(hop: str) -> str:
    """Some proxies write 192.0.2.1:4711 or [2001:db8::1]:4711."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
