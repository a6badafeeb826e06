"""The two executors of steps: iptables-restore where iptables speaks to nftables, python-iptables where it does not.

Both make all steps of a family or none of them, and tell a refusal by the same errors.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from jailbridge import process
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables_rules import Family, Step, asked, restore_text

PACKAGE = "iptables"
# A thousand rules take 0.5 s; a hung program must not hang us.
TIMEOUT_S = 60.0
# Somebody else may hold the lock for a long restore.
LOCK_TIMEOUT_S = 30.0
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")
HELPER = "jailbridge.stores.iptc_helper"


class TargetMissing(FatalError):
    """The kernel, or iptables, does not know a rule's target or match."""


class Writer(Protocol):
    """Makes steps."""

    def alone(self) -> AbstractContextManager[None]:
        """Keep others that write by the same rules out, as far as this kind of host has such rules."""
        ...

    def write(self, family: Family, steps: Sequence[Step]) -> None:
        """Make all the steps or none.

        Raises FatalError (TargetMissing, too), Drifted (a rule to delete is gone) and RetryLater.
        """
        ...


class RestoreWriter:
    """iptables-restore of the nftables kind: one transaction of the kernel's, which nobody can come between."""

    def alone(self) -> AbstractContextManager[None]:
        """Do nothing: nftables needs no lock, and nobody would heed one."""
        return nullcontext()

    def write(self, family: Family, steps: Sequence[Step]) -> None:
        """Make the steps; see Writer."""
        argv = [program(family, "nft", "restore"), "--noflush", "-w"]
        result = process.run(argv, given=restore_text(steps), timeout_s=TIMEOUT_S)
        if result.code != 0:
            raise failure(family, result)


class HelperWriter:
    """The helper process with python-iptables, under the lock of `iptables -w`.

    It is started when it is first needed, in the network namespace of the thread that asks; and anew after it died or
    that thread has moved.
    """

    def __init__(self) -> None:
        self._helper: process.Conversation | None = None
        self._namespace: tuple[int, int] | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock; see Writer. Raises RetryLater."""
        self._locked()
        try:
            yield
        finally:
            # Whoever does not answer is ended, and its lock with it.
            with suppress(RetryLater):
                self._ask({"ask": "unlock"})

    def write(self, family: Family, steps: Sequence[Step]) -> None:
        """Make the steps, with the lock held; see Writer."""
        answer = self._ask({"ask": "write", "family": family, "steps": asked(steps)}, timeout_s=TIMEOUT_S)
        if answer:
            raise _refusal(family, answer)

    @property
    def pid(self) -> int | None:
        """The helper's process id, None where none runs."""
        return self._helper.pid if self._helper is not None else None

    def _locked(self) -> None:
        here = OWN_NAMESPACE.stat()
        if self._helper is not None and self._namespace != (here.st_dev, here.st_ino):
            self._end()
        is_new = self._helper is None
        self._namespace = (here.st_dev, here.st_ino)
        try:
            answer = self._ask({"ask": "lock"}, timeout_s=LOCK_TIMEOUT_S)
        except RetryLater:
            # It may have died long ago: that is no reason to wait.
            if is_new:
                raise
            answer = self._ask({"ask": "lock"}, timeout_s=LOCK_TIMEOUT_S)
        if answer:
            self._end()
            raise FatalError(f"{answer.get('why')}, or use another stores.firewall.backend")

    def _ask(self, question: dict[str, object], *, timeout_s: float = 10.0) -> dict[str, str]:
        if self._helper is None:
            self._helper = process.Conversation([sys.executable, "-I", "-m", HELPER])
        try:
            answer = json.loads(self._helper.ask(json.dumps(question), timeout_s=timeout_s))
        except (RetryLater, ValueError):
            self._end()
            or_lock = ", or another program holds the xtables lock" if question["ask"] == "lock" else ""
            raise RetryLater(f"the helper process with python-iptables does not answer{or_lock}") from None
        return answer if isinstance(answer, dict) else {}

    def _end(self) -> None:
        if self._helper is not None:
            self._helper.end()
        self._helper = None


def program(family: Family, kind: str, what: str) -> str:
    """Return the path of `iptables-KIND-WHAT`, or `iptables-WHAT` where it has no such name. Raises FatalError."""
    with suppress(FatalError):
        return process.find(f"{family}-{kind}-{what}", PACKAGE)
    return process.find(f"{family}-{what}", PACKAGE)


def failure(family: Family, result: process.Result) -> JailBridgeError:
    """Return the error that a program's words mean (iptables 1.8, both kinds)."""
    # Beside legacy tables the other kind warns before it says what is wrong.
    lines = [line for line in result.err.splitlines() if not line.startswith(("#", "Warning:"))]
    said = "\n".join(lines)
    first = process.Result(code=result.code, out="", err=said).first_error
    if "Permission denied" in said or "Operation not permitted" in said:
        return FatalError(f"{family}: not permitted: run as root, or with CAP_NET_ADMIN")
    if "does a matching rule exist" in said or "RULE_DELETE failed" in said:
        return Drifted(f"{family}: a rule of ours is gone")
    if any(words in said for words in ("unknown option", "Couldn't load target", "' does not exist")):
        return TargetMissing(f"{family} does not know a target or a match of our rules: {first}")
    if "RULE_APPEND failed (No such file" in said:
        return TargetMissing(f"{family}: the kernel does not know a target or a match of our rules")
    return RetryLater(f"{family} failed: {first}")


def _refusal(family: Family, answer: dict[str, str]) -> JailBridgeError:
    why = answer.get("why", "")
    match answer.get("refused"):
        case "target":
            return TargetMissing(f"{family}: {why}")
        case "gone":
            return Drifted(f"{family}: a rule of ours is gone")
        case "permission":
            return FatalError(f"{family}: not permitted: run as root, or with CAP_NET_ADMIN")
        case _:
            return RetryLater(f"{family}: python-iptables: {why}")
