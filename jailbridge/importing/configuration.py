"""The configuration that does what PortSentry and fail2ban were set to do here, with the reason for each setting. Pure.

What has no counterpart is told, never half obeyed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from jailbridge.config.load import ConfigError
from jailbridge.config.portsentry_conf import MODE, PORT, TARGET, Blocking, DenyRule, KillCommand, Mode, parse
from jailbridge.config.settings import (
    DEFAULT_ALLOW_FILES,
    DEFAULT_HISTORY,
    DEFAULT_PORTSENTRY_CONF,
    Chain,
    Fail2banSettings,
    PolicySettings,
    SensorMode,
    Target,
)
from jailbridge.config.values import PortRange, duration_text
from jailbridge.importing.notes import Note, Notes
from jailbridge.importing.old_settings import OldSettings
from jailbridge.importing.toml import Entry, Value
from jailbridge.model.event import Protocol
from jailbridge.model.network import shown
from jailbridge.stores.kill_commands import RouteCommand, RuleCommand, undoable

# What sensor.trigger_ports takes.
MOST_PORTS = 1024
_PLACEHOLDERS = {TARGET: "{address}", PORT: "{port}", MODE: "{mode}"}
_REJECT = {
    "icmp-port-unreachable": Target.REJECT_PORT,
    "icmp-host-unreachable": Target.REJECT_HOST,
    "icmp-net-unreachable": Target.REJECT_NET,
    "icmp-admin-prohibited": Target.REJECT_ADMIN,
    "tcp-reset": Target.REJECT_RESET,
}
LAN = (
    "A network of your own gets bans of its own length so (no cron job, no sleeping shell):",
    "[[policy.network]]",
    'network = "192.168.1.0/24"',
    'ban_for = "10m"',
)
"""What takes the place of a job that lets the LAN in again after ten minutes, as lines of comments."""
# Daemons and one client, with nothing but DENY behind: spawn and twist would run programs.
_KEPT_RULE = re.compile(
    r"[\w.@-]+(?:[ \t,]+[\w.@-]+)*[ \t]*:[ \t]*\{address\}[ \t]*(?::[ \t]*DENY[ \t]*)?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the person who imports wants of it."""

    keep_portsentry: bool = False
    ban_for_spoofable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What is on the machine beside PortSentry's own settings.

    jails            fail2ban's that read PortSentry's history; None where fail2ban is not here
    ignore_beside    whether there is an IGNORE_FILE.static beside the IGNORE_FILE, of which Debian's script makes it
    """

    jails: Sequence[str] | None = None
    ignore_beside: bool = False


@dataclass(slots=True)
class _Draft:
    notes: Notes
    entries: list[Entry] = field(default_factory=list)

    def set(self, table: str, key: str, value: Value, place: str, why: str) -> None:
        self.entries.append(Entry(table, key, value, why))
        name = f"{table.strip('[]')}.{key}"
        self.notes.configured.append(Note(place, f"{name} = {value!r}: {why}" if why else f"{name} = {value!r}"))


def drafted(old: OldSettings, around: Around, wishes: Wishes, notes: Notes) -> list[Entry]:
    """Return the settings, in the order of the file; what is to be known of them is noted."""
    draft = _Draft(notes)
    _sensor(draft, old, wishes)
    _history(draft, old, wishes)
    _policy(draft, old, around, wishes)
    _hosts_deny(draft, old)
    _firewall(draft, old)
    _fail2ban(draft, around)
    if old.found and old.path != DEFAULT_PORTSENTRY_CONF:
        draft.set("[portsentry]", "conf", str(old.path), str(old.path), "")
    _command(draft, old)
    _blocking(notes, old, wishes)
    return draft.entries


def _mode(old: OldSettings) -> tuple[SensorMode, str, str]:
    """Return how the sensor is to see probes, by which key, and where that stands."""
    modes = old.modes
    if modes is None:
        return SensorMode.STEALTH, "PortSentry's usual mode", str(old.path)
    chosen, key = (modes["TCP"], "TCP_MODE") if modes["TCP"] is not None else (modes["UDP"], "UDP_MODE")
    if chosen is None:
        return SensorMode.OFF, "neither TCP_MODE nor UDP_MODE is set", str(old.modes_path)
    is_connect = chosen in {Mode.TCP, Mode.UDP}
    return (SensorMode.CONNECT if is_connect else SensorMode.STEALTH), f"{key} {chosen}", str(old.modes_path)


def _sensor(draft: _Draft, old: OldSettings, wishes: Wishes) -> None:
    mode, why, place = _mode(old)
    if wishes.keep_portsentry:
        draft.set("[sensor]", "mode", SensorMode.OFF.value, place, "PortSentry itself goes on detecting")
        return
    if not old.found and old.modes is None:
        return
    ports = {kind: _ports(old, kind) for kind in ("TCP", "UDP")}
    if mode is not SensorMode.OFF and not any(watched for watched, _, _ in ports.values()):
        mode, why = SensorMode.OFF, "no port was watched"
    draft.set("[sensor]", "mode", mode.value, place, why)
    if mode is SensorMode.OFF:
        draft.notes.by_hand.append(Note(place, f"nothing was watched ({why}): set sensor.mode and the ports"))
        return
    if old.modes is not None and None not in old.modes.values():
        tcp, udp = old.modes["TCP"], old.modes["UDP"]
        if (tcp is Mode.TCP) != (udp is Mode.UDP):
            text = f"UDP_MODE {udp} beside TCP_MODE {tcp}: the sensor has one mode, {mode}, for both"
            draft.notes.by_hand.append(Note(place, text))
    for kind, (watched, excluded, key) in ports.items():
        name = kind.lower()
        draft.set(
            "[sensor]", f"{name}_ports", ports_text(watched), old.place(key), key if watched else f"no {kind}_MODE"
        )
        draft.set("[sensor]", f"exclude_{name}_ports", ports_text(excluded), old.place(f"ADVANCED_EXCLUDE_{kind}"), "")
    trigger = min(max(old.conf.scan_trigger, 1), MOST_PORTS)
    place = old.place("SCAN_TRIGGER")
    draft.set(
        "[sensor]", "trigger_ports", trigger, place, f"SCAN_TRIGGER {old.conf.scan_trigger}; JailBridge's own is 3"
    )
    if old.conf.resolve_host:
        draft.set("[sensor]", "resolve_names", True, old.place("RESOLVE_HOST"), "RESOLVE_HOST")
    if old.conf.port_banner and mode is SensorMode.CONNECT:
        draft.set("[sensor]", "banner", old.conf.port_banner, old.place("PORT_BANNER"), "PORT_BANNER")
    elif old.conf.port_banner:
        draft.notes.left_alone.append(Note(old.place("PORT_BANNER"), f"in mode {mode} nobody is sent a banner"))


def _ports(old: OldSettings, kind: str) -> tuple[Sequence[PortRange], Sequence[PortRange], str]:
    """Return which ports were watched, less which, and by which key."""
    conf, is_tcp = old.conf, kind == "TCP"
    mode = old.modes[kind] if old.modes is not None else (Mode.STEALTH if old.version == 2 else None)
    if old.modes is not None and mode is None:
        return (), (), f"{kind}_PORTS"
    key = f"{kind}_PORTS"
    if mode is None:
        # Where no file names the mode of 1.2, it is the one of Debian's own.
        mode = Mode.ATCP if is_tcp else Mode.AUDP
    if mode.is_advanced:
        last = (conf.advanced_tcp if is_tcp else conf.advanced_udp) - 1
        return ((1, last),) if last else (), conf.exclude_tcp if is_tcp else conf.exclude_udp, f"ADVANCED_PORTS_{kind}"
    return conf.watched(Protocol.TCP if is_tcp else Protocol.UDP, mode), (), key


def ports_text(ranges: Sequence[PortRange]) -> str:
    """Return ranges of ports in PortSentry's syntax."""
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _history(draft: _Draft, old: OldSettings, wishes: Wishes) -> None:
    path = old.conf.history_file or DEFAULT_HISTORY
    place = old.place("HISTORY_FILE")
    if path != DEFAULT_HISTORY:
        draft.set("[history]", "path", str(path), place, "HISTORY_FILE")
    if not wishes.keep_portsentry:
        if old.version == 2:
            draft.set("[history]", "dialect", "2", str(old.path), "PortSentry 2.x's, for whoever reads it")
        return
    draft.set("[[tail]]", "path", str(path), place, "what PortSentry writes")
    draft.set("[[tail]]", "format", "portsentry-2" if old.version == 2 else "portsentry-1.2", place, "")
    if old.version == 1:
        mode, why, place = _mode(old)
        evidence = "handshake" if mode is SensorMode.CONNECT else "spoofable"
        draft.set("[[tail]]", "evidence", evidence, place, why)


def _policy(draft: _Draft, old: OldSettings, around: Around, wishes: Wishes) -> None:
    conf = old.conf
    if wishes.ban_for_spoofable is not None:
        draft.set("[policy]", "ban_for_spoofable", wishes.ban_for_spoofable, "--ban-for-spoofable", "")
    elif Blocking.BLOCK in {conf.block_tcp, conf.block_udp}:
        text = (
            "PortSentry blocked for ever; the sender of a SYN or UDP probe can be forged, so that such a ban lasts "
            f"{duration_text(PolicySettings().ban_for_spoofable)}: --ban-for-spoofable permanent keeps the old way"
        )
        draft.notes.by_hand.append(Note(str(old.path), text))
    if conf.ignore_file is not None and conf.ignore_file not in DEFAULT_ALLOW_FILES:
        files = [str(conf.ignore_file)]
        if around.ignore_beside:
            files.insert(0, f"{conf.ignore_file}.static")
        draft.set("[policy]", "allow_files", files, old.place("IGNORE_FILE"), "IGNORE_FILE")
    if old.found and Blocking.BLOCK not in {conf.block_tcp, conf.block_udp} and not around.jails:
        why = "nothing was blocked: look on first, then true"
        draft.set("[policy]", "enforce", False, old.place("BLOCK_TCP"), why)


def _hosts_deny(draft: _Draft, old: OldSettings) -> None:
    rule, place = old.conf.kill_hosts_deny, old.place("KILL_HOSTS_DENY")
    if rule is None:
        if old.found:
            draft.set("[stores.hosts_deny]", "enabled", False, place, "no KILL_HOSTS_DENY")
        return
    kept = kept_rule(rule)
    if kept is None:
        said = f"KILL_HOSTS_DENY {shown(rule.text)}"
        text = f"{said} is not DAEMONS: $TARGET$, with or without DENY: set stores.hosts_deny.rule"
        draft.notes.by_hand.append(Note(place, text))
    elif kept != "ALL: {address}":
        draft.set("[stores.hosts_deny]", "rule", kept, place, "KILL_HOSTS_DENY")


def kept_rule(rule: DenyRule) -> str | None:
    """Return what stores.hosts_deny.rule is for a KILL_HOSTS_DENY, None where that is nothing that we keep."""
    text = rule.text.strip().replace(f"[{TARGET}]", TARGET).replace(TARGET, "{address}")
    return text if _KEPT_RULE.fullmatch(text) else None


def _firewall(draft: _Draft, old: OldSettings) -> None:
    command, place = old.conf.kill_route, old.place("KILL_ROUTE")
    if command is None:
        return
    found = next((one for piece in _pieces(command) if (one := _as_firewall(piece)) is not None), None)
    if found is None:
        said = f"KILL_ROUTE {shown(command.text)}"
        text = f"{said} is none that we know: the firewall drops instead (stores.firewall.target)"
        draft.notes.by_hand.append(Note(place, text))
        return
    target, chain, problems = found
    if target is not Target.DROP:
        draft.set("[stores.firewall]", "target", target.value, place, "KILL_ROUTE")
    if chain != Chain.INPUT.value:
        draft.set("[stores.firewall]", "chains", [chain], place, "KILL_ROUTE")
    if command.shell:
        problems = [*problems, "only its rule that cuts off is carried over, the rest of the shell's line is not"]
    draft.notes.by_hand += [Note(place, f"KILL_ROUTE: {problem}") for problem in problems]


def _pieces(command: KillCommand) -> Iterator[KillCommand]:
    """Yield a command or, of a shell's line, the plain commands that it is made of."""
    if not command.shell:
        yield command
        return
    for piece in re.split(r"&&|;", command.text):
        try:
            single = parse(f'KILL_ROUTE="{piece.strip()}"', "KILL_ROUTE").kill_route
        except ConfigError:
            continue
        if single is not None and not single.shell:
            yield single


def _as_firewall(command: KillCommand) -> tuple[Target, str, list[str]] | None:
    """Return target, chain, and what differs, of what a KILL_ROUTE makes; None where that cuts nobody off."""
    made = undoable(command)
    if isinstance(made, RouteCommand):
        return Target.DROP, Chain.INPUT.value, ["a route that leads nowhere: the firewall drops in its place"]
    if made is None:
        return None
    target, others = _rule(made)
    if target is None:
        return None
    problems = []
    if others:
        problems.append(f"its rule was for {shown(' '.join(others))} alone; ours is for all that a banned source sends")
    if made.table != "filter":
        problems.append(f"its rule stood in the table {shown(made.table)}; ours stands in filter")
    chain = made.chain if made.chain in set(Chain) else Chain.INPUT.value
    if chain != made.chain:
        problems.append(
            f"its rule stood in the chain {shown(made.chain)}; ours stands first in INPUT: set stores.firewall.hook to "
            f'"after:{made.chain}" for the place behind it'
        )
    words = list(command.argv or ())
    if {"-A", "--append"} & set(words):
        problems.append(
            'its rule came last in the chain, ours comes first: stores.firewall.hook = "after:X" names a place'
        )
    elif any(word.isdigit() and words[at - 2] in {"-I", "--insert"} for at, word in enumerate(words) if at > 1):
        problems.append(
            'its rule had a number in the chain, ours comes first: stores.firewall.hook = "after:X" says behind what'
        )
    return target, chain, problems


def _rule(made: RuleCommand) -> tuple[Target | None, list[str]]:
    """Return the target of a rule and what it matches besides the source."""
    words, target, reject, others = list(made.rule), "", "", list[str]()
    while words:
        name, equals, value = words.pop(0).partition("=")
        if name in {"-j", "--jump", "-s", "--source", "--src", "--reject-with", "-d", "--destination", "--dst"}:
            value = value if equals else (words.pop(0) if words else "")
            target = value if name in {"-j", "--jump"} else target
            reject = value if name == "--reject-with" else reject
            if name in {"-d", "--destination", "--dst"}:
                others += [name, value]
        else:
            others.append(name + equals + value)
    if target == Target.REJECT.value and reject:
        return _REJECT.get(reject), others
    if target in {"DROP", "REJECT", "TARPIT", "CHAOS", "DELUDE"}:
        # What a module's target is told besides is not carried over.
        return Target(target), others
    return None, others


def _fail2ban(draft: _Draft, around: Around) -> None:
    if around.jails is None:
        draft.set("[stores.fail2ban]", "enabled", False, "fail2ban", "fail2ban is not on this machine")
    elif around.jails and Fail2banSettings().jail not in around.jails:
        draft.set("[stores.fail2ban]", "jail", around.jails[0], "fail2ban", "its jail that reads PortSentry's history")
    if around.jails:
        text = (
            f"the jail {around.jails[0]} gets our filter and action by `jailbridge fail2ban install`; "
            "a ban there then lasts as long as JailBridge says"
        )
        draft.notes.by_hand.append(Note("fail2ban", text))


def _command(draft: _Draft, old: OldSettings) -> None:
    command, place = old.conf.kill_run_cmd, old.place("KILL_RUN_CMD")
    if command is None:
        return
    if {old.conf.block_tcp, old.conf.block_udp} == {Blocking.LOG}:
        draft.notes.left_alone.append(Note(place, "KILL_RUN_CMD was never run: BLOCK_TCP and BLOCK_UDP are 0"))
        return
    if command.argv is None:
        text = (
            f"KILL_RUN_CMD {shown(command.text)} needs a shell, which no command of ours gets: write it into a "
            'script of yours, and [[respond.command]] run = ["/path/of/it", "{address}", "{port}", "{mode}"]'
        )
        draft.notes.by_hand.append(Note(place, text))
        return
    draft.set("[[respond.command]]", "run", [placeholders(word) for word in command.argv], place, "KILL_RUN_CMD")
    if old.conf.kill_run_cmd_first:
        draft.set("[[respond.command]]", "first", True, old.place("KILL_RUN_CMD_FIRST"), "KILL_RUN_CMD_FIRST")
    text = (
        "KILL_RUN_CMD may run for 10 s (timeout of [[respond.command]]); one that waits to let somebody in again is "
        "not needed: [[policy.network]] ban_for ends a ban"
    )
    draft.notes.by_hand.append(Note(place, text))


def placeholders(word: str) -> str:
    """Return an argument of KILL_RUN_CMD as [[respond.command]] takes it."""
    text = word.replace("{", "{{").replace("}", "}}")
    for token, name in _PLACEHOLDERS.items():
        text = text.replace(token, name)
    return text


def _blocking(notes: Notes, old: OldSettings, wishes: Wishes) -> None:
    """Say what becomes of PortSentry's own blocking."""
    if not old.found:
        return
    for key, blocking in (("BLOCK_TCP", old.conf.block_tcp), ("BLOCK_UDP", old.conf.block_udp)):
        place = old.place(key)
        if wishes.keep_portsentry and blocking is not Blocking.LOG:
            text = f'{key} is {blocking}: set it to "0", so that JailBridge alone blocks and lets in again'
            notes.by_hand.append(Note(place, text))
        elif not wishes.keep_portsentry and blocking is not Blocking.BLOCK:
            kind = key.removeprefix("BLOCK_")
            text = (
                f"{key} is {blocking}: {kind} scans were not blocked; JailBridge bans for them "
                f'(sensor.{kind.lower()}_ports = "" leaves them out, policy.enforce = false only looks)'
            )
            notes.by_hand.append(Note(place, text))
    if wishes.keep_portsentry:
        if old.version == 2 and old.conf.blocked_file is not None:
            place = old.place("BLOCKED_FILE")
            notes.by_hand.append(Note(place, 'set it to "": 2.x notices a host again only without it'))
    else:
        notes.by_hand.append(
            Note(str(old.path), "stop PortSentry before ours starts: systemctl disable --now portsentry")
        )
