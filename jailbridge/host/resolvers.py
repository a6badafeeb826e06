"""Which name servers this host asks: those of libc (resolv.conf(5)) and of systemd-resolved. Asks nobody.

Where resolv.conf names resolved's stub (127.0.0.53), the servers behind it are in the file that resolved keeps for
others to read (systemd-resolved.service(8)); it has those of all links. What another local resolver (dnsmasq, unbound)
asks in turn is its own affair: name that under policy.allow.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jailbridge.errors import ParseError, RetryLater
from jailbridge.host.files import content
from jailbridge.model.network import Address, parse_address

FILES = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


def resolvers(files: Sequence[Path] = FILES) -> list[tuple[Address, str]]:
    """Return each name server with what names it, once; a file that is not there names none. Raises RetryLater."""
    found: dict[Address, str] = {}
    for path in files:
        try:
            data = content(path)
        except RetryLater as error:
            raise RetryLater(
                f"the name servers in use are unknown: {error}; nobody new is banned until it is mended"
            ) from None
        for address in nameservers(data or b""):
            found.setdefault(address, f"nameserver in {path}")
    return list(found.items())


def nameservers(data: bytes) -> Iterator[Address]:
    """Yield the addresses of the `nameserver` lines of a resolv.conf; what libc passes over is passed over here.

    libc takes the keyword at the line's very begin only; more servers than its three (MAXNS) are other readers'.
    """
    for line in data.split(b"\n"):
        keyword, *values = line.split()[:2] or [b""]
        if keyword == b"nameserver" and values and line.startswith(keyword):
            try:
                yield parse_address(values[0].decode("ascii", "replace"))
            except ParseError:
                continue
