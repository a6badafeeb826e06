"""Where a command's answer comes from: the running daemon or, where none listens, the ledger and the stores."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jailbridge.config import Settings
from jailbridge.daemon.answers import Answer, is_agreement, plan_answer
from jailbridge.daemon.control import call
from jailbridge.daemon.operations import Operations, look_for_garbage_seldom
from jailbridge.errors import FatalError, GiveUp, ParseError
from jailbridge.ledger import Ledger
from jailbridge.ledger.copied import copied
from jailbridge.model.network import network_text, parse_address
from jailbridge.policy.allow import parse_list

_WRITING = {"ban", "unban", "reconcile", "allow_add", "allow_remove", "pause", "resume"}
# These may be the first thing that is ever done here.
_FIRST = {"ban", "allow_add", "allow_list", "explain"}


def ask(settings: Settings, command: str, **arguments: Any) -> Answer:
    """Return the answer to a command. Raises JailBridgeError."""
    try:
        return call(settings.control.socket, command, arguments)
    except ConnectionError:
        pass
    _be_quiet()
    look_for_garbage_seldom()
    with _explained(settings), Ledger(settings.ledger.path, create=command in _FIRST) as ledger:
        if command in _WRITING:
            ledger.hold()
        answer: Answer = getattr(Operations(settings, ledger), command)(**arguments)
        return answer


def restore(settings: Settings) -> dict[str, Any] | None:
    """Restore and return the plan of what is left over; None where there is no ledger, so nothing to restore.

    A daemon that runs does so itself. Raises FatalError where the ledger cannot be used; what can be read of it is
    restored all the same.
    """
    with contextlib.suppress(ConnectionError):
        call(settings.control.socket, "reconcile", {})
        return dict(call(settings.control.socket, "status", {}))
    with contextlib.suppress(PermissionError):
        if not settings.ledger.path.exists():
            return None
    look_for_garbage_seldom()
    try:
        # What it says of a damaged ledger is to be heard.
        with _explained(settings), Ledger.held(settings.ledger.path, create=False) as ledger:
            _be_quiet()
            return _restored(settings, ledger)
    except FatalError as error:
        if os.geteuid() != 0:
            raise
        raise FatalError(f"{error}{_restored_from_a_copy(settings)}") from None


def _restored(settings: Settings, ledger: Ledger) -> dict[str, Any]:
    operations = Operations(settings, ledger)
    plan = operations.restore()
    return {
        "bans": len(ledger.bans()),
        "enforce": settings.policy.enforce,
        "paused": ledger.paused(operations.clock()),
        **plan_answer(plan),
    }


def _restored_from_a_copy(settings: Settings) -> str:
    """Restore from a copy of the ledger, where it is only the writing that fails; tell what was done."""
    try:
        with copied(settings.ledger.path) as ledger:
            answer = _restored(settings, ledger)
    except FatalError as error:
        return f"; nothing was restored from a copy of it: {error}"
    where = "" if is_agreement(answer) else ", but not everywhere"
    return f"; {answer['bans']} bans were restored from a copy of it all the same{where}"


@contextlib.contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Tell whom the ledger is closed to who would have answered instead."""
    try:
        yield
    except FatalError as error:
        if os.geteuid() == 0:
            raise
        raise FatalError(f"{error}; no daemon answers at {settings.control.socket}: start it, or run as root") from None


def _be_quiet() -> None:
    """Leave it to the answer to say what is out of reach."""
    logging.getLogger("jailbridge").setLevel(logging.CRITICAL)


def addresses(given: Sequence[str], source: Path | None) -> list[str]:
    """Return the addresses of the command line and of a file. Raises ParseError (the line named) and GiveUp."""
    asked = list(given)
    if source is not None:
        try:
            text = source.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise GiveUp(f"{source} cannot be read: {error.strerror}") from None
        asked += [network_text(network) for network, _ in parse_list(text, str(source))]
    if not asked:
        raise GiveUp("name an address, or a file with --from")
    return asked


def own_session() -> str | None:
    """Return the address of the caller's own SSH session, None where there is none (ssh(1), SSH_CONNECTION)."""
    peer = os.environ.get("SSH_CONNECTION", "").partition(" ")[0]
    try:
        return str(parse_address(peer)) if peer else None
    except ParseError:
        return None
