"""Which addresses an endpoint may have: any on the Internet, and those private ones that whoever runs LionWeb has named.

A base URL is typed by a person and called from inside a network: without a guard it could be used to reach what is not meant to be
reached, the cloud's own metadata service first of all. The guard looks at addresses, not at names, and looks again at the moment
of connecting, so that neither another way of writing an address nor a name that changes its address gets past it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

from trainer.errors import ConfigError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

SETTING = "LIONWEB_PRIVATE_HOSTS"
NOTHING = "none"

_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
"""A last part like this makes a host an address in disguise (127.1, 0x7f000001) and never a name."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HOLDS_IPV4 = (_NAT64, ipaddress.ip_network("::/96"))
"""Networks whose last four bytes are the IPv4 address that is meant."""
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True)
class AddressGuard:
    """The private places that may be called: host names, and networks of addresses."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def from_settings(cls, entries: Sequence[str]) -> AddressGuard:
        """From host names, addresses and networks such as 10.0.0.0/8, or "none" alone. Raises ConfigError with what is none of these."""
        if list(entries) == [NOTHING]:
            return cls()
        networks = {entry: network for entry in entries if (network := _network(entry)) is not None}
        hosts = {_plain(entry) for entry in entries if entry not in networks}
        wrong = next((host for host in sorted(hosts) if not _is_name(host)), None)
        if wrong is not None:
            raise ConfigError(
                f"{SETTING} has {wrong!r}, which is neither a host name nor an address nor a network. Give names without "
                "a port, and networks like 10.0.0.0/8, separated by commas."
            )
        return cls(frozenset(hosts), tuple(networks.values()))

    def check_url(self, url: str, *, resolve: bool = True) -> None:
        """Raises ConfigError where the host of a URL is at an address that may not be called.

        resolve: ask for the addresses of a name, which can take seconds; else only a host that is itself an address is looked at. A
        name that has no address passes: nothing can be called there.
        """
        host = _plain(urlsplit(url).hostname or "")
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=0 if resolve else socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return
        self.check(host, (str(place[0]) for *_, place in found))

    def check(self, host: str, addresses: Iterable[str]) -> None:
        """Raises ConfigError where one of a host's addresses may not be called: which one is taken is not for us to say."""
        if _plain(host) in self.hosts:
            return
        for address in map(ipaddress.ip_address, addresses):
            if is_private(address) and not self._names(address):
                raise ConfigError(_refusal(_plain(host), address))

    def _names(self, address: Address) -> bool:
        return any(form in network for form in (address, _meant(address)) for network in self.networks)


def is_private(address: Address) -> bool:
    """Whether an address is anything but a place on the Internet: this machine, a local network, a group, or reserved."""
    meant = _meant(address)
    site_local = isinstance(meant, IPv6Address) and (meant.is_site_local or meant in _LOCAL_NAT64)
    return not meant.is_global or meant.is_multicast or meant.is_reserved or meant.is_unspecified or site_local


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, where it does."""
    if isinstance(address, IPv4Address):
        return address
    if any(address in network for network in _HOLDS_IPV4) and address not in (IPv6Address("::"), IPv6Address("::1")):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _refusal(host: str, address: Address) -> str:
    what = f"{host} is a private address" if host == str(address) else f"{host} is at {address}, which is a private address"
    return (
        f"{what}, and none of those that are allowed. An admin of the machine can allow it: add {host}, or a network such as "
        f"{_around(address)}, to {SETTING} where the web server and the workers start, and restart them."
    )


def _around(address: Address) -> str:
    """The network of a few hundred addresses around one, to be proposed."""
    prefix = 24 if isinstance(address, IPv4Address) else 64
    return str(ipaddress.ip_network(f"{str(address).partition('%')[0]}/{prefix}", strict=False))


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _is_name(host: str) -> bool:
    return bool(_NAME.fullmatch(host)) and not _NUMBER.fullmatch(host.rpartition(".")[2])


def _plain(host: str) -> str:
    """A host name in its one spelling."""
    return host.lower().rstrip(".")
