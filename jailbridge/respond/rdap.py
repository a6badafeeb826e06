"""One question by RDAP: whose is this network (RFC 7480, 9082, 9083)? Remembers nothing.

An answer is an outsider's: it may be endless, lead anywhere and say anything.
"""

import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import jailbridge
from jailbridge import process
from jailbridge.errors import ParseError, RetryLater
from jailbridge.model.network import Address, Network, network_text, parse_address, shown
from jailbridge.respond.sending import patience
from jailbridge.respond.templates import printable

MAX_ANSWER = 256 << 10
MAX_REDIRECTS = 3
# Of one text.
MAX_FIELD = 200
# Deeper than any registry's: a registrant's contact of a contact.
_DEPTH = 4
_REDIRECTS = {301, 302, 303, 307, 308}
_LATER = {408, 429}
_URL = re.compile(r"https?://[!-~]{1,2000}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Whose a network is, "" for what is not told; an outsider's texts, printable and cut to size."""

    name: str
    country: str
    network: str
    abuse: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An answer: whose it is, and the first and last address that this is said of."""

    holder: Holder
    first: Address
    last: Address

    def holds(self, network: Network) -> bool:
        """Tell whether it is said of all of this network."""
        same = self.first.version == self.last.version == network.version
        return same and int(self.first) <= network.start and network.last <= int(self.last)


def ask(server: str, network: Network, timeout_s: float) -> Found:
    """Ask, and follow the answer to the registry that knows; `timeout_s` is for all of it.

    Raises RetryLater where nobody answers, or not now, and ParseError for an answer that is none.
    """
    home = urlsplit(f"{server.rstrip('/')}/ip/{network_text(network)}")
    until = time.monotonic() + timeout_s

    def left_s() -> float:
        if (left := until - time.monotonic()) <= 0:
            raise RetryLater(f"{home.hostname}: no answer in time")
        return left

    url = home
    for _ in range(MAX_REDIRECTS + 1):
        answer = _get(url, left_s, is_home=_origin(url) == _origin(home))
        if not isinstance(answer, SplitResult):
            return read(answer, network)
        url = answer
        if url.scheme != "https" and _origin(url) != _origin(home):
            raise ParseError(f"{url.hostname}: is led to, and not by https")
    raise ParseError(f"{url.hostname}: leads on and on")


def read(data: bytes, network: Network) -> Found:
    """Return what an answer to a question for this network says. Raises ParseError."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise ParseError("the answer is no JSON") from None
    if not isinstance(told, dict):
        raise ParseError("the answer is no object")
    first, last = (parse_address(_text(told.get(key))) for key in ("startAddress", "endAddress"))
    entities = list(_entities(told, _DEPTH))
    # Some registries call those that may change the entry registrants, too; organisations are the holders.
    holders = [card for roles, card in entities if "registrant" in roles]
    names = [*(_value(card, "fn") for card in holders if _value(card, "kind") == "org"), _text(told.get("name"))]
    mails = (_value(card, "email") for roles, card in entities if "abuse" in roles)
    country = _text(told.get("country")).upper()
    found = Found(
        holder=Holder(
            name=_first([*names, *(_value(card, "fn") for card in holders)]),
            country=country if re.fullmatch("[A-Z]{2}", country) else "",
            network=_range(first, last),
            abuse=_first(mails),
        ),
        first=first,
        last=last,
    )
    if not found.holds(network):
        raise ParseError(f"the answer is of other addresses: {found.holder.network}")
    return found


def _range(first: Address, last: Address) -> str:
    """Return a range's text, as a prefix where it is one."""
    size = int(last) - int(first) + 1
    if size > 0 and size & (size - 1) == 0 and int(first) % size == 0:
        return f"{first}/{first.max_prefixlen - size.bit_length() + 1}"
    return f"{first} - {last}"


def _entities(told: dict[str, Any], depth: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yield roles and jCard (RFC 7095) of all that are named, the outer ones first."""
    inner = [entity for entity in _list(told.get("entities")) if isinstance(entity, dict)]
    for entity in inner:
        match entity.get("vcardArray"):
            case [_, list(card)]:
                yield _list(entity.get("roles")), card
    for entity in inner if depth else ():
        yield from _entities(entity, depth - 1)


def _value(card: list[Any], name: str) -> str:
    for field in card:
        match field:
            case [str(key), _, _, str(value), *_] if key == name:
                return _text(value)
    return ""


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


def _text(value: object) -> str:
    return printable(value, MAX_FIELD) if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _get(url: SplitResult, left_s: Callable[[], float], *, is_home: bool) -> bytes | SplitResult:
    """Return an answer's body, or where it leads."""
    host = url.hostname or ""
    held: socket.socket | None = None
    context = ssl.create_default_context() if url.scheme == "https" else None
    connection = (
        http.client.HTTPSConnection(host, url.port, context=context)
        if context is not None
        else http.client.HTTPConnection(host, url.port)
    )
    headers = {
        # RFC 7480, 4.2
        "Accept": "application/rdap+json",
        "User-Agent": f"jailbridge/{jailbridge.__version__}",
        "Connection": "close",
    }
    try:
        with patience(left_s(), lambda: held):
            # Connected here: what was looked at is what is asked, whatever the name's owner says the next moment.
            held = connection.sock = _connected(_addresses(host, left_s), connection.port, left_s, is_home=is_home)
            if context is not None:
                held = context.wrap_socket(held, server_hostname=host, do_handshake_on_connect=False)
                connection.sock = held
                left_s()
                held.do_handshake()
            connection.request("GET", (url.path or "/") + (f"?{url.query}" if url.query else ""), headers=headers)
            with connection.getresponse() as answer:
                if answer.status in _REDIRECTS:
                    return _place(url, answer.headers.get("Location", ""))
                if answer.status != 200:
                    _refuse(host, answer.status)
                data = answer.read(MAX_ANSWER + 1)
    except (http.client.HTTPException, OSError, ValueError) as error:
        left_s()
        raise RetryLater(f"{host}: {_said(error)}") from None
    finally:
        connection.close()
        if held is not None:
            held.close()
    # Whoever was cut off, may have been so in the middle.
    left_s()
    if len(data) > MAX_ANSWER:
        raise ParseError(f"{host}: the answer is over {MAX_ANSWER >> 10} KiB")
    return data


def _refuse(host: str, status: int) -> None:
    if status >= 500 or status in _LATER:
        raise RetryLater(f"{host}: HTTP {status}")
    raise ParseError(f"{host}: HTTP {status}")


def _place(url: SplitResult, location: str) -> SplitResult:
    """Return where a redirect leads. Raises ParseError."""
    with suppress(ValueError):
        text = urljoin(url.geturl(), location)
        place = urlsplit(text)
        # The port is looked at only when it is asked for.
        if _URL.fullmatch(text) and place.hostname and place.username is None and place.port != 0:
            return place
    raise ParseError(f"{url.hostname}: leads to {shown(location)}")


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port


def _addresses(host: str, left_s: Callable[[], float]) -> list[Address]:
    with suppress(ParseError):
        return [parse_address(host)]
    if not _NAME.fullmatch(host):
        raise ParseError(f"{shown(host)} is no host's name")
    # The library's own look-up has no time limit.
    answer = process.run(["getent", "ahosts", host], timeout_s=left_s())
    addresses = dict.fromkeys(parse_address(line.split()[0]) for line in answer.out.splitlines() if line.strip())
    if not addresses:
        raise RetryLater(f"{host}: has no address")
    return list(addresses)


def _connected(addresses: list[Address], port: int, left_s: Callable[[], float], *, is_home: bool) -> socket.socket:
    """Connect to the first that can be. Where an answer leads must be out in the world, unlike what an operator names.

    Raises OSError, RetryLater, ParseError.
    """
    # Else whoever answers could have our own network's servers asked by us.
    open_ones = [address for address in addresses if is_home or is_public(address)]
    if not open_ones:
        raise ParseError(f"leads to {addresses[0]}, which is not a public address")
    failed: OSError = OSError("cannot be reached")
    for address in open_ones:
        try:
            return socket.create_connection((str(address), port), timeout=left_s())
        except OSError as error:
            failed = error
    raise failed


def is_public(address: Address) -> bool:
    """Tell whether an address is somebody's, out in the world."""
    return address.is_global and not address.is_multicast and not address.is_reserved


def _said(error: Exception) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate cannot be trusted: {error.verify_message}"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return shown(str(error) or type(error).__name__, MAX_FIELD)
