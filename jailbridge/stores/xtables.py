"""Reads and writes our chain and its hooks, on either kind of host. What stands in the chain is a store's business.

`iptables -V` tells the kind. `(nf_tables)`: iptables-restore writes, one transaction a family. `(legacy)`: a helper
process with python-iptables does, under the lock that `iptables -w` takes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from jailbridge import process
from jailbridge.config.settings import FirewallSettings
from jailbridge.errors import FatalError, JailBridgeError, RetryLater
from jailbridge.stores import xtables_rules
from jailbridge.stores.xtables_hooks import Unhooked, hook_steps, unhooked
from jailbridge.stores.xtables_kernel import legacy_mark, ruleset_mark
from jailbridge.stores.xtables_rules import CHAIN, PROBE, Do, Family, Rule, Step, Table
from jailbridge.stores.xtables_writers import (
    PACKAGE,
    TIMEOUT_S,
    HelperWriter,
    RestoreWriter,
    TargetMissing,
    Writer,
    failure,
    program,
)

Kind: TypeAlias = Literal["nft", "legacy"]
"""What iptables speaks to: nftables, or the tables of before, which python-iptables knows."""


class Held(NamedTuple):
    """What one family's table holds of ours.

    rules     our chain, None in it for a rule of a form that we never write; None for no chain
    unhooked  where our chain is not reached as configured; empty: everywhere
    """

    rules: tuple[Rule | None, ...] | None
    unhooked: tuple[Unhooked, ...]


Content: TypeAlias = Callable[[Mapping[Family, Held]], Mapping[Family, Sequence[Rule]]]
"""Returns what our chain shall hold in each family, in order; given is what it holds. It may raise instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Left:
    """What was there when we looked last, and the kernel's mark of just before."""

    mark: bytes
    held: Mapping[Family, Held]


class Xtables:
    """Our chain in both families; others' rules are never changed. Not thread-safe.

    `kind` None: ask `iptables -V` once, at first use.
    """

    def __init__(self, settings: FirewallSettings, *, kind: Kind | None = None) -> None:
        self._target = settings.target
        self._hook = settings.hook
        self._chains = [chain.value for chain in settings.chains]
        self._kind = kind
        self._writer: Writer | None = None
        self._is_tried = False
        self._left: _Left | None = None

    @property
    def verdicts(self) -> Mapping[Family, tuple[Rule, ...]]:
        """For each family the rules, in order, that do what `target` says; a store adds whose packets (`_replace`)."""
        return {family: xtables_rules.verdicts(self._target, family) for family in Family}

    def read(self) -> Mapping[Family, Held]:
        """Return what is held. Raises FatalError (no iptables here, not permitted) and RetryLater."""
        # The mark comes first: who changes something in between is seen next time.
        mark = self._mark()
        held = self._held(self._tables())
        self._left = _Left(mark=mark, held=held)
        return held

    def write(self, content: Content, *, hooking: bool) -> Sequence[Unhooked]:
        """Make our chain hold what `content` returns, each family whole or not at all, IPv4 first.

        `hooking`: put our jumps in place too; returned is where that cannot be. Raises FatalError (also where the
        kernel or iptables lacks the target), RetryLater, Drifted (a rule that goes was gone when it was written) and
        what `content` raises; then that family, and those after it, are as they were.
        """
        writer = self._writing()
        with writer.alone():
            self._try_target(writer)
            tables = self._tables()
            held = self._held(tables)
            wanted = {family: tuple(rules) for family, rules in content(held).items()}
            for family, table in tables.items():
                steps = xtables_rules.content_steps(held[family].rules, wanted[family])
                if hooking:
                    steps += hook_steps(table, self._chains, self._hook)
                if steps:
                    writer.write(family, steps)
            left = self.read()
        for family, rules in wanted.items():
            if left[family].rules != rules:
                self._left = None
                raise RetryLater(
                    f"{family}: the chain {CHAIN} does not hold what was just written: who else writes it?"
                )
        return [place for one in left.values() for place in one.unhooked] if hooking else []

    def touched(self) -> bool:
        """Tell whether another may have changed our part since the last read or write; never raises.

        Costs a system call or two, and a reading only where something in the firewall did change.
        """
        if self._left is None:
            return True
        try:
            mark = self._mark()
            if mark == self._left.mark:
                return False
            held = self._held(self._tables())
        except (OSError, JailBridgeError):
            return True
        if held != self._left.held:
            return True
        self._left = _Left(mark=mark, held=held)
        return False

    def _mark(self) -> bytes:
        try:
            return legacy_mark() if self._known_kind() == "legacy" else ruleset_mark()
        except PermissionError:
            raise FatalError("iptables: not permitted: run as root, or with CAP_NET_ADMIN") from None
        except OSError as error:
            raise RetryLater(f"iptables: the kernel does not answer: {error.strerror or error}") from None

    def _known_kind(self) -> Kind:
        if self._kind is None:
            result = process.run([process.find("iptables", PACKAGE), "-V"])
            if result.code != 0:
                raise RetryLater(f"iptables failed: {result.first_error}")
            # Before 1.8 there was one kind, and no word for it.
            self._kind = "nft" if "nf_tables" in result.out else "legacy"
        return self._kind

    def _writing(self) -> Writer:
        if self._writer is None:
            self._writer = HelperWriter() if self._known_kind() == "legacy" else RestoreWriter()
        return self._writer

    def _tables(self) -> dict[Family, Table]:
        return {family: self._table(family) for family in Family}

    def _table(self, family: Family) -> Table:
        argv = [program(family, self._known_kind(), "save"), "-t", "filter"]
        result = process.run(argv, timeout_s=TIMEOUT_S)
        if "\n# Table `filter' is incompatible" in f"\n{result.out}":
            raise FatalError(
                f"{family}: its table filter has rules that only nft can read: take them out, or set "
                'stores.firewall.backend = "nftables"'
            )
        if result.code != 0:
            raise failure(family, result)
        return xtables_rules.parse_table(result.out)

    def _held(self, tables: Mapping[Family, Table]) -> Mapping[Family, Held]:
        places = unhooked(tables, self._chains, self._hook)
        held = {}
        for family, table in tables.items():
            rules = table.get(CHAIN)
            held[family] = Held(
                rules=tuple(map(xtables_rules.parse_rule, rules)) if rules is not None else None,
                unhooked=tuple(place for place in places if place.family is family),
            )
        return held

    def _try_target(self, writer: Writer) -> None:
        """Let the kernel take the target once in a chain that nobody jumps to: before packets depend on it."""
        if self._is_tried:
            return
        try:
            for family, rules in self.verdicts.items():
                trying = [Step(do=Do.APPEND, chain=PROBE, rule=rule) for rule in rules if rule.target != "DROP"]
                if trying:
                    writer.write(family, [Step(do=Do.MAKE, chain=PROBE), *trying])
                    writer.write(family, [Step(do=Do.FLUSH, chain=PROBE), Step(do=Do.REMOVE, chain=PROBE)])
        except TargetMissing as error:
            name = self._target.partition(":")[0]
            remedy = "apt install xtables-addons-common xtables-addons-dkms, or " if name != "REJECT" else ""
            raise FatalError(
                f'the target {name} is not on this machine ({error}): {remedy}set stores.firewall.target = "DROP"'
            ) from None
        self._is_tried = True
