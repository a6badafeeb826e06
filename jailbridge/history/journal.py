"""A record of systemd's journal, as `journalctl -o json` writes it: one object a line. Pure.

Fields whose names begin with `_` are journald's own word, all others the program's (systemd.journal-fields(7)).
PortSentry is believed as root only: without it cannot see a scan, and journald has the user's number (`_UID`) from the
kernel. What another user says in its name is refused. The kernel is believed where the record came from the kernel's
log (`_TRANSPORT`), which root alone can write to.
"""

import json
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any

from jailbridge.errors import ParseError
from jailbridge.history.syslog import KERNEL, PORTSENTRY, Said
from jailbridge.model.network import shown

MAX_BYTES = 65536
"""Of a line: far more than a record with a message that can be ours has, its bytes written as numbers included."""
# By program: the field that journald itself writes, and what it must say.
_PROOF = {PORTSENTRY: ("_UID", "0"), KERNEL: ("_TRANSPORT", "kernel")}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of 64 bits; int() of more digits takes time that grows with their square.
_MAX_DIGITS = 20


def said(line: bytes, now: datetime, programs: Collection[str]) -> Said | None:  # noqa: ARG001 - as in syslog
    """Return what one of the programs (PORTSENTRY, KERNEL) said in this record (without newline), None for others.

    Raises ParseError for what is no record, or not whole, and for a program that is not what it calls itself.
    """
    record = _record(line)
    program = record.get("SYSLOG_IDENTIFIER")
    if not isinstance(program, str) or program not in programs:
        return None
    field, proof = _PROOF[program]
    if record.get(field) != proof:
        raise ParseError(f"says it is {program}, but {field} is {shown(str(record.get(field)))} and not {proof}")
    return Said(program, _message(record.get("MESSAGE")), _time(record.get("__REALTIME_TIMESTAMP")))


def _record(line: bytes) -> dict[str, Any]:
    if len(line) > MAX_BYTES:
        raise ParseError(f"a record of the journal longer than {MAX_BYTES} bytes")
    try:
        record = json.loads(
            line.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_number,
        )
    # A list in a list a thousand times over is a RecursionError.
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ParseError("not a record of the journal (journalctl -o json)")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    # journalctl makes a list of a field that a record has twice.
    if len(found) < len(pairs):
        raise ParseError("a record of the journal with a field twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError("too large")
    return int(digits)


def _number(text: str) -> Any:
    raise ValueError(f"no number of a journal: {text}")


def _message(value: Any) -> bytes:
    match value:
        case str():
            return value.encode("utf-8", "surrogatepass")
        # What is not UTF-8 is written as its bytes.
        case list() if all(type(byte) is int and 0 <= byte <= 255 for byte in value):
            return bytes(value)
        case None:
            raise ParseError("a record of the journal without its message: journalctl leaves out long ones, but for -a")
    raise ParseError("a record of the journal whose message is not one text")


def _time(value: Any) -> datetime:
    if not isinstance(value, str) or not (value.isascii() and value.isdigit()) or len(value) > _MAX_DIGITS:
        raise ParseError("a record of the journal without its time")
    try:
        return _EPOCH + timedelta(microseconds=int(value))
    except OverflowError:
        raise ParseError("not a time") from None
