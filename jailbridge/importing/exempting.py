"""Who is exempt while bans are imported: all that exempts from new bans. One list that cannot be read stops it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from jailbridge.config.settings import PolicySettings
from jailbridge.daemon.exemptions import PresentExemptions, unreadable
from jailbridge.errors import ParseError, RetryLater
from jailbridge.host import resolvers, sessions, surroundings
from jailbridge.host.files import content
from jailbridge.importing.notes import Notes
from jailbridge.model.network import Address, Network, host_network, parse_address
from jailbridge.policy.allow import allow_lists, parse_list
from jailbridge.policy.exempt import Exemptions


def exemptions(
    rules: PolicySettings, allowed: Sequence[tuple[Network, str]], session: str | None
) -> tuple[Exemptions | None, list[str]]:
    """Return who is exempt now, None while a list cannot be read, and all that cannot.

    `allowed` is what operators allowed, `session` the address of the caller's own session.
    """
    own = [(parse_address(session), "your own session")] if session is not None else []
    present = PresentExemptions(
        rules, added=lambda: [*allowed, *((host_network(address), why) for address, why in own)]
    )
    found = present()
    problems = unreadable(rules)
    if found is None and not problems:
        problems = [present.problem or "exemptions are not known"]
    return (None if problems else found), problems


def readable(
    rules: PolicySettings, allowed: Sequence[tuple[Network, str]], session: str | None, notes: Notes
) -> Exemptions:
    """Return who is exempt by what can be read, line by line. Raises RetryLater where own addresses are not known."""
    lists = list(allow_lists(rules))
    networks = [entry for one in lists for entry in one.networks]
    for path in rules.allow_files:
        if any(one.where == str(path) and one.problem is not None for one in lists):
            networks += _lines(str(path), _content(path), notes)
    present: list[tuple[Address, str]] = [(parse_address(session), "your own session")] if session is not None else []
    for read in (resolvers.resolvers, sessions.in_utmp, sessions.in_logind):
        try:
            present += read()
        except RetryLater:
            continue
    return Exemptions.of([*networks, *allowed], surroundings(), present)


def _content(path: Path) -> str:
    try:
        return (content(path) or b"").decode("utf-8-sig", "replace")
    except RetryLater:
        return ""


def _lines(where: str, text: str, notes: Notes) -> Iterator[tuple[Network, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        try:
            yield from ((network, f"{where}:{number}") for network, _ in parse_list(line, where))
        except ParseError as error:
            notes.misunderstood(where, number, str(error).removeprefix(f"{where}:1: "))
