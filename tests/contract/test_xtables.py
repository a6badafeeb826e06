"""Our chain among others' rules, on both kinds of iptables: real programs and packets, in networks of our own."""

import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from jailbridge import process
from jailbridge.config.settings import Chain, FirewallSettings, Target
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import network_text, parse_network
from jailbridge.model.plan import Action, Change, Rejection
from jailbridge.model.token import Token
from jailbridge.stores import iptc_helper
from jailbridge.stores.iptables import LIMIT, IptablesStore
from jailbridge.stores.protocol import Drifted
from jailbridge.stores.xtables import Held, Kind, Xtables
from jailbridge.stores.xtables_rules import Family, Rule, parse_table, words_of
from jailbridge.stores.xtables_writers import HelperWriter
from tests.contract.kits_xtables import FOREIGN_RULES, Tables
from tests.contract.programs import done

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("own_network")]

JUMP = "-A INPUT -m comment --comment jailbridge -j jailbridge"


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock of the test's own, for us and for every iptables-legacy."""
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@pytest.fixture(params=["nft", "legacy"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@pytest.fixture
def tables(kind: Kind) -> Tables:
    """Tables with rules of others."""
    made = Tables(kind)
    for family in Family:
        made.restore(family, FOREIGN_RULES, "--noflush")
    return made


def now() -> datetime:
    return datetime.now(UTC)


def token(sequence: int) -> Token:
    return Token(ledger="0123456789ab", boot="ba9876543210", layout=1, sequence=sequence)


def change(action: Action, network: str | None = None) -> Change:
    return Change(store="firewall", action=action, network=parse_network(network) if network else None, why="test")


def settings(**given: object) -> FirewallSettings:
    return FirewallSettings.model_validate(given)


def apply(store: IptablesStore, sequence: int, *bans: str, hook: bool = True) -> Sequence[Rejection]:
    changes = [change(Action.HOOK)] if hook else []
    return store.apply([*changes, *(change(Action.ADD, ban) for ban in bans)], token(sequence), now())


def held(store: IptablesStore) -> set[str]:
    return {network_text(ban.network) for ban in store.observe(now()).bans}


def drops(*sources: str) -> list[Rule]:
    return [Rule(target="DROP", source=parse_network(source)) for source in sources]


def holding(
    four: Sequence[Rule], six: Sequence[Rule] = ()
) -> Callable[[Mapping[Family, Held]], dict[Family, list[Rule]]]:
    return lambda _: {Family.IPV4: list(four), Family.IPV6: list(six)}


# the hook


def test_first_comes_before_rules_for_everything_and_stays_where_it_is_reached(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    assert apply(store, 1, "192.0.2.7") == []
    assert tables.rules(Family.IPV4)[0] == JUMP
    for family in Family:
        tables.run(family, "-I", "INPUT", "-p", "udp", "-j", "ACCEPT")
        tables.run(family, "-I", "INPUT", "-j", "LOG")
    assert store.observe(now()).enforcing is True
    apply(store, 2)
    assert tables.rules(Family.IPV6)[2] == JUMP, "nothing to move"
    tables.run(Family.IPV6, "-I", "INPUT", "-j", "ACCEPT")
    assert store.observe(now()).enforcing is False
    assert apply(store, 3) == []
    assert store.observe(now()).enforcing is True
    assert tables.rules(Family.IPV6)[0] == JUMP
    assert all(tables.rules(family).count(JUMP) == 1 for family in Family)


@pytest.mark.parametrize("hook", ["after:others", 'after:let in: "jailbridge" or not'])
def test_after_comes_right_behind_the_last_rule_that_it_names(tables: Tables, kind: Kind, hook: str) -> None:
    store = IptablesStore(settings(hook=hook), kind=kind)
    assert apply(store, 1, "192.0.2.7", "2001:db8::7") == []
    assert store.observe(now()).enforcing is True
    for family in Family:
        assert tables.rules(family)[2] == JUMP
        tables.run(family, "-A", "INPUT", "-m", "comment", "--comment", hook[6:], "-j", "others")
    assert store.observe(now()).enforcing is False, "hosts let in there are cut off here"
    assert apply(store, 2) == []
    assert store.observe(now()).enforcing is True
    for family in Family:
        inputs = [rule for rule in tables.rules(family) if rule.startswith("-A INPUT ")]
        assert inputs[-1] == JUMP
        assert inputs.count(JUMP) == 1


def test_a_hook_that_cannot_be_put_is_refused_and_bans_are_written_all_the_same(tables: Tables, kind: Kind) -> None:
    apply(IptablesStore(settings(), kind=kind), 1, "192.0.2.7")
    store = IptablesStore(settings(hook="after:whitelist", chains=["INPUT", "DOCKER-USER"]), kind=kind)
    (rejection,) = apply(store, 2, "192.0.2.8")
    assert rejection.change == change(Action.HOOK)
    for family in Family:
        assert f"{family} INPUT: no rule there jumps to whitelist" in rejection.why
        assert f"{family} DOCKER-USER: there is no such chain" in rejection.why
        assert JUMP not in tables.rules(family), "without the whitelist its hosts would be cut off"
    seen = store.observe(now())
    assert (seen.enforcing, seen.token) == (False, str(token(2)))
    assert held(store) == {"192.0.2.7", "192.0.2.8"}


def test_the_chains_that_are_there_are_hooked(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(chains=list(Chain)), kind=kind)
    (rejection,) = apply(store, 1, "192.0.2.7")
    assert rejection.why == "; ".join(f"{family} DOCKER-USER: there is no such chain" for family in Family)
    tables.run(Family.IPV4, "-N", "DOCKER-USER")
    assert store.observe(now()).enforcing is False
    assert apply(store, 2) == []
    assert store.observe(now()).enforcing is True
    for chain in Chain:
        assert JUMP.replace("INPUT", chain) in tables.rules(Family.IPV4)
    fewer = IptablesStore(settings(), kind=kind)
    assert fewer.observe(now()).enforcing is False
    assert apply(fewer, 3) == []
    assert [rule for rule in tables.rules(Family.IPV4) if rule.endswith("-j jailbridge")] == [JUMP]


# what is not ours


def test_others_rules_and_their_counters_are_kept_to_the_byte(tables: Tables, kind: Kind) -> None:
    counted = done(f"iptables-{kind}-save", "-c").replace("[0:0] -A", "[7:1234] -A")
    done(f"iptables-{kind}-restore", "-c", given=counted)
    before = [line for line in done(f"iptables-{kind}-save", "-c").splitlines() if not line.startswith("#")]
    store = IptablesStore(settings(target="REJECT:tcp-reset"), kind=kind)
    apply(store, 1, *(f"10.0.0.{n}" for n in range(20)))
    store.apply([change(Action.REMOVE, "10.0.0.3"), change(Action.ADD, "192.0.2.7")], token(2), now())
    after = [line for line in done(f"iptables-{kind}-save", "-c").splitlines() if "jailbridge -" not in line]
    after = [line for line in after if not line.startswith("#") and not line.endswith("-j jailbridge")]
    assert any("[7:1234]" in line for line in before)
    assert after == [line for line in before if line != JUMP]


def test_foreign_rules_in_our_chain_are_counted_and_taken_out(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    tables.run(Family.IPV4, "-I", "jailbridge", "-p", "tcp", "-j", "ACCEPT")
    tables.run(Family.IPV6, "-I", "jailbridge", "-s", "2001:db8::9", "-j", "ACCEPT")
    tables.run(Family.IPV6, "-A", "jailbridge", "-m", "comment", "--comment", "by hand", "-j", "DROP")
    seen = store.observe(now())
    assert (seen.foreign, seen.enforcing) == (3, False)
    assert held(store) == {"192.0.2.7", "2001:db8::7"}
    assert apply(store, 2) == []
    seen = store.observe(now())
    assert (seen.foreign, seen.enforcing) == (0, True)
    assert held(store) == {"192.0.2.7", "2001:db8::7"}


def test_what_a_person_bans_in_our_chain_is_seen_and_can_be_taken_out(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1, "192.0.2.7")
    tables.run(Family.IPV4, "-A", "jailbridge", "-s", "198.51.100.0/24", "-j", "DROP")
    assert held(store) == {"192.0.2.7", "198.51.100.0/24"}
    assert store.observe(now()).token == str(token(1))
    store.apply([change(Action.REMOVE, "198.51.100.0/24")], token(2), now(), expected=str(token(1)))
    assert held(store) == {"192.0.2.7"}


# targets


# IP_RECVERR and IPV6_RECVERR (linux/in.h, in6.h): a UDP socket is told every error.
RECVERR = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
LET_IN = 0


def udp(source: str, to: str) -> int:
    """Return the errno that a packet brings back, LET_IN where it arrives."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as server, socket.socket(family, socket.SOCK_DGRAM) as client:
        server.bind((to, 0))
        client.bind((source, 0))
        client.setsockopt(*RECVERR[family], 1)
        client.connect(server.getsockname())
        client.send(b"?")
        ready, _, _ = select.select([server, client], [], [], 0.15)
        if client in ready:
            return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return LET_IN if ready else errno.ETIMEDOUT


def tcp(source: str, to: str) -> int:
    """Return the errno of a connection, LET_IN where it is made."""
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((to, 0))
        server.listen()
        client.bind((source, 0))
        client.settimeout(0.15)
        try:
            client.connect(server.getsockname())
        except TimeoutError:
            return errno.ETIMEDOUT
        except OSError as error:
            return error.errno or 0
    return LET_IN


@pytest.mark.parametrize(
    ("target", "four", "six"),
    [
        (Target.DROP, errno.ETIMEDOUT, errno.ETIMEDOUT),
        (Target.REJECT, errno.ECONNREFUSED, errno.ECONNREFUSED),
        (Target.REJECT_HOST, errno.EHOSTUNREACH, errno.EHOSTUNREACH),
        (Target.REJECT_NET, errno.ENETUNREACH, errno.ENETUNREACH),
        (Target.REJECT_ADMIN, errno.EHOSTUNREACH, errno.EACCES),
        (Target.REJECT_RESET, errno.ECONNREFUSED, errno.ECONNREFUSED),
    ],
)
def test_a_banned_host_gets_what_the_target_says(kind: Kind, target: Target, four: int, six: int) -> None:
    for address in ("192.0.2.1/32", "192.0.2.7/32", "192.0.2.8/32"):
        done("ip", "address", "add", address, "dev", "lo")
    for address in ("2001:db8::1/128", "2001:db8:1::7/128", "2001:db8:2::7/128"):
        done("ip", "address", "add", address, "dev", "lo", "nodad")
    store = IptablesStore(settings(target=target), kind=kind)
    assert apply(store, 1, "192.0.2.7", "2001:db8:1::/64") == []
    assert (udp("192.0.2.7", "192.0.2.1"), udp("2001:db8:1::7", "2001:db8::1")) == (four, six)
    assert (udp("192.0.2.8", "192.0.2.1"), udp("2001:db8:2::7", "2001:db8::1")) == (LET_IN, LET_IN)
    assert (tcp("192.0.2.8", "192.0.2.1"), tcp("2001:db8:2::7", "2001:db8::1")) == (LET_IN, LET_IN)
    if target in {Target.DROP, Target.REJECT_RESET}:
        # Over the loopback an ICMP error comes while connect() still holds the socket, and is kept for later.
        assert (tcp("192.0.2.7", "192.0.2.1"), tcp("2001:db8:1::7", "2001:db8::1")) == (four, six)


@pytest.mark.parametrize("target", [Target.TARPIT, Target.CHAOS, Target.DELUDE])
def test_a_target_that_is_not_there_is_told_and_changes_nothing(tables: Tables, kind: Kind, target: Target) -> None:
    apply(IptablesStore(settings(), kind=kind), 1, "192.0.2.7")
    before = [tables.rules(family) for family in Family]
    store = IptablesStore(settings(target=target), kind=kind)
    for _ in range(2):
        with pytest.raises(FatalError) as error:
            apply(store, 2, "192.0.2.8")
        text = str(error.value)
        assert text.startswith(f"the target {target} is not on this machine (")
        assert text.endswith(
            'apt install xtables-addons-common xtables-addons-dkms, or set stores.firewall.target = "DROP"'
        )
        assert "\n" not in text
        assert "b'" not in text
    assert [tables.rules(family) for family in Family] == before
    assert "jailbridge-probe" not in tables.save(Family.IPV4)


def test_another_target_takes_every_ban_over(tables: Tables, kind: Kind) -> None:
    apply(IptablesStore(settings(), kind=kind), 1, "192.0.2.7", "2001:db8::/64")
    store = IptablesStore(settings(target="REJECT:tcp-reset"), kind=kind)
    assert held(store) == {"192.0.2.7", "2001:db8::/64"}
    assert store.observe(now()).enforcing is False
    assert apply(store, 2) == []
    assert store.observe(now()).enforcing is True
    assert held(store) == {"192.0.2.7", "2001:db8::/64"}
    assert sum("-j REJECT" in rule for rule in tables.rules(Family.IPV4)) == 2


# others at the same moment


APPEND = """
import subprocess, sys
kind, number, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
wait = ["-w"] if kind == "legacy" else []
for n in range(count):
    subprocess.run([f"iptables-{kind}", *wait, "-A", "others", "-s", f"10.{number}.0.{n}", "-j", "ACCEPT"], check=True)
"""


def test_nothing_is_lost_beside_others_that_write(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1)
    # Of nftables' own transactions that hold for each by itself a few will do.
    count = 50 if kind == "legacy" else 15
    others = [subprocess.Popen([sys.executable, "-c", APPEND, kind, str(n), str(count)]) for n in range(4)]
    for n in range(count):
        store.apply([change(Action.ADD, f"192.0.2.{n}")], token(2 + n), now(), expected=str(token(1 + n)))
    assert [other.wait(60) for other in others] == [0] * 4
    theirs = [rule for rule in tables.rules(Family.IPV4) if rule.startswith("-A others -s ")]
    assert sorted(theirs) == sorted(f"-A others -s 10.{p}.0.{n}/32 -j ACCEPT" for p in range(4) for n in range(count))
    assert held(store) == {f"192.0.2.{n}" for n in range(count)}
    assert store.observe(now()).token == str(token(1 + count))


@pytest.mark.parametrize("kind", ["nft"])
def test_a_rule_that_goes_away_under_our_hands_is_drift_and_nothing_is_written(tables: Tables) -> None:
    # On a legacy host the lock keeps others out: see below.
    xtables = Xtables(settings(), kind=tables.kind)
    xtables.write(holding(drops("192.0.2.1", "192.0.2.2")), hooking=True)
    before: list[str] = []

    def content(_: object) -> dict[Family, list[Rule]]:
        tables.run(Family.IPV4, "-D", "jailbridge", "-s", "192.0.2.1", "-j", "DROP")
        before.extend(tables.rules(Family.IPV4))
        return {Family.IPV4: drops("192.0.2.2", "192.0.2.3"), Family.IPV6: drops("2001:db8::7")}

    with pytest.raises(Drifted):
        xtables.write(content, hooking=True)
    assert tables.rules(Family.IPV4) == before
    assert "2001:db8::7" not in tables.save(Family.IPV6)
    xtables.write(holding(drops("192.0.2.2", "192.0.2.3")), hooking=True)


def test_a_token_in_one_family_only_is_none(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    tables.run(Family.IPV6, "-F", "jailbridge")
    seen = store.observe(now())
    assert (seen.token, {network_text(ban.network) for ban in seen.bans}) == (None, {"192.0.2.7"})
    with pytest.raises(Drifted):
        store.apply([change(Action.ADD, "192.0.2.8")], token(2), now(), expected=str(token(1)))
    assert held(store) == {"192.0.2.7"}


@pytest.mark.parametrize("family", Family)
def test_a_ruleset_that_went_through_nft_has_no_rule_of_ours_twice(family: Family) -> None:
    """`nft list ruleset` shows rules of iptables without their comments; some hosts save and load with it."""
    store = IptablesStore(settings(chains=["INPUT", "FORWARD"]), kind="nft")
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    tables = Tables("nft")
    before = tables.rules(family)
    done("nft", "-f", "-", given=f"flush ruleset\n{done('nft', 'list', 'ruleset')}")
    assert tables.rules(family) != before
    assert not store.observe(now()).enforcing
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    assert tables.rules(family) == before
    assert store.observe(now()).enforcing


# touched


def test_our_own_writing_touches_nothing_and_others_does(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(chains=["INPUT", "FORWARD"]), kind=kind)
    assert store.touched(), "nothing is known yet"
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    assert not store.touched()
    store.apply([change(Action.ADD, "192.0.2.8")], token(2), now(), expected=str(token(1)))
    assert not store.touched()
    store.observe(now())
    assert not store.touched()
    tables.run(Family.IPV4, "-A", "OUTPUT", "-j", "ACCEPT")
    tables.run(Family.IPV6, "-I", "INPUT", "-p", "udp", "-j", "ACCEPT")
    assert not store.touched(), "that is not our part"
    ways: list[tuple[Family, tuple[str, ...]]] = [
        (Family.IPV4, ("-F", "jailbridge")),
        (Family.IPV6, ("-F", "jailbridge")),
        (Family.IPV6, ("-D", "INPUT", "2")),
        (Family.IPV4, ("-F", "FORWARD")),
        (Family.IPV4, ("-I", "INPUT", "-j", "ACCEPT")),
        (Family.IPV4, ("-A", "jailbridge", "-s", "192.0.2.9", "-j", "DROP")),
    ]
    for number, (family, words) in enumerate(ways, start=3):
        tables.run(family, *words)
        assert store.touched(), words
        assert store.touched(), "until it is read"
        apply(store, number, "192.0.2.7", "2001:db8::7", "192.0.2.8")
        assert not store.touched(), words


@pytest.mark.parametrize("family", Family)
def test_a_ban_in_the_place_of_another_is_noticed(tables: Tables, kind: Kind, family: Family) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1, "192.0.2.7", "2001:db8::7")
    tables.run(family, "-R", "jailbridge", "1", "-s", {4: "192.0.2.8", 6: "2001:db8::8"}[family.version], "-j", "DROP")
    assert store.touched()


def test_what_rules_count_touches_nothing(tables: Tables, kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    done("ip", "link", "set", "lo", "up")
    apply(store, 1, "192.0.2.7")
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as sending:
            sending.sendto(b"", (address, 9))
    assert "[0:0] -A INPUT -i lo -j ACCEPT" not in done(f"iptables-{kind}-save", "-c")
    assert not store.touched()


def test_touched_never_raises(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    store = IptablesStore(settings(), kind=kind)
    apply(store, 1)
    Tables(kind).run(Family.IPV4, "-A", "OUTPUT", "-j", "ACCEPT")
    monkeypatch.setattr(process, "SEARCH_PATH", "/nowhere")
    assert store.touched()
    assert IptablesStore(settings()).touched()


# the kind of host


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_itself_tells_the_kind(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = process.find(f"iptables-{kind}", "iptables")
    (tmp_path / "iptables").symlink_to(real)
    monkeypatch.setattr(process, "SEARCH_PATH", f"{tmp_path}{os.pathsep}{process.SEARCH_PATH}")
    store = IptablesStore(settings())
    apply(store, 1, "192.0.2.7")
    assert JUMP in Tables(kind).rules(Family.IPV4)
    other: Kind = "nft" if kind == "legacy" else "legacy"
    assert JUMP not in Tables(other).rules(Family.IPV4)


def test_without_iptables_a_person_is_told_what_to_install(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SEARCH_PATH", "/nowhere")
    for given in (kind, None):
        with pytest.raises(FatalError, match=r"is not on this machine: apt install iptables$"):
            IptablesStore(settings(), kind=given).observe(now())


@pytest.mark.parametrize("kind", ["nft"])
def test_a_table_with_rules_of_nft_is_told(tables: Tables) -> None:
    done("nft", "add", "rule", "ip", "filter", "INPUT", "meta", "mark", "set", "numgen", "random", "mod", "2")
    with pytest.raises(FatalError, match=r"rules that only nft can read: .* set stores\.firewall\.backend"):
        IptablesStore(settings(), kind="nft").observe(now())


def test_as_many_bans_as_it_takes_are_written_at_once(kind: Kind) -> None:
    store = IptablesStore(settings(), kind=kind)
    bans = [f"10.{n >> 8}.{n & 255}.7" for n in range(LIMIT)]
    assert apply(store, 1, *bans) == []
    assert held(store) == set(bans)


# the helper process


@pytest.fixture
def legacy() -> Xtables:
    return Xtables(settings(), kind="legacy")


def helper_pid(xtables: Xtables) -> int:
    writer = xtables._writer
    assert isinstance(writer, HelperWriter)
    assert writer.pid is not None
    return writer.pid


def lock_is_free(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_the_lock_is_held_while_we_write_and_let_go_after(legacy: Xtables, lock: Path) -> None:
    during: list[bool] = []

    def content(_: object) -> dict[Family, list[Rule]]:
        during.append(lock_is_free(lock))
        return {family: [] for family in Family}

    legacy.write(content, hooking=True)
    assert during == [False]
    assert lock_is_free(lock)
    with pytest.raises(ZeroDivisionError):
        legacy.write(lambda _: 1 // 0, hooking=True)  # type: ignore[arg-type, return-value]
    assert lock_is_free(lock)


def test_the_lock_is_the_one_of_iptables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XTABLES_LOCKFILE")
    path = Path(iptc_helper.LOCK)
    path.touch(0o600)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = process.run(["iptables-legacy", "-w", "1", "-A", "INPUT", "-j", "DROP"])
    assert "holding the xtables lock" in result.err


def test_a_helper_that_died_is_started_anew(legacy: Xtables, lock: Path) -> None:
    legacy.write(holding(drops("192.0.2.7")), hooking=True)
    first = helper_pid(legacy)
    os.kill(first, signal.SIGKILL)
    legacy.write(holding(drops("192.0.2.7", "192.0.2.8")), hooking=True)
    assert helper_pid(legacy) != first
    assert not Path(f"/proc/{first}").exists(), "nobody is left to be reaped"
    assert legacy.read()[Family.IPV4].rules == tuple(drops("192.0.2.7", "192.0.2.8"))


def test_a_helper_that_dies_with_the_lock_leaves_all_as_it_was(legacy: Xtables, lock: Path) -> None:
    legacy.write(holding(drops("192.0.2.7")), hooking=True)

    def content(_: object) -> dict[Family, list[Rule]]:
        os.kill(helper_pid(legacy), signal.SIGKILL)
        return {Family.IPV4: drops("192.0.2.8"), Family.IPV6: []}

    with pytest.raises(RetryLater, match="helper process with python-iptables does not answer"):
        legacy.write(content, hooking=True)
    assert lock_is_free(lock)
    assert legacy.read()[Family.IPV4].rules == tuple(drops("192.0.2.7"))
    legacy.write(holding(drops("192.0.2.8")), hooking=True)


def test_a_helper_that_dies_at_any_moment_leaves_each_family_whole(legacy: Xtables, lock: Path) -> None:
    contents = [
        {
            Family.IPV4: tuple(drops(*(f"10.{side}.0.{n}" for n in range(80)))),
            Family.IPV6: tuple(drops(*(f"2001:db8:{side}::{n:x}" for n in range(80)))),
        }
        for side in range(2)
    ]
    legacy.write(lambda _: contents[0], hooking=True)
    died = 0
    for step in range(6):
        killer = threading.Timer(0.01 + step * 0.02, os.kill, (helper_pid(legacy), signal.SIGKILL))
        killer.start()
        try:
            legacy.write(lambda _, step=step: contents[(step + 1) % 2], hooking=True)  # type: ignore[misc]
        except RetryLater:
            died += 1
        killer.join()
        for family, one in legacy.read().items():
            assert one.rules in (contents[0][family], contents[1][family])
            assert one.unhooked == ()
        legacy.write(lambda _, step=step: contents[step % 2], hooking=True)  # type: ignore[misc]
    assert died
    assert lock_is_free(lock)


def test_the_helper_follows_its_caller_into_another_network(legacy: Xtables, own_network: Callable[[], None]) -> None:
    legacy.write(holding(drops("192.0.2.7")), hooking=True)
    first = helper_pid(legacy)
    own_network()
    assert legacy.read()[Family.IPV4].rules is None
    legacy.write(holding(drops("192.0.2.8")), hooking=True)
    assert legacy.read()[Family.IPV4].rules == tuple(drops("192.0.2.8"))
    assert helper_pid(legacy) != first


def test_the_helper_ends_with_whoever_holds_it() -> None:
    xtables = Xtables(settings(), kind="legacy")
    xtables.write(holding([]), hooking=False)
    pid = helper_pid(xtables)
    del xtables
    assert not Path(f"/proc/{pid}").exists()


WATCHED = """
import sys
def hook(event, arguments):
    if event in {"subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn"}:
        print("started:", event, arguments, file=sys.stderr, flush=True)
sys.addaudithook(hook)
from jailbridge.stores import iptc_helper
iptc_helper.main()
"""


def test_the_helper_starts_no_other_program_and_makes_no_other_table() -> None:
    rule: dict[str, object] = {"target": "DROP", "options": [], **dict.fromkeys(("protocol", "source", "match_set"))}
    rule["comment"] = "a"
    asked = [
        {"ask": "lock"},
        {
            "ask": "write",
            "family": "iptables",
            "steps": [["make", "jailbridge", 0, None], ["append", "jailbridge", 0, rule]],
        },
        {"ask": "unlock"},
    ]
    given = "".join(json.dumps(one) + "\n" for one in asked)
    result = process.run([sys.executable, "-I", "-c", WATCHED], given=given)
    assert (result.code, result.out) == (0, "{}\n" * 3)
    assert "started:" not in result.err
    names = Path("/proc/thread-self/net/ip_tables_names")
    assert names.read_text().split() == ["filter"]


def test_the_helper_writes_just_what_iptables_would(legacy: Xtables) -> None:
    four: list[Rule] = [
        *drops("192.0.2.7", "10.0.0.0/9"),
        Rule(target="DROP"),
        Rule(target="RETURN", source=parse_network("255.255.255.255"), comment=str(token(1))),
        *(rule for target in (Target.REJECT_RESET, Target.REJECT_NET) for rule in of(target, Family.IPV4)),
    ]
    six: list[Rule] = [
        *drops("2001:db8::7", "2001:db8:1::/61"),
        Rule(target="DROP"),
        *(rule for target in (Target.REJECT_RESET, Target.REJECT_ADMIN) for rule in of(target, Family.IPV6)),
    ]
    legacy.write(holding(four, six), hooking=False)
    tables = Tables("legacy")
    for family, rules in {Family.IPV4: four, Family.IPV6: six}.items():
        done(f"{family}-legacy", "-w", "-N", "check")
        for rule in rules:
            done(f"{family}-legacy", "-w", "-A", "check", *words_of(rule))
        chains = parse_table(tables.save(family))
        assert chains["jailbridge"] == chains["check"] == tuple(map(words_of, rules))
        for rule in rules:
            done(f"{family}-legacy", "-w", "-D", "jailbridge", *words_of(rule))


def of(target: Target, family: Family) -> tuple[Rule, ...]:
    return Xtables(settings(target=target), kind="legacy").verdicts[family]
