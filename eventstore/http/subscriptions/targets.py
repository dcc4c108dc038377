"""Where webhooks may be: a server must not be made to call what only it can reach.

PROTOCOL.md, section 12.8. A URL is checked when a subscription is made; the addresses that its name
has are checked whenever it is called, and the connection goes to one that was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from typing import Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from eventstore.http.subscriptions.refusals import Refused

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_LONGEST: Final = 2048
_NAME: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
# What some resolvers take for a number: then it is an address, whatever it looks like.
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
#: Names that mean something within a network only.
_INNER: Final = ("localhost", "local", "internal", "intranet", "lan", "home", "corp", "localdomain")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_INNER: Final = ipaddress.IPv6Network("64:ff9b:1::/48")


class Target(NamedTuple):
    """A webhook's URL in its parts. `host` is in lower case and without brackets."""

    url: str
    scheme: str
    host: str
    port: int
    #: Whether it is on the machine of the server, for development.
    is_local: bool


def target(url: str, *, local: bool) -> Target:
    """Where a URL leads. Raises Refused (WEBHOOK_URL_REJECTED) unless a webhook may be there.

    With `local`, one may also be on this machine: at localhost or 127.0.0.0/8, by http or https.
    """
    if (
        len(url) > _LONGEST
        or not url.isascii()
        or not url.isprintable()
        or re.search(r"[\s\\]", url)
    ):
        raise _rejected(f"it must have at most {_LONGEST} printable ASCII characters, no spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _rejected("it is no URL") from None
    host = (parts.hostname or "").removesuffix(".")
    if parts.scheme not in ("https", "http") or not host:
        raise _rejected("it must start with https:// and a host")
    if "@" in parts.netloc or "#" in url:
        raise _rejected("it may hold neither a name and password nor a fragment")
    if port == 0:
        raise _rejected("there is no port 0")
    address = _literal(host)
    is_local = host == "localhost" or (
        isinstance(address, ipaddress.IPv4Address) and address.is_loopback
    )
    if is_local and not local:
        raise _rejected("a webhook on the server's own machine is for development only")
    if parts.scheme == "http" and not is_local:
        raise _rejected("it must be https")
    if not is_local:
        if address is not None and not is_public(address):
            raise _rejected(f"{host} is not an address of the public internet")
        if address is None and (host.rpartition(".")[2] in _INNER or "." not in host):
            raise _rejected(f"{host} is a name of an inner network")
    return Target(
        url, parts.scheme, host, port or (443 if parts.scheme == "https" else 80), is_local
    )


def _literal(host: str) -> Address | None:
    """The address that a host is; None if it is a name. Raises Refused."""
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host)
        except ValueError:
            raise _rejected("its IPv6 address cannot be read") from None
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return ipaddress.IPv4Address(host)
        except ValueError:
            raise _rejected("an IPv4 address must be four decimal numbers") from None
    if len(host) > 253 or not all(map(_NAME.fullmatch, host.split("."))):
        raise _rejected("its host is no name of the internet: write others as IDNA (xn--...)")
    return None


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and of one machine there."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.teredo is not None or address.is_site_local or address in _NAT64_INNER:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolved(target: Target) -> list[str]:
    """Addresses to connect to, the best first. Raises OSError.

    Raises Refused if the name has any that is not allowed.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        target.host, target.port, type=socket.SOCK_STREAM
    )
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    for address in addresses:
        if not (_is_loopback(address) if target.is_local else is_public(address)):
            raise _rejected(f"{target.host} has the address {address}, which is not allowed")
    return [str(address) for address in addresses]


def _is_loopback(address: Address) -> bool:
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _rejected(why: str) -> Refused:
    return Refused(400, "WEBHOOK_URL_REJECTED", f"the webhook's URL is refused: {why}")
