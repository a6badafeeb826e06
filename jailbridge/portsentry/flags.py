"""PortSentry's command line, of either version, as one value. Pure: opens nothing.

1.2 takes one argument, its mode: exactly `-tcp -udp -stcp -sudp -atcp` or `-audp`; it logs to syslog and goes to the
background. 2.x reads its flags with getopt_long(3): short ones may be joined (`-Dv`), a long one may be shortened to
what is unambiguous and take its value after `=`. Beside 1.2's mode, and never beside 2.x's flags, two flags of our own
are understood: `--config FILE` and `--foreground`.

Unlike with 2.x, which passes over them, an argument that is no flag is an error, and so is a flag with two values.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from jailbridge.config.portsentry_conf import DEFAULT_CONF, Mode
from jailbridge.errors import FatalError
from jailbridge.model.network import shown

Choice = TypeVar("Choice", bound=StrEnum)

ALL, ALL_BUT_LOOPBACK = "ALL", "ALL_NLO"
# libpcap's own word for every interface.
ANY = "any"

HELP = """\
Usage: jailbridge portsentry -tcp|-udp|-stcp|-sudp|-atcp|-audp [--config FILE] [--foreground]
       jailbridge portsentry [--stealth|--connect] [OPTION]...

As PortSentry 1.2: one mode, logs to syslog, goes to the background.
  -tcp, -udp               listen on TCP_PORTS, UDP_PORTS
  -stcp, -sudp             watch packets to TCP_PORTS, UDP_PORTS
  -atcp, -audp             watch packets to every port below ADVANCED_PORTS_TCP, ADVANCED_PORTS_UDP
  --config FILE            instead of /etc/portsentry/portsentry.conf (not in PortSentry)
  --foreground             stay in the foreground (not in PortSentry)

As PortSentry 2.x: TCP and UDP together, logs to stdout, stays in the foreground.
  --stealth                watch packets (default)
  --connect                listen on the ports
  -c, --configfile FILE    instead of /etc/portsentry/portsentry.conf
  -m, --method pcap|raw    accepted; one method serves for both
  -i, --interface NAME     may be repeated; ALL, or ALL_NLO for all but loopback (default)
  -L, --disable-local-check    act on packets from this host itself, too
  -S, --disable-service-check  act on ports with a live service, too
  -l, --logoutput stdout|syslog
  -D, --daemon             go to the background; logs to syslog
  -d, --debug              log more
  -v, --verbose            log more
  -h, --help               show this
  -V, --version            show the version
"""


class LogTarget(StrEnum):
    """Where the log lines go."""

    STDOUT = "stdout"
    SYSLOG = "syslog"


class Method(StrEnum):
    """How 2.x sees packets; ours serves for both."""

    PCAP = "pcap"
    RAW = "raw"


class Asked(StrEnum):
    """What is asked for instead of a start."""

    HELP = "help"
    VERSION = "version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What PortSentry is asked to do; the defaults are those of 2.x.

    `interfaces` are names, or ALL or ALL_BUT_LOOPBACK alone. `local_check` passes over packets from the host itself,
    `service_check` over ports that a service listens on.
    """

    mode: Mode = Mode.STEALTH
    config: Path = DEFAULT_CONF
    interfaces: tuple[str, ...] = (ALL_BUT_LOOPBACK,)
    method: Method = Method.PCAP
    log: LogTarget = LogTarget.STDOUT
    daemonize: bool = False
    debug: bool = False
    verbose: bool = False
    local_check: bool = True
    service_check: bool = True

    @property
    def version(self) -> int:
        """The PortSentry whose flags these are: 1 (1.2) or 2."""
        return self.mode.version


_MODES_1 = {f"-{mode}": mode for mode in Mode if mode.version == 1}
# Long name: (short one, whether it takes a value).
_FLAGS_2 = {
    "stealth": ("", False),
    "connect": ("", False),
    "configfile": ("c", True),
    "method": ("m", True),
    "interface": ("i", True),
    "disable-local-check": ("L", False),
    "disable-service-check": ("S", False),
    "logoutput": ("l", True),
    "daemon": ("D", False),
    "debug": ("d", False),
    "verbose": ("v", False),
    "help": ("h", False),
    "version": ("V", False),
}
_SHORT = {short: name for name, (short, _) in _FLAGS_2.items() if short}


def parse(argv: Sequence[str]) -> Invocation | Asked:
    """Return what the arguments (without the program's name) ask for. Raises FatalError with the remedy."""
    modes = [arg for arg in argv if arg in _MODES_1]
    if modes:
        return _invocation_1(argv, modes)
    given: dict[str, list[str]] = {}
    for name, value in _read_2(argv):
        # As getopt does it: what stands after it is not read any more.
        if name in set(Asked):
            return Asked(name)
        given.setdefault(name, []).append(value)
    return _invocation_2(given)


def _invocation_1(argv: Sequence[str], modes: Sequence[str]) -> Invocation:
    if len(set(modes)) > 1:
        raise FatalError(f"{modes[0]} and {modes[1]}: PortSentry 1.2 has one mode a process: start one for each")
    config, foreground = DEFAULT_CONF, False
    rest = iter(argv)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name == "--config":
            config = _config(value if equals else next(rest, ""))
        elif arg == "--foreground":
            foreground = True
        elif arg not in _MODES_1:
            raise FatalError(
                f"{shown(arg)} does not go with {modes[0]}, a flag of PortSentry 1.2, which takes no other: "
                "use --config FILE and --foreground, or 2.x's flags alone"
            )
    # A raw socket sees every interface. It does not see what is forged from our own addresses, which the kernel drops.
    return Invocation(
        mode=_MODES_1[modes[0]],
        config=config,
        interfaces=(ALL,),
        log=LogTarget.SYSLOG,
        daemonize=not foreground,
    )


def _read_2(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (long name, value) for each flag, "" for one that takes none."""
    rest = iter(argv)
    for arg in rest:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            name = _long(name)
            takes_value = _FLAGS_2[name][1]
            if equals and not takes_value:
                raise FatalError(f"--{name} takes no value: leave {shown('=' + value)} out")
            yield name, value if equals or not takes_value else _next(rest, f"--{name}")
        elif arg.startswith("-") and len(arg) > 1:
            yield from _read_short(arg[1:], rest)
        else:
            raise FatalError(f"{shown(arg)} is no flag: see jailbridge portsentry --help")


def _read_short(letters: str, rest: Iterator[str]) -> Iterator[tuple[str, str]]:
    for n, letter in enumerate(letters, start=1):
        name = _SHORT.get(letter)
        if name is None:
            raise FatalError(f"{shown('-' + letter)} is no flag of PortSentry: see jailbridge portsentry --help")
        if _FLAGS_2[name][1]:
            yield name, letters[n:] or _next(rest, f"-{letter}")
            return
        yield name, ""


def _long(name: str) -> str:
    if name == "foreground":
        raise FatalError("--foreground goes with a mode of PortSentry 1.2; 2.x stays in the foreground without -D")
    matches = [name] if name in _FLAGS_2 else [flag for flag in _FLAGS_2 if name and flag.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    may_be = f"may be {' or '.join('--' + flag for flag in matches)}: write it out" if matches else "is no flag"
    raise FatalError(f"{shown('--' + name)} {may_be}; see jailbridge portsentry --help")


def _next(rest: Iterator[str], flag: str) -> str:
    value = next(rest, None)
    if value is None:
        raise FatalError(f"{flag} needs a value after it: see jailbridge portsentry --help")
    return value


def _invocation_2(given: Mapping[str, Sequence[str]]) -> Invocation:
    if "stealth" in given and "connect" in given:
        raise FatalError("--stealth and --connect: choose one of them")
    daemonize = "daemon" in given
    log = _one_of("logoutput", given, LogTarget.STDOUT)
    return Invocation(
        mode=Mode.CONNECT if "connect" in given else Mode.STEALTH,
        config=_config(_single("configfile", given)) if "configfile" in given else DEFAULT_CONF,
        interfaces=_interfaces(given.get("interface", (ALL_BUT_LOOPBACK,))),
        method=_one_of("method", given, Method.PCAP),
        # In the background there is no stdout.
        log=LogTarget.SYSLOG if daemonize else log,
        daemonize=daemonize,
        debug="debug" in given,
        verbose="verbose" in given,
        local_check="disable-local-check" not in given,
        service_check="disable-service-check" not in given,
    )


def _single(name: str, given: Mapping[str, Sequence[str]]) -> str:
    values = given[name]
    if len(set(values)) > 1:
        raise FatalError(f"--{name} is given twice, {shown(values[0])} and {shown(values[1])}: choose one")
    return values[0]


def _one_of(name: str, given: Mapping[str, Sequence[str]], default: Choice) -> Choice:
    choices: type[Choice] = type(default)
    value = _single(name, given) if name in given else default
    try:
        return choices(value)
    except ValueError:
        raise FatalError(f"--{name} is {' or '.join(choices)}, not {shown(value)}") from None


def _config(value: str) -> Path:
    if not value or "\0" in value:
        raise FatalError(f"{shown(value)} is no file: name a portsentry.conf")
    return Path(value)


def _interfaces(names: Sequence[str]) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(ALL if name == ANY else name for name in names))
    for name in chosen:
        # IFNAMSIZ is 16 bytes, the last of them NUL (netdevice(7)).
        if not (re.fullmatch(r"[^\s/,]{1,15}", name) and name.isprintable()):
            raise FatalError(
                f"{shown(name)} is no interface: name one, {ALL} or {ALL_BUT_LOOPBACK}, each with its own -i"
            )
    if len(chosen) > 1 and {ALL, ALL_BUT_LOOPBACK} & set(chosen):
        raise FatalError(f"-i {' -i '.join(chosen)}: choose {ALL}, {ALL_BUT_LOOPBACK} or interfaces by name")
    return chosen
