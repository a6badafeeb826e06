"""What settings cannot mean: two of them together, and what this release does not do. Pure."""

from collections.abc import Iterator

from jailbridge.config.settings import FirewallBackend, HostsDenyForm, SensorMode, Settings, TailFormat
from jailbridge.config.values import without
from jailbridge.model.network import shown


def contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (key, problem) for settings that are possible each by itself and not together."""
    paths = [str(tail.path) for tail in settings.tail]
    for n, path in enumerate(paths):
        if path in paths[:n]:
            yield f"tail.{n}.path", f"{shown(path)} is followed twice: leave one [[tail]] of it"
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


def unbuilt(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield (key, remedy) for each setting that asks for what this release does not do."""
    firewall = settings.stores.firewall
    asked = [
        ("sensor.mode", settings.sensor.mode is SensorMode.KERNEL, 'use "stealth", "connect" or "off"'),
        ("stores.hosts_deny.form", settings.stores.hosts_deny.form is HostsDenyForm.FILE, 'use "lines"'),
        (
            "stores.firewall.backend",
            firewall.backend in {FirewallBackend.IPSET, FirewallBackend.IPTABLES},
            'use "auto" or "nftables"',
        ),
        ("stores.firewall.target", firewall.target != "DROP", 'use "DROP"'),
        ("stores.firewall.hook", firewall.hook != "first", 'use "first"'),
        ("respond.command", bool(settings.respond.command), "leave it out"),
        ("respond.mail.to", bool(settings.respond.mail.to), "leave it empty"),
        ("metrics.listen", bool(settings.metrics.listen), "leave it empty"),
    ]
    asked += [
        (
            f"tail.{n}.format",
            tail.format in {TailFormat.SYSLOG, TailFormat.KERNEL},
            'use "auto" or a portsentry format',
        )
        for n, tail in enumerate(settings.tail)
    ]
    asked += [(f"tail.{n}.path", "*" in str(tail.path), "name the file") for n, tail in enumerate(settings.tail)]
    yield from ((key, remedy) for key, is_asked, remedy in asked if is_asked)
