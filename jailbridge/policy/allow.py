"""Reads the allow lists: `policy.allow`, the allow files and hosts.allow.

An allow file has PortSentry's `portsentry.ignore` syntax, `ADDRESS` or `ADDRESS/bits` a line, `#` comments.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jailbridge.config.settings import DEFAULT_ALLOW_FILES, DEFAULT_HOSTS_ALLOW, PolicySettings
from jailbridge.errors import ParseError, RetryLater
from jailbridge.host.files import MAX_BYTES, content
from jailbridge.model.network import Network, parse_network
from jailbridge.policy.hosts_allow import parse_hosts_allow

__all__ = ["MAX_BYTES", "AllowList", "allow_lists", "allowed", "parse_list"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """What one place allows: each network with where exactly it stands, and each line there that is not obeyed."""

    where: str
    networks: tuple[tuple[Network, str], ...] = ()
    not_obeyed: tuple[str, ...] = ()
    problem: str | None = None
    """Why it cannot be read or understood, and what to do; None where it can."""


def allow_lists(settings: PolicySettings) -> Iterator[AllowList]:
    """Yield what each place allows. The default files may be missing; one that the configuration names may not."""
    yield AllowList(where="policy.allow", networks=tuple((network, "policy.allow") for network in settings.allow))
    for path in settings.allow_files:
        yield _list(path, "allow file ", _allow_file, may_be_missing=path in DEFAULT_ALLOW_FILES)
    path = settings.hosts_allow
    yield _list(path, "", _hosts_allow, may_be_missing=path == DEFAULT_HOSTS_ALLOW)


def allowed(settings: PolicySettings) -> list[tuple[Network, str]]:
    """Return every allowed network with the place that says so.

    Raises RetryLater for a list that cannot be read or understood: then nobody new may be banned.
    """
    lists = list(allow_lists(settings))
    if problem := next((one.problem for one in lists if one.problem is not None), None):
        raise RetryLater(problem)
    return [entry for one in lists for entry in one.networks]


def parse_list(text: str, where: str) -> Iterator[tuple[Network, str]]:
    """Yield (network, WHERE:LINE) for a list, one network a line, `#` comments. Raises ParseError, the line named."""
    # Not splitlines(), which also ends a line, or a comment, where no editor shows an end.
    for number, line in enumerate(text.split("\n"), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            yield parse_network(entry), f"{where}:{number}"
        except ParseError as error:
            raise ParseError(f"{where}:{number}: {error}") from None


def _list(path: Path, kind: str, parse: Callable[[str, str], AllowList], *, may_be_missing: bool) -> AllowList:
    where = str(path)
    try:
        data = content(path)
        # A link whose target is away (not mounted yet) is a list that cannot be read.
        if data is None and not (may_be_missing and not path.is_symlink()):
            problem = f"{path} is not there; nobody new is banned until it is"
        else:
            return parse((data or b"").decode("utf-8-sig", errors="replace"), where)
    except RetryLater as error:
        problem = f"{error}; nobody new is banned until it can be read"
    except ParseError as error:
        problem = f"{error}; nobody new is banned until it is mended"
    return AllowList(where=where, problem=kind + problem)


def _allow_file(text: str, where: str) -> AllowList:
    return AllowList(where=where, networks=tuple(parse_list(text, where)))


def _hosts_allow(text: str, where: str) -> AllowList:
    read = parse_hosts_allow(text)
    return AllowList(
        where=where,
        networks=tuple((network, f"{where}:{number}") for network, number in read.networks),
        not_obeyed=tuple(f"{where}:{number} is not obeyed: {reason}" for number, reason in read.not_obeyed),
    )
