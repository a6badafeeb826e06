"""What an old configuration becomes; the real loader reads every one of them."""

import tomllib

import pytest

from jailbridge.config import Settings, parse
from jailbridge.config.settings import EvidenceRule, SensorMode, Target
from jailbridge.importing import old_settings
from jailbridge.importing.configuration import LAN, Around, Wishes, drafted, placeholders
from jailbridge.importing.notes import Note, Notes
from jailbridge.importing.toml import Entry, written
from tests.unit.importing.conftest import ARTICLE_1, ARTICLE_2, Machine


def made(
    machine: Machine, notes: Notes | None = None, *, keep: bool = False, jails: list[str] | None = None
) -> tuple[Settings, str]:
    notes = notes if notes is not None else Notes()
    asked = machine.asked()
    old = old_settings.read(asked.conf, asked.defaults, notes)
    entries = drafted(old, Around(jails=jails), Wishes(keep_portsentry=keep), notes)
    text = written(["head"], entries, LAN)
    return parse(text, "written"), text


def said(notes: list[Note]) -> str:
    return "\n".join(f"{note.place}: {note.text}" for note in notes)


def test_article_1_migrates(machine: Machine) -> None:
    machine.conf(ARTICLE_1)
    notes = Notes()
    settings, text = made(machine, notes)
    assert settings.sensor.mode is SensorMode.STEALTH
    assert settings.sensor.tcp_ports == ((1, 1023),)
    assert settings.sensor.exclude_udp_ports == ((67, 67), (137, 138), (520, 520))
    assert settings.sensor.trigger_ports == 1
    assert settings.stores.hosts_deny.rule == "ALL: {address} : DENY"
    assert [command.run for command in settings.respond.command] == [
        ("/usr/local/bin/notify", "{address}", "{port}", "{mode}")
    ]
    assert settings.policy.allow_files == (machine.ignore,)
    assert settings.policy.enforce
    assert '# ban_for = "10m"' in text
    assert "[[policy.network]] ban_for ends a ban" in said(notes.by_hand)
    assert not notes.not_understood


def test_article_2_migrates(machine: Machine) -> None:
    machine.conf(ARTICLE_2)
    settings, _ = made(machine)
    assert settings.stores.firewall.target is Target.CHAOS
    assert settings.stores.hosts_deny.rule == "ALL: {address}"
    assert settings.history.path == machine.history
    assert [tail.path for tail in settings.tail] == [machine.history]


def test_the_modes_with_ports_are_those_of_the_lists(machine: Machine) -> None:
    machine.conf(ARTICLE_1 + 'PORT_BANNER="go away"\n', "tcp", "")
    settings, _ = made(machine)
    assert settings.sensor.mode is SensorMode.CONNECT
    assert settings.sensor.tcp_ports == ((1, 1), (11, 11), (15, 15), (79, 79))
    assert (settings.sensor.exclude_tcp_ports, settings.sensor.udp_ports) == ((), ())
    assert settings.sensor.banner == "go away"


@pytest.mark.parametrize(("mode", "evidence"), [("tcp", EvidenceRule.HANDSHAKE), ("stcp", EvidenceRule.SPOOFABLE)])
def test_a_portsentry_that_stays_detects_alone(machine: Machine, mode: str, evidence: EvidenceRule) -> None:
    machine.conf(ARTICLE_2, mode)
    notes = Notes()
    settings, _ = made(machine, notes, keep=True)
    assert settings.sensor.mode is SensorMode.OFF
    assert [(tail.path, tail.evidence) for tail in settings.tail] == [(machine.history, evidence)]
    assert 'BLOCK_TCP is 1: set it to "0"' in said(notes.by_hand)


def test_where_nothing_was_blocked_nothing_is_without_a_word(machine: Machine) -> None:
    machine.conf('BLOCK_TCP="0"\nBLOCK_UDP="0"\nKILL_RUN_CMD="/bin/x $TARGET$"\n')
    notes = Notes()
    settings, _ = made(machine, notes)
    assert not settings.policy.enforce
    assert not settings.respond.command
    assert "KILL_RUN_CMD was never run" in said(notes.left_alone)
    assert made(machine, jails=["scans"])[0].stores.fail2ban.jail == "scans"
    assert made(machine, jails=["portsentry"])[0].policy.enforce, "fail2ban blocked"


@pytest.mark.parametrize(
    ("route", "target", "told"),
    [
        ("/sbin/iptables -I INPUT -s $TARGET$ -j DROP", Target.DROP, ""),
        ("iptables -I INPUT -s $TARGET$ -j REJECT --reject-with tcp-reset", Target.REJECT_RESET, ""),
        ("iptables -I INPUT 3 -s $TARGET$ -j TARPIT", Target.TARPIT, "had a number"),
        ("iptables -A INPUT -p tcp -s $TARGET$ -j REJECT", Target.REJECT, "came last"),
        ("/sbin/route add -host $TARGET$ reject", Target.DROP, "leads nowhere"),
        ("/sbin/ipfwadm -I -i deny -S $TARGET$ -o", Target.DROP, "none that we know"),
        (
            "iptables -I INPUT -s $TARGET$ -j LOG --log-prefix 'x' && iptables -I INPUT -s $TARGET$ -j CHAOS",
            Target.CHAOS,
            "the rest of the shell's line is not",
        ),
    ],
)
def test_kill_route_says_what_the_firewall_does(machine: Machine, route: str, target: Target, told: str) -> None:
    machine.conf(f'BLOCK_TCP="1"\nBLOCK_UDP="1"\nKILL_ROUTE="{route}"\n')
    notes = Notes()
    settings, _ = made(machine, notes)
    assert settings.stores.firewall.target is target
    assert told in said(notes.by_hand)


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("ALL: $TARGET$ : DENY", "ALL: {address} : DENY"),
        ("sshd, in.ftpd: $TARGET$", "sshd, in.ftpd: {address}"),
        ("ALL: $TARGET$ : spawn /bin/x", None),
        ("ALL: $TARGET$ # $PORT$", None),
    ],
)
def test_only_a_plain_rule_of_hosts_deny_is_kept(machine: Machine, rule: str, kept: str | None) -> None:
    machine.conf(f'BLOCK_TCP="1"\nBLOCK_UDP="1"\nKILL_HOSTS_DENY="{rule}"\n')
    notes = Notes()
    settings, _ = made(machine, notes)
    assert settings.stores.hosts_deny.rule == (kept or "ALL: {address}")
    assert ("KILL_HOSTS_DENY" in said(notes.by_hand)) is (kept is None)


def test_a_command_that_needs_a_shell_is_left_to_a_person(machine: Machine) -> None:
    machine.conf('BLOCK_TCP="2"\nBLOCK_UDP="2"\nKILL_RUN_CMD="echo $TARGET$ | mail root"\n')
    notes = Notes()
    assert not made(machine, notes)[0].respond.command
    assert "needs a shell" in said(notes.by_hand)


def test_braces_of_an_old_command_stay_braces() -> None:
    assert placeholders("{x}=$TARGET$:$PORT$/$MODE$") == "{{x}}={address}:{port}/{mode}"


def test_a_line_that_is_not_understood_is_named_and_the_rest_counts(machine: Machine) -> None:
    machine.conf('BLOCK_TCP="1"\nKILL_ROUTE="half\nBOGUS="1"\n')
    notes = Notes()
    asked = machine.asked()
    old = old_settings.read(asked.conf, asked.defaults, notes)
    assert old.conf.history_file == machine.history
    assert old.unsure is None
    assert [note.place.rpartition(":")[2] for note in notes.not_understood] == ["14", "15"]


@pytest.mark.parametrize("garbage", [b"\0\1\2", b"\xff\xfe\n" * 500])
def test_what_is_no_portsentry_conf_leaves_the_exempt_in_doubt(machine: Machine, garbage: bytes) -> None:
    asked, notes = machine.asked(), Notes()
    asked.conf.write_bytes(garbage)
    old = old_settings.read(asked.conf, asked.defaults, notes)
    assert old.unsure is not None
    assert notes.not_read


def test_an_ignore_file_that_is_not_understood_leaves_the_exempt_in_doubt(machine: Machine) -> None:
    asked, notes = machine.asked(), Notes()
    asked.conf.write_text('IGNORE_FILE="relative"\n')
    assert "absolute" in str(old_settings.read(asked.conf, asked.defaults, notes).unsure)


def test_a_link_that_leads_nowhere_is_not_read(machine: Machine) -> None:
    asked, notes = machine.asked(), Notes()
    asked.conf.symlink_to("/nowhere/portsentry.conf")
    assert old_settings.read(asked.conf, asked.defaults, notes).unsure is not None
    assert "leads nowhere" in said(notes.not_read)


def test_portsentry_2_goes_on_in_its_own_dialect(machine: Machine) -> None:
    asked = machine.asked()
    asked.conf.write_text(
        'TCP_PORTS="1,5-11"\nUDP_PORTS="7"\nHISTORY_FILE="/h"\nBLOCK_TCP="1"\nKILL_ROUTE="r $TARGET$"\n'
    )
    settings, _ = made(machine)
    assert (settings.sensor.mode, settings.history.dialect) == (SensorMode.STEALTH, "2")
    assert settings.sensor.tcp_ports == ((1, 1), (5, 11))


def test_texts_survive_toml() -> None:
    text = 'a "quoted" \\ back\x7f é \t'
    assert tomllib.loads(written([], [Entry("[t]", "k", text, "w"), Entry("[t]", "l", ["x", text])])) == {
        "t": {"k": text, "l": ["x", text]}
    }
