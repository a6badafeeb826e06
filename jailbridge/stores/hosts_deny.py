"""hosts.deny as a store: reads and rewrites our block of it, or the list that our block names.

The texts are the business of deny_file and deny_list, the writing beside others that of replaced_file. With a list,
hosts.deny itself is written only when its block has to change.
"""

import logging
import zlib
from collections.abc import Iterable, Sequence
from datetime import datetime

from jailbridge.config.settings import HostsDenyForm, HostsDenySettings
from jailbridge.host.wrappers import Wrappers
from jailbridge.model.network import Network
from jailbridge.model.plan import Action, Capabilities, Change, Observation, ObservedBan, Rejection
from jailbridge.model.token import Token
from jailbridge.stores.deny_file import NOTHING, DenyFile, put_together, take_apart
from jailbridge.stores.deny_list import DenyList, agreed, list_text, read_list
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.replaced_file import ReplacedFile

log = logging.getLogger("jailbridge.stores.hosts_deny")

REMEDY = "set stores.hosts_deny.path"


class HostsDenyStore:
    """Bans as lines of hosts.deny, or of the list that one line there names."""

    name = "hosts_deny"

    def __init__(self, settings: HostsDenySettings, wrappers: Wrappers | None = None) -> None:
        """`wrappers` tells whether TCP wrappers are in use; by default it looks at this host."""
        self._deny = ReplacedFile(settings.path, REMEDY)
        self._list = ReplacedFile(settings.list_path, REMEDY)
        self._has_list = settings.form is HostsDenyForm.FILE
        self._rule = settings.rule
        self._wrappers = wrappers or Wrappers()
        # What the lines said when they were read last: few of them are new when they are read again.
        self._said = self._list_said = NOTHING
        # In another form, or under another rule, all is written anew. A token takes nine digits of it.
        form = self._rule.replace("{address}", str(self._list.path)) if self._has_list else self._rule
        self.capabilities = Capabilities(
            overlaps=True,
            ends=False,
            volatile=False,
            early=False,
            layout=zlib.crc32(form.encode()) % 10**9,
            limit=settings.max,
            pause_s=1.0,
        )

    def observe(self, now: datetime) -> Observation:  # noqa: ARG002 - the files keep no times
        """Read our block and the list. A missing file holds nothing. Raises RetryLater, FatalError (broken marks)."""
        parts = self._taken_apart(self._deny.read())
        entries = self._in_force(parts, self._list.read() if self._has_list else None)
        return Observation(
            token=self._token(parts, entries),
            enforcing=self._wrappers.in_use(),
            bans=tuple(map(ObservedBan, _held(parts, entries))),
            foreign=parts.foreign + len(entries.unknown),
        )

    def touched(self) -> bool:
        """Tell whether another may have written hosts.deny or the list since; never raises."""
        return self._deny.touched() or (self._has_list and self._list.touched())

    def apply(
        self,
        changes: Sequence[Change],
        token: Token,
        now: datetime,  # noqa: ARG002
        *,
        expected: str | None = None,
    ) -> Sequence[Rejection]:
        """Make the changes in one replacement of the file that holds the bans.

        Raises RetryLater, Drifted, FatalError (broken marks).
        """
        if self._has_list:
            self._apply_to_list(changes, token, expected)
        else:
            self._apply_to_lines(changes, token, expected)
        return ()

    def _apply_to_lines(self, changes: Sequence[Change], token: Token, expected: str | None) -> None:
        left: list[DenyList] = []

        def edit(content: bytes) -> bytes:
            parts = self._taken_apart(content)
            self._check(parts.token, expected)
            entries = self._in_force(parts)
            left[:] = [entries] if parts.refers else []
            return put_together(parts, _changed(_held(parts, entries), changes), self._rule, str(token))

        self._deny.rewrite(edit)
        for entries in left:
            self._leave_list(entries)

    def _leave_list(self, entries: DenyList) -> None:
        """Take away what the other form has left and nothing reads any more, but not what is not ours."""
        if entries.unknown:
            path = self._list.path
            log.warning("file=%s has patterns that nothing reads any more: put them into %s", path, self._deny.path)
            self._list.rewrite(lambda content: b"".join(read_list(content).unknown))
        else:
            self._list.remove()

    def _apply_to_list(self, changes: Sequence[Change], token: Token, expected: str | None) -> None:
        """Write the list first and then, where it has to change, the block: no ban is ever in neither."""
        before = self._taken_apart(self._deny.content())

        def edit_list(content: bytes) -> bytes:
            entries = self._in_force(before, content)
            self._check(self._token(before, entries), expected)
            return list_text(self._list_read(content), _changed(_held(before, entries), changes), str(token))

        def edit_block(content: bytes) -> bytes:
            parts = self._taken_apart(content)
            # What was added there meanwhile stays until the next writing.
            bans = [network for network in parts.bans if network not in moved]
            if parts.refers and len(bans) == len(parts.bans) and agreed(parts.token, str(token)) is not None:
                return content
            return put_together(parts, bans, self._rule, str(token), str(self._list.path))

        self._list.rewrite(edit_list)
        moved = set(before.bans)
        self._deny.rewrite(edit_block)

    def _taken_apart(self, content: bytes) -> DenyFile:
        parts = take_apart(content, str(self._deny.path), self._rule, str(self._list.path), self._said)
        self._said = parts.said
        return parts

    def _in_force(self, parts: DenyFile, listed: bytes | None = None) -> DenyList:
        """Return what the list says as far as anything reads it; `listed` is its content, if known already."""
        if not parts.refers:
            return DenyList()
        return self._list_read(self._list.content() if listed is None else listed)

    def _list_read(self, content: bytes) -> DenyList:
        entries = read_list(content, self._list_said)
        self._list_said = entries.said
        return entries

    def _token(self, parts: DenyFile, entries: DenyList) -> str | None:
        return agreed(parts.token, entries.token) if self._has_list else parts.token

    def _check(self, found: str | None, expected: str | None) -> None:
        if expected is not None and found != expected:
            raise Drifted(f"{self._deny.path} is not as it was left")


def _held(parts: DenyFile, entries: DenyList) -> Iterable[Network]:
    return dict.fromkeys((*parts.said.values(), *entries.bans))


def _changed(bans: Iterable[Network], changes: Iterable[Change]) -> Iterable[Network]:
    changed = dict.fromkeys(bans)
    for change in changes:
        if change.network is None:
            continue
        if change.action is Action.REMOVE:
            changed.pop(change.network, None)
        else:
            changed[change.network] = None
    return changed
