"""Any file is a configuration or a list of complaints, any arguments a command or one; no shell gets foreign text."""

import re
import shlex
from ipaddress import IPv4Address, IPv6Address

from hypothesis import example, given
from hypothesis import strategies as st

from jailbridge.config.load import ConfigError
from jailbridge.config.portsentry_conf import OPTIONS, KillCommand, Mode, PortsentryConf, parse
from jailbridge.errors import FatalError
from jailbridge.portsentry import flags

KEYS = st.sampled_from([*OPTIONS, "NONSENSE"])
VALUES = st.text(max_size=30) | st.sampled_from(
    ["1", "2", "1-1023", "/x", "ALL: $TARGET$", "/sbin/route add $TARGET$", "1024", "a | b", ""]
)
LINES = st.builds(
    "{}{}{}{}".format,
    KEYS,
    st.sampled_from(["=", " = ", "\t=", " "]),
    VALUES.map('"{}"'.format) | VALUES,
    st.sampled_from(["", " # x", "\r", " x"]),
)
FILES = st.binary(max_size=200) | st.lists(LINES, max_size=8).map("\n".join) | st.text(max_size=200)
MODES = st.none() | st.sampled_from(Mode)
SOURCES = st.builds(IPv4Address, st.integers(0, 2**32 - 1)) | st.builds(
    lambda number, zone: IPv6Address(f"{IPv6Address(number)}{zone}"),
    st.integers(0, 2**128 - 1),
    st.sampled_from(["", "%eth0", "%;x", "%$(x)"]),
)
PIECES = ["$TARGET$", "$PORT$", "$MODE$", "$", " ", "  ", "'", "/bin/x", "-s", "a|b", ";", "\\", "*", "%s", "#"]
COMMANDS = st.lists(st.sampled_from(PIECES) | st.text("abc $'-/{}!=", max_size=5), max_size=8).map("".join)
FLAGS = [
    *["-tcp", "-udp", "-atcp", "--config", "--config=/x", "--foreground", "-c", "-cx", "--conf", "/x", "-m", "raw"],
    *["-i", "ALL", "eth0", "--interface=eth0", "-l", "stdout", "-D", "-Dv", "-LSvd", "--stealth", "--connect", "-h"],
    *["--debug=1", "--", "-", "--version"],
]
ARGUMENTS = st.lists(st.sampled_from(FLAGS) | st.text(max_size=8), max_size=6)


@given(text=FILES, mode=MODES)
@example(text="\udcff", mode=None)
@example(text='BLOCK_TCP="\udcff"', mode=None)
def test_any_file_is_a_configuration_or_complaints(text: bytes | str, mode: Mode | None) -> None:
    try:
        conf = parse(text, "x", mode)
    except ConfigError as error:
        told = error.problems
        assert told
        assert all(problem.isprintable() for problem in told)
        assert mode is not None or all(re.match(r"line \d+: ", problem) for problem in told)
        return
    assert isinstance(conf, PortsentryConf)
    if mode is not None:
        assert any(conf.watched(protocol, mode) for protocol in mode.protocols)


@given(argv=ARGUMENTS)
def test_any_arguments_are_a_command_or_one_line_of_complaint(argv: list[str]) -> None:
    try:
        asked = flags.parse(argv)
    except FatalError as error:
        told = str(error)
        assert told.isprintable()
        return
    assert isinstance(asked, flags.Asked) or asked.interfaces


@given(text=COMMANDS, address=SOURCES, port=st.integers(0, 65535), mode=st.sampled_from(Mode))
def test_a_command_gains_nothing_but_the_three_words(
    text: str, address: IPv4Address | IPv6Address, port: int, mode: Mode
) -> None:
    command = parse(f'KILL_RUN_CMD="{text}"', "x").kill_run_cmd
    if command is None:
        return
    shown = command.shown(address, port, mode)
    assert len(shown) <= len(text) + 45 * text.count("$")
    bare = text.replace("$TARGET$", "A").replace("$PORT$", "A").replace("$MODE$", "A")
    added = r"[0-9a-f:.]+|tcp|udp|[sa]tcp|[sa]udp|stealth|connect"
    assert re.fullmatch(re.escape(bare).replace("A", f"(?:{added})"), shown)
    words = command.substituted(address, port, mode)
    if command.shell:
        assert words == ("/bin/sh", "-c", shown)
    else:
        # What a source or port fills in never makes another word.
        assert list(words) == shlex.split(shown)


@given(text=COMMANDS)
def test_without_a_shell_a_command_has_the_words_of_its_text(text: str) -> None:
    command = parse(f'KILL_RUN_CMD="{text}"', "x").kill_run_cmd
    assert command is None or command == KillCommand(text=text, argv=command.argv)
    if command is not None and command.argv is not None:
        assert list(command.argv) == shlex.split(text)
