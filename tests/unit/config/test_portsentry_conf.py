import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from jailbridge.config.load import ConfigError
from jailbridge.config.portsentry_conf import (
    MAX_BYTES,
    MAX_PROBLEMS,
    Blocking,
    DenyRule,
    KillCommand,
    Mode,
    PortsentryConf,
    load,
    parse,
)
from jailbridge.errors import FatalError
from jailbridge.model.event import Protocol

# Debian's portsentry.conf of 1.2, without its comments.
DEBIAN = """\
# PortSentry Configuration
#KILL_ROUTE="/sbin/route add $TARGET$ 333.444.555.666"

TCP_PORTS="1,11,15,79"
UDP_PORTS="1,7,9,69"
ADVANCED_PORTS_TCP="1024"
ADVANCED_PORTS_UDP="512"
ADVANCED_EXCLUDE_TCP="113,139"
ADVANCED_EXCLUDE_UDP="520,138,137,67"
IGNORE_FILE="/etc/portsentry/portsentry.ignore"
HISTORY_FILE="/var/lib/portsentry/portsentry.history"
BLOCKED_FILE="/var/lib/portsentry/portsentry.blocked"
RESOLVE_HOST = "1"
BLOCK_UDP="0"
BLOCK_TCP="2"
KILL_ROUTE="/sbin/route add -host $TARGET$ reject"
KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"
KILL_RUN_CMD="/bin/notify $TARGET$ $PORT$ $MODE$"
KILL_RUN_CMD_FIRST = "1"
SCAN_TRIGGER="3"
PORT_BANNER="** UNAUTHORIZED ACCESS PROHIBITED **"
"""
FILES = 'IGNORE_FILE="/i"\nHISTORY_FILE="/h"\nBLOCKED_FILE="/b"\n'
V4, V6 = ip_address("192.0.2.7"), ip_address("2001:db8::7")


def problems(text: bytes | str, mode: Mode | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        parse(text, "x.conf", mode)
    return error.value.problems


def command(text: str) -> KillCommand:
    made = parse(f'KILL_RUN_CMD="{text}"', "x").kill_run_cmd
    assert made is not None
    return made


def test_every_option_of_1_2_is_read() -> None:
    conf = parse(DEBIAN, "x")
    assert conf == PortsentryConf(
        tcp_ports=((1, 1), (11, 11), (15, 15), (79, 79)),
        udp_ports=((1, 1), (7, 7), (9, 9), (69, 69)),
        advanced_tcp=1024,
        advanced_udp=512,
        exclude_tcp=((113, 113), (139, 139)),
        exclude_udp=((67, 67), (137, 138), (520, 520)),
        ignore_file=Path("/etc/portsentry/portsentry.ignore"),
        history_file=Path("/var/lib/portsentry/portsentry.history"),
        blocked_file=Path("/var/lib/portsentry/portsentry.blocked"),
        resolve_host=True,
        block_tcp=Blocking.COMMAND,
        block_udp=Blocking.LOG,
        kill_route=KillCommand(
            text="/sbin/route add -host $TARGET$ reject", argv=("/sbin/route", "add", "-host", "$TARGET$", "reject")
        ),
        kill_hosts_deny=DenyRule(text="ALL: $TARGET$ : DENY"),
        kill_run_cmd=KillCommand(
            text="/bin/notify $TARGET$ $PORT$ $MODE$", argv=("/bin/notify", "$TARGET$", "$PORT$", "$MODE$")
        ),
        kill_run_cmd_first=True,
        scan_trigger=3,
        port_banner="** UNAUTHORIZED ACCESS PROHIBITED **",
    )
    for mode in Mode:
        if mode.version == 1:
            assert parse(DEBIAN, "x", mode) == conf


def test_an_empty_file_means_what_portsentry_assumes() -> None:
    conf = parse("", "x")
    assert conf == PortsentryConf()
    assert (conf.advanced_tcp, conf.block_tcp, conf.scan_trigger) == (1024, Blocking.LOG, 0)


@pytest.mark.parametrize(
    "line",
    [
        'TCP_PORTS="1-3"',
        'TCP_PORTS = "1-3"',
        'TCP_PORTS\t=\t"1-3"',
        'TCP_PORTS="1-3"   ',
        'TCP_PORTS="1-3"\r',
        'TCP_PORTS="1-3" # ports',
        'TCP_PORTS="3, 1,2"',
        '\ufeffTCP_PORTS="1-3"',
        '  # a comment\n \t\n#"\nTCP_PORTS="1-3"',
    ],
)
def test_a_setting_is_read_however_it_is_spaced(line: str) -> None:
    assert parse(line, "x").tcp_ports == ((1, 3),)


def test_a_comment_may_be_in_any_encoding() -> None:
    assert parse('# gesch\xfctzt\nTCP_PORTS="1"'.encode("latin-1"), "x").tcp_ports == ((1, 1),)


@pytest.mark.parametrize("key", ["KILL_ROUTE", "KILL_HOSTS_DENY", "KILL_RUN_CMD", "BLOCKED_FILE", "HISTORY_FILE"])
def test_an_empty_value_turns_an_option_off(key: str) -> None:
    assert parse(f'{key}=""', "x") == PortsentryConf()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('FOO="1"', "line 2: FOO: unknown option"),
        ('KILL_ROUT="x"', "line 2: KILL_ROUT: unknown option, did you mean KILL_ROUTE?"),
        ('tcp_ports="1"', "line 2: tcp_ports: unknown option, did you mean TCP_PORTS?"),
        ("TCP_PORTS=1", "line 2: 'TCP_PORTS': its value should stand in double quotes: KEY=\"value\""),
        ('TCP_PORTS "1"', 'line 2: \'TCP_PORTS "1"\' is not a setting: write KEY="value"'),
        ("nonsense", "line 2: 'nonsense' is not a setting: write KEY=\"value\""),
        ('BLOCK_TCP="1', "line 2: 'BLOCK_TCP': its closing quote is missing"),
        (
            ' BLOCK_TCP="1"',
            "line 2: 'BLOCK_TCP': blanks before a key: 1.2 does not see such a line and 2.x refuses it",
        ),
        (
            'KILL_RUN_CMD="/bin/echo "a" b"',
            "line 2: 'KILL_RUN_CMD': text after the closing quote, which PortSentry drops: use single quotes "  # noqa: ISC004
            "inside of a value",
        ),
        ('BLOCK_TCP="3"', "line 2: BLOCK_TCP: should be 0 (log), 1 (block) or 2 (KILL_RUN_CMD only), not '3'"),
        ('BLOCK_UDP=""', "line 2: BLOCK_UDP: should be 0 (log), 1 (block) or 2 (KILL_RUN_CMD only), not ''"),
        ('RESOLVE_HOST="2"', "line 2: RESOLVE_HOST: should be 0 or 1, not '2'"),
        ('KILL_RUN_CMD_FIRST="yes"', "line 2: KILL_RUN_CMD_FIRST: should be 0 or 1, not 'yes'"),
        ('SCAN_TRIGGER="-1"', "line 2: SCAN_TRIGGER: should be a whole number from 0 to 1000000, not '-1'"),
        ('SCAN_TRIGGER="٣"', "line 2: SCAN_TRIGGER: should be a whole number from 0 to 1000000, not '٣'"),
        ('ADVANCED_PORTS_TCP="0"', "line 2: ADVANCED_PORTS_TCP: should be a whole number from 1 to 65536, not '0'"),
        ('UDP_PORTS="70000"', "line 2: UDP_PORTS: '70000' is not a range within 1-65535"),
        ('BLOCKED_FILE="blocked"', "line 2: BLOCKED_FILE: should be a file's absolute path, not 'blocked'"),
        ('BLOCKED_FILE="/"', "line 2: BLOCKED_FILE: should be a file's absolute path, not '/'"),
        (
            'KILL_ROUTE="/bin/true"',
            "line 2: KILL_ROUTE: should have $TARGET$ in it: PortSentry does not run it without",
        ),
        (
            'KILL_HOSTS_DENY="ALL: ALL"',
            'line 2: KILL_HOSTS_DENY: should be one line of hosts.deny with $TARGET$ in it, like "ALL: $TARGET$"',
        ),
        (
            'KILL_HOSTS_DENY="ALL: $TARGET$ \\"',
            'line 2: KILL_HOSTS_DENY: should be one line of hosts.deny with $TARGET$ in it, like "ALL: $TARGET$"',
        ),
        ('PORT_BANNER="' + "x" * 501 + '"', "line 2: PORT_BANNER: should be at most 500 bytes long"),
        (
            'KILL_ROUTE="/bin/x\t$TARGET$"',
            "line 2: KILL_ROUTE: should have no control characters: 1.2 stops reading there",
        ),
    ],
)
def test_a_wrong_line_is_named_with_its_reason(line: str, problem: str) -> None:
    assert problems(f"# first\n{line}\n") == (problem,)


def test_a_value_that_is_no_text_is_named() -> None:
    assert problems(b'PORT_BANNER="\xff"') == ("line 1: PORT_BANNER: is not UTF-8 text",)


def test_an_option_given_twice_names_both_lines() -> None:
    assert problems('BLOCK_TCP="1"\n\nBLOCK_TCP="1"') == (
        "line 3: BLOCK_TCP: stands in line 1 already; 1.2 obeys the first, 2.x the last: keep one",
    )


def test_all_problems_are_told_at_once() -> None:
    told = problems('FOO="1"\nBLOCK_TCP="9"\nUDP_PORTS="1"\nUDP_PORTS="2"', Mode.TCP)
    assert [problem.partition(": ")[0] for problem in told] == [
        "line 1",
        "line 2",
        "line 4",
        "TCP_PORTS",
        "IGNORE_FILE",
        "HISTORY_FILE",
        "BLOCKED_FILE",
    ]


def test_a_file_of_another_kind_does_not_flood_its_reader() -> None:
    told = problems("nonsense\n" * 5000)
    assert len(told) == MAX_PROBLEMS + 1
    assert told[-1] == "and 4900 more"


@pytest.mark.parametrize("mode", [mode for mode in Mode if mode.version == 1])
def test_1_2_needs_its_files(mode: Mode) -> None:
    assert problems('TCP_PORTS="1"\nUDP_PORTS="1"\nHISTORY_FILE=""', mode) == (
        "IGNORE_FILE: should name a file: PortSentry 1.2 does not start without",
        "line 3: HISTORY_FILE: should name a file: PortSentry 1.2 does not start without",
        "BLOCKED_FILE: should name a file: PortSentry 1.2 does not start without",
    )


def test_what_a_refused_value_would_have_said_is_not_told_to_be_missing() -> None:
    told = problems('TCP_PORTS="x"\nIGNORE_FILE="i"\nHISTORY_FILE="/h"\nBLOCKED_FILE="/b"', Mode.TCP)
    assert [problem[:6] for problem in told] == ["line 1", "line 2"]


@pytest.mark.parametrize(
    ("mode", "text", "problem"),
    [
        (Mode.STCP, 'UDP_PORTS="1"', "TCP_PORTS: no port is left to watch in mode stcp: name some"),
        (Mode.UDP, 'TCP_PORTS="1"\nUDP_PORTS=""', "line 5: UDP_PORTS: no port is left to watch in mode udp: name some"),
        (
            Mode.ATCP,
            'ADVANCED_PORTS_TCP="5"\nADVANCED_EXCLUDE_TCP="1-4"',
            "line 4: ADVANCED_PORTS_TCP: no port is left to watch in mode atcp: name some",
        ),
        (Mode.STEALTH, "", "TCP_PORTS or UDP_PORTS: no port is left to watch in mode stealth: name some"),
        (
            Mode.STEALTH,
            'TCP_PORTS="1"\nADVANCED_PORTS_TCP="5"',
            (
                "line 5: ADVANCED_PORTS_TCP: is PortSentry 1.2's alone: start one of its modes (-atcp), "
                "or put the ports into TCP_PORTS and UDP_PORTS"
            ),
        ),
        (Mode.CONNECT, 'TCP_PORTS="1"\nBLOCK_TCP="2"', "line 5: BLOCK_TCP: 2 runs KILL_RUN_CMD, which is not set"),
        (
            Mode.CONNECT,
            'TCP_PORTS="1"\nBLOCK_UDP="1"\nKILL_RUN_CMD="/bin/x"',
            "line 5: BLOCK_UDP: 1 needs KILL_ROUTE or KILL_HOSTS_DENY, and neither is set",
        ),
        (
            Mode.TCP,
            'TCP_PORTS="1"\nSCAN_TRIGGER="51"',
            "line 5: SCAN_TRIGGER: should be at most 50: above, PortSentry 1.2 acts at once",
        ),
    ],
)
def test_what_portsentry_refuses_in_a_mode_is_refused(mode: Mode, text: str, problem: str) -> None:
    assert problems(FILES + text, mode) == (problem,)


def test_2_x_needs_no_file() -> None:
    conf = parse('TCP_PORTS="1"\nBLOCKED_FILE=""', "x", Mode.STEALTH)
    assert (conf.blocked_path(Mode.STEALTH), conf.history_file, conf.ignore_file) == (None, None, None)


def test_1_2_keeps_a_blocked_file_for_each_mode() -> None:
    conf = parse(FILES, "x")
    assert conf.blocked_path(Mode.AUDP) == Path("/b.audp")
    assert conf.blocked_path(Mode.STEALTH) == Path("/b")


def test_advanced_modes_watch_the_ports_below_the_threshold_but_the_excluded_ones() -> None:
    # 1.2 said of ADVANCED_PORTS_TCP="1024" that it watches the first 1024 ports, and noticed 1023, not 1024.
    conf = parse(DEBIAN, "x")
    assert conf.watched(Protocol.TCP, Mode.ATCP) == ((1, 112), (114, 138), (140, 1023))
    assert conf.watched(Protocol.UDP, Mode.AUDP) == ((1, 66), (68, 136), (139, 511))


def test_a_mode_watches_its_own_protocol() -> None:
    conf = parse('TCP_PORTS="1"\nUDP_PORTS="2"', "x")
    assert [conf.watched(Protocol.TCP, mode) for mode in (Mode.STCP, Mode.UDP, Mode.CONNECT)] == [
        ((1, 1),),
        (),
        ((1, 1),),
    ]
    assert [conf.watched(Protocol.UDP, mode) for mode in (Mode.STCP, Mode.SUDP, Mode.STEALTH)] == [
        (),
        ((2, 2),),
        ((2, 2),),
    ]


def test_blocking_is_by_protocol() -> None:
    conf = parse('BLOCK_TCP="1"\nBLOCK_UDP="2"', "x")
    assert (conf.blocking(Protocol.TCP), conf.blocking(Protocol.UDP)) == (Blocking.BLOCK, Blocking.COMMAND)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/sbin/iptables -I INPUT -s $TARGET$/32 -j DROP", "/sbin/iptables|-I|INPUT|-s|192.0.2.7/32|-j|DROP"),
        ("route add -host $TARGET$  reject", "route|add|-host|192.0.2.7|reject"),
        ("/bin/x --port=$PORT$ 50%s ! -i lo", "/bin/x|--port=23|50%s|!|-i|lo"),
        ("/bin/x 'a b|c;$(d)' '$TARGET$ $MODE$'", "/bin/x|a b|c;$(d)|192.0.2.7 atcp"),
        ("/bin/x $TARGET$$PORT$", "/bin/x|192.0.2.723"),
    ],
)
def test_a_plain_command_is_run_without_a_shell(text: str, words: str) -> None:
    plain = command(text)
    assert not plain.shell
    assert "|".join(plain.substituted(V4, 23, Mode.ATCP)) == words


@pytest.mark.parametrize(
    "text",
    [
        "/bin/echo $TARGET$ >> /tmp/x",
        "a; b",
        "a | b",
        "a && b",
        "a $(b)",
        "a `b`",
        "a $HOME",
        "a $TARGET$PORT$",
        "a *.x",
        "a [b]",
        "a ~",
        "a b\\ c",
        "it's",
        "X=1 a",
        "! a",
        "cd /tmp",
        ". /etc/x",
        "''",
    ],
)
def test_a_command_that_only_a_shell_can_read_is_left_to_one(text: str) -> None:
    assert command(text).shell
    assert command(text).substituted(V4, 23, Mode.ATCP)[:2] == ("/bin/sh", "-c")


def test_a_shell_gets_the_text_with_its_tokens_filled_in() -> None:
    piped = command("echo $TARGET$ $PORT$ $MODE$ | cat; true")
    assert piped.substituted(V6, 65535, Mode.STEALTH)[2] == "echo 2001:db8::7 65535 stealth | cat; true"
    assert piped.shown(V6, 65535, Mode.STEALTH) == "echo 2001:db8::7 65535 stealth | cat; true"


def test_only_addresses_ports_and_modes_are_filled_in() -> None:
    piped = command("echo $TARGET$ $PORT$ $MODE$;")
    # A zone is text: an interface may have nearly any name.
    assert piped.shown(ip_address("fe80::1%;reboot"), 1, Mode.TCP) == "echo fe80::1 1 tcp;"
    wrong: list[tuple[Any, Any, Any]] = [
        ("192.0.2.7;reboot", 1, Mode.TCP),
        (V4, 65536, Mode.TCP),
        (V4, -1, Mode.TCP),
        (V4, "1;reboot", Mode.TCP),
        (V4, 1, "tcp;reboot"),
    ]
    for address, port, mode in wrong:
        with pytest.raises((ValueError, TypeError)):
            piped.substituted(address, port, mode)


@pytest.mark.parametrize(
    ("rule", "v4", "v6"),
    [
        ("ALL: $TARGET$ : DENY", "ALL: 192.0.2.7 : DENY", "ALL: [2001:db8::7] : DENY"),
        ("ALL: [$TARGET$]", "ALL: 192.0.2.7", "ALL: [2001:db8::7]"),
        ("sshd: $TARGET$: x $PORT$ $MODE$", "sshd: 192.0.2.7: x 23 udp", "sshd: [2001:db8::7]: x 23 udp"),
    ],
)
def test_an_ipv6_address_stands_in_brackets_in_hosts_deny(rule: str, v4: str, v6: str) -> None:
    made = parse(f'KILL_HOSTS_DENY="{rule}"', "x").kill_hosts_deny
    assert made is not None
    assert made.line(V4, 23, Mode.UDP) == v4
    assert made.line(V6, 23, Mode.UDP) == v6


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "portsentry.conf"
    path.write_text(DEBIAN)
    assert load(path, Mode.ATCP) == parse(DEBIAN, "x")


def test_what_is_no_file_is_told_with_its_path(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for path, reason in [
        (tmp_path / "none", "no such file"),
        (tmp_path, "s a directory"),
        (tmp_path / "pipe", "is not a regular file"),
        (tmp_path / "large", "is over 1 MiB"),
        (Path("a\0b"), "cannot be read"),
    ]:
        with pytest.raises(FatalError, match=reason):
            load(path)


def test_the_error_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "portsentry.conf"
    path.write_text('BLOCK_TCP="5"')
    with pytest.raises(FatalError, match=f"^{path}: line 1: BLOCK_TCP: should be"):
        load(path)
