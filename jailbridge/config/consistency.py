"""What settings cannot mean: two of them together, and what this release does not do. Pure."""

from collections.abc import Iterator

from jailbridge.config.fields import PATTERN
from jailbridge.config.placeholders import named
from jailbridge.config.settings import FirewallBackend, HostsDenyForm, SensorMode, Settings, Target, Watch
from jailbridge.config.values import without
from jailbridge.errors import ParseError
from jailbridge.model.event import TailFormat
from jailbridge.model.network import shown


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for settings that are possible each by itself and not together."""
    yield from _tails(settings)
    networks = [rule.network for rule in settings.policy.network]
    for n, network in enumerate(networks):
        if network in networks[:n]:
            yield f"policy.network.{n}.network", f"{network} has a duration already: leave one of them"
    deny = settings.stores.hosts_deny
    # What separates clients, lists and lines in hosts_access(5), or makes a pattern of them.
    if deny.form is HostsDenyForm.FILE and not set(" \t,:#\\*?[]").isdisjoint(str(deny.path)):
        yield "stores.hosts_deny.path", 'no " ,:#\\*?[]" with form = "file": hosts.deny names a file beside it'
    firewall = settings.stores.firewall
    if firewall.backend is FirewallBackend.NFTABLES:
        # It stands before every chain of iptables, in a table of our own.
        if firewall.target is not Target.DROP:
            yield "stores.firewall.target", 'the backend "nftables" only drops: set that to "auto", or this to "DROP"'
        if firewall.hook != "first":
            yield (
                "stores.firewall.hook",
                'the backend "nftables" is always first: set that to "auto", or this to "first"',
            )
    yield from _answers(settings)
    sensor = settings.sensor
    watched = [
        *without(sensor.tcp_ports, sensor.exclude_tcp_ports),
        *without(sensor.udp_ports, sensor.exclude_udp_ports),
    ]
    if sensor.mode is not SensorMode.OFF and not watched:
        yield "sensor.tcp_ports", 'no port is left to watch: name some, or set sensor.mode to "off"'
    if sensor.mode is SensorMode.STEALTH and sensor.banner:
        yield "sensor.banner", 'only the mode "connect" has somebody to send it to: set that, or leave the banner empty'
    if sensor.mode is SensorMode.CONNECT and sensor.ack_scans:
        yield "sensor.ack_scans", 'only the mode "stealth" sees them: set that, or leave it false'


def _answers(settings: Settings) -> Iterator[tuple[str, str]]:
    for n, command in enumerate(settings.respond.command):
        key, program = f"respond.command.{n}.run", command.run[0]
        try:
            list(named(command.run))
        except ParseError as error:
            yield key, str(error)
        if "{" in program:
            yield key, "the program's own name has no placeholder: outsiders choose what stands in one"
        elif "/" in program and not program.startswith("/"):
            yield key, f"should be a program's name, or an absolute path, not {shown(program)}"
    # What stands behind this tag is believed where a [[tail]] has prefixes of the kernel's LOG rules.
    if settings.respond.syslog.tag == "kernel":
        yield "respond.syslog.tag", "that is the kernel's own: name another"


def _tails(settings: Settings) -> Iterator[tuple[str, str]]:
    names = [tail.name for tail in settings.tail]
    for n, tail in enumerate(settings.tail):
        if (tail.path is None) == (tail.journal is None):
            yield f"tail.{n}.path", "name either a path or a journal"
        elif tail.name in names[:n]:
            key = "path" if tail.journal is None else "journal"
            yield f"tail.{n}.{key}", f"{shown(tail.name)} is followed twice: leave one [[tail]] of it"
        if tail.path is not None and not PATTERN.isdisjoint(str(tail.path.parent)):
            yield f"tail.{n}.path", 'only its last part may have "*", "?" or "[": a folder is named as it is'
        if tail.journal is not None and tail.watch is not Watch.AUTO:
            yield f"tail.{n}.watch", "the journal tells by itself what is new: leave it out"
        if (tail.format is TailFormat.KERNEL or tail.journal == "kernel") and not tail.prefixes:
            yield f"tail.{n}.prefixes", 'name the prefixes of the LOG rules to believe, like ["portscan: "]'
        if tail.prefixes and tail.format not in {TailFormat.AUTO, TailFormat.KERNEL}:
            yield f"tail.{n}.prefixes", 'only "kernel" and "auto" read them: set tail.format to one, or leave them out'


def unbuilt(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (key, remedy) for each setting that asks for what this release does not do."""
    asked = [
        ("sensor.mode", settings.sensor.mode is SensorMode.KERNEL, 'use "stealth", "connect" or "off"'),
        ("metrics.listen", bool(settings.metrics.listen), "leave it empty"),
    ]
    yield from ((key, remedy) for key, is_asked, remedy in asked if is_asked)
