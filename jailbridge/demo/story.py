"""The demo's steps. Each statement is checked on the real programs themselves, not only by what we say of them."""

import json
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jailbridge.demo.lab import ATTACKER, HOST, HOSTS_DENY, INNOCENT, SECOND, Failed, Lab

STORES = ("hosts_deny", "firewall", "fail2ban")


class Story:
    """Tells one thing after another and stops at the first that does not hold."""

    def __init__(self, lab: Lab, out: Console) -> None:
        self._lab = lab
        self._out = out
        self.checked = 0

    def tell(self) -> None:
        """Tell all of it. Raises Failed."""
        self.start()
        self.scan()
        self.cut_off()
        self.power_cut()
        self.come_back()
        self.unban()

    def start(self) -> None:
        """A real fail2ban with our filter and jail, and the daemon."""
        self._head("A host with fail2ban and jailbridge")
        self._lab.start_fail2ban()
        jails = self._lab.fail2ban("status").out
        self._check("fail2ban runs with the jail rendered from jails/ and filters/", "portsentry" in jails)
        self._lab.start_daemon()
        self._check("jailbridge runs, and every store agrees with its ledger", self._agrees())
        self._check(f"{ATTACKER} and {INNOCENT} can both connect to the host", self._reach(ATTACKER, INNOCENT))

    def scan(self) -> None:
        """One nmap scan, one history line, one ban in three stores."""
        self._head(f"{ATTACKER} scans the host with nmap")
        scanned = self._lab.scan(ATTACKER, "1-100")
        self._check("nmap ran", scanned.code == 0, scanned.err)
        self._lab.wait("the ban is in every store", lambda: self._held(ATTACKER) == dict.fromkeys(STORES, True))
        lines = self._lab.history.read_text(encoding="ascii").splitlines()
        self._out.print(f"  history: {lines[0] if lines else '(empty)'}", style="cyan")
        self._check(
            "the scan left one line in PortSentry's form", len(lines) == 1 and f"/{ATTACKER} Port: " in lines[0]
        )
        self._show_bans(ATTACKER, INNOCENT)
        self._check("hosts.deny, nft and fail2ban-client each show the ban", all(self._held(ATTACKER).values()))
        self._check("the rest of hosts.deny is as it was", self._foreign_line_stands())

    def cut_off(self) -> None:
        """The attacker gets no answer; somebody else does."""
        self._head("Who can still connect?")
        self._check(f"{ATTACKER} is cut off: its connection times out", self._lab.connect(ATTACKER) == "timed out")
        self._check(f"{INNOCENT} still connects", self._reach(INNOCENT))

    def power_cut(self) -> None:
        """Everything dies; only files stay."""
        self._head("Power cut")
        self._lab.cut_power()
        self._lab.power_on()
        rules = self._lab.on_host("nft", "list", "ruleset").out
        self._check("after the boot no firewall rule is left", not rules.strip())
        self._check(f"{ATTACKER} can connect again", self._reach(ATTACKER))
        code = self._show_plan("jailbridge plan, after the power cut")
        self._check("the plan names the drift", code == 2)

    def come_back(self) -> None:
        """Restore first, services later."""
        self._head("jailbridge restore, then fail2ban, then jailbridge run")
        restored = self._lab.jailbridge("restore")
        self._check("restore put the bans back", restored.code == 0, restored.err)
        self._check("fail2ban is not up yet", self._lab.fail2ban("ping").code != 0)
        self._check(f"{ATTACKER} is cut off again already", self._lab.connect(ATTACKER) == "timed out")
        self._lab.start_fail2ban()
        self._lab.start_daemon()
        self._lab.wait("plan finds agreement", self._agrees)
        code = self._show_plan("jailbridge plan, in the end")
        self._check("every store agrees again", code == 0 and all(self._held(ATTACKER).values()))
        self._check("hosts.deny has the ban once", self._deny_lines(ATTACKER) == 1)
        self._check(f"{INNOCENT} was never banned", not any(self._held(INNOCENT).values()))

    def unban(self) -> None:
        """One command lets the attacker in, and the old line does not ban it again."""
        self._head(f"jailbridge unban {ATTACKER}")
        answer = self._lab.jailbridge("unban", ATTACKER)
        self._check("the command says so", answer.code == 0 and f"unbanned {ATTACKER}" in answer.out, answer.err)
        self._show_bans(ATTACKER, INNOCENT)
        self._check(f"{ATTACKER} left every store", not any(self._held(ATTACKER).values()))
        self._check(f"{ATTACKER} may connect again", self._reach(ATTACKER))
        # Something new in the same log shows that the daemon has read on, past the old line.
        self._lab.scan(SECOND, "1-100")
        self._lab.wait("a later scan is banned", lambda: all(self._held(SECOND).values()))
        self._check("a later scanner is banned: the daemon has read on", all(self._held(SECOND).values()))
        self._check("the old line did not ban the first one again", not any(self._held(ATTACKER).values()))
        self._check("every store agrees", self._agrees())

    # What the real programs say

    def _held(self, address: str) -> dict[str, bool]:
        """Tell which stores hold an address, as their own programs show it."""
        table = self._lab.on_host("nft", "--json", "list", "table", "inet", "jailbridge").out
        jail = self._lab.fail2ban("get", "portsentry", "banip").out
        return {
            "hosts_deny": self._deny_lines(address) > 0,
            "firewall": f'"{address}"' in table,
            "fail2ban": address in jail.split(),
        }

    def _deny_lines(self, address: str) -> int:
        text = (self._lab.disk / "hosts.deny").read_text(encoding="utf-8")
        return text.splitlines().count(f"ALL: {address}")

    def _foreign_line_stands(self) -> bool:
        return (self._lab.disk / "hosts.deny").read_text(encoding="utf-8").startswith(HOSTS_DENY)

    def _reach(self, *sources: str) -> bool:
        return all(self._lab.connect(source) == "connected" for source in sources)

    # What jailbridge says

    def _agrees(self) -> bool:
        return self._lab.jailbridge("plan").code == 0

    def _show_plan(self, title: str) -> int:
        answer = self._lab.jailbridge("plan")
        self._out.print(f"  {title}:", style="cyan")
        for line in (answer.out + answer.err).splitlines():
            self._out.print(f"    {line}")
        return answer.code

    def _show_bans(self, *addresses: str) -> None:
        rows: list[dict[str, Any]] = json.loads(self._lab.jailbridge("list", "--json").out)
        wanted = {row["address"] for row in rows}
        table = Table("address", "wanted", *(name.replace("_", ".") for name in STORES), box=None, pad_edge=True)
        for address in addresses:
            held = self._held(address)
            table.add_row(address, _mark(address in wanted), *(_mark(held[name]) for name in STORES))
        self._out.print(table)

    def _head(self, text: str) -> None:
        self._out.print(f"\n{text}", style="bold")

    def _check(self, statement: str, holds: bool, details: str = "") -> None:
        self._out.print(f"  {'✔' if holds else '✘'} {statement}", style="green" if holds else "red")
        if not holds:
            raise Failed(f"the demo failed: not so: {statement}{': ' if details else ''}{details.strip()}")
        self.checked += 1


def tell() -> int:
    """Run the demo; return 0 if every statement was checked and held. Raises FatalError for the first that did not."""
    out = Console(markup=False, emoji=False, highlight=False)
    logging.getLogger("jailbridge").setLevel(logging.CRITICAL)
    with _terminated_like_interrupted(), Lab() as lab:
        story = Story(lab, out)
        out.print(f"A host {HOST} and outside hosts, in two network namespaces; its disk is {lab.folder}.", style="dim")
        try:
            story.tell()
        except Failed:
            for name in ("jailbridge", "fail2ban", "fail2ban-server"):
                out.print(f"\nlast lines of {name}.log:\n{lab.tail(name, 15)}", style="dim")
            raise
    out.print(
        f"\nEvery one of {story.checked} statements was checked and held. Nothing is left behind.", style="bold green"
    )
    return 0


def _mark(holds: bool) -> Text:
    return Text("yes", style="green") if holds else Text("no", style="dim")


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A SIGTERM, too, ends in the clean-up."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before: Callable[[int, Any], Any] | int | None = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
