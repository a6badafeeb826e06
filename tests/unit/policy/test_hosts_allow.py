"""Each line is held against the real TCP wrappers too: what is obeyed, they let in; what they deny, is not obeyed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from jailbridge import process
from jailbridge.model.network import NetworkSet, network_text, parse_network
from jailbridge.policy.hosts_allow import MAX_LINE, parse_hosts_allow

HERE, HERE6 = "192.0.2.7", "2001:db8::7"

# Text, and the networks that it makes exempt.
OBEYED = [
    ("ALL: 192.0.2.7\n", ["192.0.2.7"]),
    ("  all : 192.0.2.7 \t\r\n", ["192.0.2.7"]),
    ("ALL:192.0.2.7:ALLOW\n", ["192.0.2.7"]),
    ("ALL: 192.0.2.7 : allow\n", ["192.0.2.7"]),
    ("ALL: 198.51.100.1,192.0.2.7 203.0.113.0/28\n", ["198.51.100.1", "192.0.2.7", "203.0.113.0/28"]),
    ("ALL: 192.0.2.0/24\n", ["192.0.2.0/24"]),
    ("ALL: 192.0.2.0/024\n", ["192.0.2.0/24"]),
    ("ALL: 192.0.2.7/32\n", ["192.0.2.7"]),
    ("ALL: 192.0.2.0/255.255.255.0\n", ["192.0.2.0/24"]),
    ("ALL: 192.0.2.6/255.255.255.254\n", ["192.0.2.6/31"]),
    ("ALL: 192.0.2.\n", ["192.0.2.0/24"]),
    ("ALL: 192.\n", ["192.0.0.0/8"]),
    ("ALL: [2001:db8::7]\n", ["2001:db8::7"]),
    ("ALL: [2001:DB8:0:0::7]\n", ["2001:db8::7"]),
    ("ALL: [2001:db8::]/32\n", ["2001:db8::/32"]),
    ("ALL: [2001:db8::7]/32 198.51.100.7\n", ["2001:db8::/32", "198.51.100.7"]),
    ("ALL: 198.51.100.7 \\\n 192.0.2.7\n", ["198.51.100.7", "192.0.2.7"]),
    ("# ALL: 198.51.100.7\n\n \t\nALL: 192.0.2.7\n", ["192.0.2.7"]),
    ("sshd: 198.51.100.7\nALL: 192.0.2.7\n", ["192.0.2.7"]),
    ("ALL: 198.51.100.0/24 : DENY\nALL: 192.0.2.7\n", ["192.0.2.7"]),
]
# Text, and the reason why nothing of it is obeyed; whether TCP wrappers let the host in all the same.
NOT_OBEYED = [
    ("ALL: ALL\n", "'ALL' is not a literal address or network", True),
    ("sshd: 192.0.2.7\n", "it is for 'sshd', and not for ALL", True),
    ("ALL EXCEPT vsftpd: 192.0.2.7\n", "it is for 'ALL EXCEPT vsftpd', and not for ALL", True),
    ("ALL, sshd: 192.0.2.7\n", "it is for 'ALL, sshd', and not for ALL", True),
    ("ALL: ALL EXCEPT 198.51.100.7\n", "'ALL' is not a literal address or network", True),
    ("ALL: 192.0.2.0/24 EXCEPT 198.51.100.7\n", "'EXCEPT' is not a literal address or network", True),
    ("ALL: 192.0.2.0/24 EXCEPT 192.0.2.7\n", "'EXCEPT' is not a literal address or network", False),
    ("ALL: KNOWN 192.0.2.7\n", "'KNOWN' is not a literal address or network", True),
    ("ALL: LOCAL\n", "'LOCAL' is not a literal address or network", False),
    ("ALL: .example.com\n", "'.example.com' is not a literal address or network", False),
    ("ALL: host.example.com\n", "'host.example.com' is not a literal address or network", False),
    ("ALL: /nosuchfile\n", "'/nosuchfile' is not a literal address or network", False),
    ("ALL: @netgroup\n", "'@netgroup' is not a literal address or network", False),
    ("ALL: root@192.0.2.7\n", "'root@192.0.2.7' is not a literal address or network", None),
    ("ALL: 192.0.2.*\n", "'192.0.2.*' is not a literal address or network", None),
    ("ALL: 192.0.2.7 # office\n", "'#' is not a literal address or network", True),
    ("ALL: 192.0.2.7 : DENY\n", "it has an option other than ALLOW: 'DENY'", False),
    ("ALL: 192.0.2.7 : nice 1 : DENY\n", "it has an option other than ALLOW: 'nice 1, DENY'", False),
    ("ALL: 192.0.2.7 : spawn (/bin/true)\n", "it has an option other than ALLOW: 'spawn (/bin/true)'", None),
    ("ALL: 192.0.2.7:\n", "it has an option other than ALLOW: ''", False),
    ("ALL: 192.0.2.7", "TCP wrappers pass over a last line without its end: add a newline", False),
    ("ALL: 198.51.100.7 \\\n", "TCP wrappers pass over a last line without its end: add a newline", False),
    ("ALL 192.0.2.7\n", "it has no ':' between daemons and clients", False),
    (" # ALL\n", "it has no ':' between daemons and clients", False),
    ("ALL: ,\n", "it names no client", False),
    ("ALL: 192.0.2.7/24\n", "'192.0.2.7/24' matches nobody: its address has bits outside its mask", False),
    ("ALL: 192.0.2.0/0.0.0.255\n", "'0.0.0.255' is not a network mask", False),
    ("ALL: 192.0.2.0/24.0.0.0\n", "'24.0.0.0' is not a network mask", False),
    ("ALL: 192.0.2.7/255.255.255.255\n", "TCP wrappers do not take '255.255.255.255': leave it out", False),
    ("ALL: 192.0.2./24\n", "'192.0.2.' is not an IP address", False),
    ("ALL: 192.0.2.0/33\n", "'192.0.2.0/33' is not an IP network", False),
    ("ALL: 192.0.2\n", "'192.0.2' is not an IP address", False),
    ("ALL: 192.0.02.7\n", "'192.0.02.7' is not an IP address", False),
    ("ALL: 192.0.2.300\n", "'192.0.2.300' is not an IP address", False),
    ("ALL: 192.0.2.7\x0b\n", "'192.0.2.7\\x0b' is not a literal address or network", False),
    ("ALL: [192.0.2.7]\n", "'[192.0.2.7]' is not a literal address or network", False),
    ("ALL: [::ffff:192.0.2.7]\n", "'[::ffff:192.0.2.7]' is not a literal address or network", False),
    ("ALL: [2001:db8::/32]\n", "'[2001:db8::/32]' is not a literal address or network", False),
    ("ALL: 0.0.0.0/0.0.0.0\n", "'0.0.0.0/0.0.0.0' is so large that nobody", None),
    ("ALL: 0.0.0.0/0\n", "'0.0.0.0/0' is so large that nobody", None),
    ("ALL: 192.0.0.0/7\n", "'192.0.0.0/7' is so large that nobody", None),
    ("ALL: [2000::]/15\n", "'[2000::]/15' is so large that nobody", None),
    ("ALL: 192.0.2.0/24 : DENY\nALL: 192.0.2.7\n", "line 1 denies 192.0.2.7 first", False),
    ("ALL: ALL : DENY\nALL: 192.0.2.7\n", "line 1 denies 192.0.2.7 first", False),
    ("# c \\\nALL: 192.0.2.7\n", None, False),
    ("\\\n# ALL: 192.0.2.7\n", None, False),
    ("", None, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "networks"), OBEYED)
def test_a_literal_line_is_obeyed(text: str, networks: list[str]) -> None:
    assert [network_text(network) for network, _ in parse_hosts_allow(text).networks] == networks


@pytest.mark.parametrize(("text", "reason"), [(text, reason) for text, reason, _ in NOT_OBEYED])
def test_any_other_line_is_told_with_its_reason(text: str, reason: str | None) -> None:
    read = parse_hosts_allow(text)
    assert read.networks == ()
    if reason is None:
        assert read.not_obeyed == ()
    else:
        assert read.not_obeyed[-1][1].startswith(reason)


def test_a_line_is_named_by_the_number_of_its_first_part() -> None:
    read = parse_hosts_allow("#\n\nALL: \\\n\\\n192.0.2.7\nsshd: \\\nLOCAL\nALL: 192.0.2.8\nx\n")
    assert [number for _, number in read.networks] == [3, 8]
    assert [number for number, _ in read.not_obeyed] == [6, 9]


def test_a_line_that_tcp_wrappers_cannot_hold_is_not_obeyed() -> None:
    line = "ALL: 192.0.2.7".ljust(MAX_LINE - 1) + "\n"
    assert len(parse_hosts_allow(line).networks) == 1
    assert parse_hosts_allow(" " + line).not_obeyed[0][1].startswith("it is longer than the 2047 bytes")


def test_a_huge_file_is_read_in_linear_time() -> None:
    for text in ("ALL: " + "[:" * 2_000_000, "ALL: [" * 700_000, "x\\\n" * 1_000_000):
        assert parse_hosts_allow(text).networks == ()


@pytest.fixture
def wrappers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], bool]:
    """Ask tcpdmatch whether hosts.allow of this text lets a host in; hosts.deny turns everybody away."""
    monkeypatch.chdir(tmp_path)
    Path("hosts.deny").write_text("ALL: ALL\n")

    def lets_in(text: str, host: str) -> bool:
        Path("hosts.allow").write_bytes(text.encode())
        done = process.run(["tcpdmatch", "-d", "sshd", host])
        assert ("granted" in done.out) != ("denied" in done.out), done
        return "granted" in done.out

    return lets_in


@pytest.mark.e2e
@pytest.mark.parametrize(("text", "networks"), OBEYED)
def test_tcp_wrappers_let_in_whom_a_line_makes_exempt(
    wrappers: Callable[[str, str], bool], text: str, networks: list[str]
) -> None:
    exempt = NetworkSet(map(parse_network, networks))
    for host in (HERE, HERE6):
        assert wrappers(text, host) is (exempt.covering(parse_network(host)) is not None)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("text", "lets_in"), [(text, lets_in) for text, _, lets_in in NOT_OBEYED if lets_in is not None]
)
def test_what_tcp_wrappers_do_with_a_line_that_is_not_obeyed(
    wrappers: Callable[[str, str], bool], text: str, lets_in: bool
) -> None:
    assert wrappers(text, HERE) is lets_in


@pytest.mark.e2e
def test_the_longest_line_is_that_of_tcp_wrappers(wrappers: Callable[[str, str], bool]) -> None:
    line = "ALL: 192.0.2.7".ljust(MAX_LINE - 1) + "\n"
    assert wrappers(line, HERE)
    assert not wrappers(" " + line, HERE)
