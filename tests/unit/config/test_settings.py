from datetime import timedelta
from pathlib import Path

import pytest

from jailbridge.config import Settings, parse
from jailbridge.config.load import ConfigError
from jailbridge.config.placeholders import NAMES
from jailbridge.config.responding import On
from jailbridge.config.settings import EvidenceRule, HistoryDialect, SensorMode, TailSettings, Target, Watch
from jailbridge.model.event import TailFormat
from jailbridge.model.network import parse_network
from jailbridge.model.plan import External

# The configuration as documented, every key at its default.
DOCUMENTED = """
    [sensor]
    mode = "stealth"                 # off | connect | stealth | kernel
    interfaces = ["all"]             # names, "all", "all-but-loopback"
    tcp_ports = "1-1023"             # PortSentry's syntax; ports with a live service are skipped
    udp_ports = "1-1023"
    exclude_tcp_ports = "113,139"
    exclude_udp_ports = "67,137,138,520"
    trigger_ports = 3                # distinct ports …
    trigger_window = "60s"           # … in this window make a scanner
    ack_scans = false
    resolve_names = false
    banner = ""
    user = "auto"
    [history]
    path = "/var/lib/portsentry/portsentry.history"
    dialect = "1.2"                  # 1.2 | 2
    [[tail]]                         # default: the history above
    path = "/var/lib/portsentry/portsentry.history"
    format = "auto"                  # auto | portsentry-1.2 | portsentry-2 | syslog | kernel
    prefixes = []                    # of the kernel's LOG rules to believe
    watch = "auto"                   # auto | watchdog | pyinotify | poll
    evidence = "auto"                # auto | handshake | spoofable
    [policy]
    enforce = true                   # false: decide and show, change no store
    ban_for = "permanent"            # evidence proven by a handshake
    ban_for_spoofable = "1d"         # SYN, FIN, NULL, XMAS, UDP: a sender can forge these
    repeat_factor = 4                # each further ban of the same source lasts so much longer …
    repeat_cap = "permanent"         # … up to this,
    repeat_memory = "90d"            # if it comes again within this
    allow = []                       # networks never banned
    allow_files = ["/etc/portsentry/portsentry.ignore.static", "/etc/portsentry/portsentry.ignore"]
    hosts_allow = "/etc/hosts.allow"
    ipv6_prefix = 64                 # an IPv6 source is banned with its network of this size
    max_new_bans_per_minute = 50000  # the brake on log-driven bans; operators' are never braked
    max_new_spoofable_per_minute = 600
    max_bans = 200000                # above it the soonest-ending spoofable ones go first
    [ledger]
    path = "/var/lib/jailbridge/ledger.sqlite3"
    [stores.hosts_deny]
    enabled = true
    path = "/etc/hosts.deny"
    form = "lines"                   # lines | file
    rule = "ALL: {address}"
    max = 10000
    external = "adopt"               # what a person changes there: adopt | revert
    [stores.firewall]
    enabled = true
    backend = "auto"                 # auto | nftables | ipset | iptables
    target = "DROP"
    hook = "first"                   # first | after:CHAIN-OR-COMMENT
    chains = ["INPUT"]               # also FORWARD, DOCKER-USER
    external = "revert"
    [stores.fail2ban]
    enabled = true
    jail = "portsentry"
    socket = "/run/fail2ban/fail2ban.sock"
    banaction = "auto"
    external = "adopt"
    [stores.blocked_files]
    enabled = true
    paths = ["/var/lib/portsentry/portsentry.blocked.*", "/etc/portsentry/portsentry.blocked.*"]
    [portsentry]
    conf = "/etc/portsentry/portsentry.conf"
    [reconcile]
    interval = "30s"
    [respond]
    queue = "/var/lib/jailbridge/respond.sqlite3"
    parallel = 4
    [respond.syslog]
    enabled = false
    facility = "daemon"
    tag = "portsentry"
    [respond.limits]
    every = "15m"
    count = 1000
    per_hour = 12
    quiet_for = "1h"
    per_network = 20
    [respond.mail]
    to = []
    on = ["ban"]
    sender = "jailbridge"
    sendmail = "/usr/sbin/sendmail"
    timeout = "30s"
    [respond.whois]
    enabled = true
    server = "https://rdap.org"
    timeout = "5s"
    per_minute = 10
    keep = "7d"
    [control]
    socket = "/run/jailbridge/control.sock"
    group = ""
    [metrics]
    listen = ""                      # "127.0.0.1:9119"
"""

NETWORK = """
    [[policy.network]]               # longest prefix wins over both durations above and does not grow
    network = "10.0.0.0/8"
    ban_for = "10m"
"""


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        parse(text, "/x.toml")
    return error.value.problems


def test_the_documented_configuration_is_the_default_one() -> None:
    assert parse(DOCUMENTED, "/x.toml") == Settings()


def test_every_key_of_the_settings_is_documented() -> None:
    documented = parse(DOCUMENTED, "/x.toml").model_dump(exclude_unset=True)
    default = Settings().model_dump()
    default["policy"].pop("network")  # its documented form is no default, and stands below
    for tables in ("command", "webhook"):
        default["respond"].pop(tables)
    # None of these is there by default.
    for key in ("network", "server", "credentials", "templates"):
        default["respond"]["mail"].pop(key)
    default["tail"][0].pop("journal")  # stands instead of a path
    assert documented == default


def test_a_command_has_every_placeholder_and_braces_of_its_own() -> None:
    words = ["notify", "{{x}}", *(f"{{{name}}}" for name in NAMES)]
    text = f"[[respond.command]]\nrun = {words}"
    (command,) = parse(text, "/x.toml").respond.command
    assert command.run == tuple(words)
    assert (command.on, command.networks, command.first, command.timeout) == (
        (On.BAN,),
        (),
        False,
        timedelta(seconds=10),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[[respond.command]]\nrun = ["x", "{adress}"]',
            "respond.command.0.run: no placeholder '{adress}': there are ",
        ),
        (
            '[[respond.command]]\nrun = ["x", "{"]',
            'respond.command.0.run: a single "{": for the letter itself write it',
        ),
        (
            '[[respond.command]]\nrun = ["{address}"]',
            "respond.command.0.run: the program's own name has no placeholder",
        ),
        (
            '[[respond.command]]\nrun = ["./x"]',
            "respond.command.0.run: should be a program's name, or an absolute path",
        ),
        ("[[respond.command]]\nrun = []", "respond.command.0.run: should name at least one"),
        ("[[respond.command]]\nfirst = true", "respond.command.0.run: is required"),
        ('[respond.syslog]\ntag = "kernel"', "respond.syslog.tag: that is the kernel's own: name another"),
        ('[respond.syslog]\ntag = "a b"', "respond.syslog.tag: should be a system log's tag"),
    ],
)
def test_an_answer_that_cannot_be_given_is_told(text: str, said: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(said)


@pytest.mark.parametrize("backend", ["auto", "ipset", "iptables"])
@pytest.mark.parametrize("target", list(Target))
def test_every_backend_but_nftables_takes_every_target_and_hook(backend: str, target: Target) -> None:
    for hook in ("first", "after:allowed", "after:let in: these", "after:" + "x" * 255):
        text = f'[stores.firewall]\nbackend = "{backend}"\ntarget = "{target}"\nhook = "{hook}"'
        firewall = parse(text, "/x.toml").stores.firewall
        assert (firewall.backend, firewall.target, firewall.hook) == (backend, target, hook)


def test_a_wrong_target_is_told_with_all_that_there_are() -> None:
    (problem,) = problems('[stores.firewall]\ntarget = "REJECT:reset"')
    assert all(f"'{target}'" in problem for target in Target)


def test_a_list_beside_hosts_deny_needs_a_path_that_libwrap_reads_as_one() -> None:
    text = '[stores.hosts_deny]\nform = "{form}"\npath = "{path}"'
    parse(text.format(form="lines", path="/etc/my hosts.deny"), "/x.toml")
    good = parse(text.format(form="file", path="/srv/a-b_c/hosts.deny"), "/x.toml").stores.hosts_deny
    assert str(good.list_path) == "/srv/a-b_c/hosts.deny.jailbridge"
    for path in ("/etc/my hosts.deny", "/a,b/hosts.deny", "/a:b", "/etc/hosts.[d]", "/*", "/#"):
        (problem,) = problems(text.format(form="file", path=path))
        assert problem.startswith("stores.hosts_deny.path: ")


def test_a_network_of_its_own_duration_is_read() -> None:
    (rule,) = parse(NETWORK, "/x.toml").policy.network
    assert rule.network == parse_network("10.0.0.0/8")
    assert rule.ban_for == timedelta(minutes=10)


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ('[sensor]\nmode = "kernel"', "sensor.mode", 'use "stealth", "connect" or "off"'),
        ('[metrics]\nlisten = "127.0.0.1:9119"', "metrics.listen", "leave it empty"),
    ],
)
def test_what_this_release_does_not_do_is_refused_with_a_remedy(text: str, key: str, remedy: str) -> None:
    assert problems(text) == (f"{key}: not built in this release: {remedy}",)


@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("sensor = 5", "sensor", "should be a table"),
        ("[[sensor]]", "sensor", "should be a table"),
        ("tail = [5]", "tail.0", "should be a table"),
        ("tail = false", "tail", "should be a list"),
        ('tail = ""', "tail", "should be a list"),
        ("tail = {path = '/x'}", "tail", "should be a list"),
        ('[policy]\nallow = "10.0.0.0/8"', "policy.allow", "should be a list"),
        ("[policy]\nallow = [5]", "policy.allow.0", "should be text in quotes"),
        ("[sensor]\ntrigger_ports = true", "sensor.trigger_ports", "should be a whole number"),
        ('[sensor]\ntrigger_ports = "3"', "sensor.trigger_ports", "should be a whole number"),
        ("[policy]\nrepeat_factor = 4.0", "policy.repeat_factor", "should be a whole number"),
        ("[policy]\nrepeat_factor = nan", "policy.repeat_factor", "should be a whole number"),
        ('[policy]\nenforce = "yes"', "policy.enforce", "should be true or false"),
        ("[policy]\nenforce = 1", "policy.enforce", "should be true or false"),
        ("[policy]\nban_for = 600", "policy.ban_for", "should be text in quotes"),
        ("[sensor]\ntcp_ports = [1, 2]", "sensor.tcp_ports", "should be text in quotes"),
        ("[sensor]\nbanner = 5", "sensor.banner", "should be text in quotes"),
        (f'[sensor]\nmode = "connect"\nbanner = "{"x" * 501}"', "sensor.banner", "should be at most 500 bytes long"),
        ('[sensor]\nuser = "no body"', "sensor.user", "should be an account's name, or \"auto\", not 'no body'"),
        ('[control]\ngroup = "a b"', "control.group", "should be a group's name, or empty for root alone, not 'a b'"),
        ("[history]\npath = 5", "history.path", "should be text in quotes"),
        ("[history]\ndialect = 1.2", "history.dialect", "should be '1.2' or '2', not 1.2"),
        ("[sensor]\ntrigger_ports = 0x" + "f" * 5000, "sensor.trigger_ports", "should be"),
    ],
)
def test_a_value_of_the_wrong_type_is_a_problem(text: str, key: str, said: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{key}: {said}")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[sensor]\nmode = "loud"', "sensor.mode"),
        ("[sensor]\ninterfaces = []", "sensor.interfaces"),
        ('[sensor]\ninterfaces = ["eth 0"]', "sensor.interfaces.0"),
        ('[sensor]\ninterfaces = ["eth0/1"]', "sensor.interfaces.0"),
        ('[sensor]\ninterfaces = ["a-name-of-16-byte"]', "sensor.interfaces.0"),
        ('[sensor]\ntcp_ports = "0-10"', "sensor.tcp_ports"),
        ('[sensor]\nexclude_udp_ports = "67,dns"', "sensor.exclude_udp_ports"),
        ("[sensor]\ntrigger_ports = 0", "sensor.trigger_ports"),
        ('[sensor]\ntrigger_window = "permanent"', "sensor.trigger_window"),
        ('[sensor]\ntrigger_window = "0s"', "sensor.trigger_window"),
        ('[history]\npath = "portsentry.history"', "history.path"),
        ('[history]\npath = ""', "history.path"),
        ('[history]\npath = "/a\\u0000b"', "history.path"),
        ('[history]\npath = "/a\\nb"', "history.path"),
        ('[[tail]]\npath = "x"', "tail.0.path"),
        ('[[tail]]\nwatch = "poll"', "tail.0.path"),
        ('[[tail]]\npath = "/a"\n[[tail]]\npath = "/a"', "tail.1.path"),
        ('[[tail]]\npath = "/a\\u2028b"', "tail.0.path"),
        ('[[tail]]\npath = "/a"\njournal = "portsentry"', "tail.0.path"),
        ('[[tail]]\npath = "/var/*/a.history"', "tail.0.path"),
        ('[[tail]]\npath = "/a/*"\n[[tail]]\npath = "/a/*"', "tail.1.path"),
        ('[[tail]]\njournal = "a"\n[[tail]]\njournal = "a"', "tail.1.journal"),
        ('[[tail]]\njournal = ""', "tail.0.journal"),
        ('[[tail]]\njournal = "--file=/x"', "tail.0.journal"),
        ('[[tail]]\njournal = "a b"', "tail.0.journal"),
        ('[[tail]]\njournal = "a"\nwatch = "poll"', "tail.0.watch"),
        ('[policy]\nallow_files = ["/a", "/b\\tc"]', "policy.allow_files.1"),
        ('[policy]\nban_for = "long"', "policy.ban_for"),
        ("[policy]\nrepeat_factor = 0", "policy.repeat_factor"),
        ('[policy]\nallow = ["10.0.0.0/8", "localhost"]', "policy.allow.1"),
        ("[policy]\nipv6_prefix = 129", "policy.ipv6_prefix"),
        ("[policy]\nipv6_prefix = 0", "policy.ipv6_prefix"),
        ("[policy]\nmax_bans = 0", "policy.max_bans"),
        ("[policy]\nmax_new_bans_per_minute = 100000000000000000000", "policy.max_new_bans_per_minute"),
        ("[policy]\nmax_new_spoofable_per_minute = 100000000000000000000", "policy.max_new_spoofable_per_minute"),
        ('[[policy.network]]\nnetwork = "10.0.0.0/8"', "policy.network.0.ban_for"),
        (2 * '[[policy.network]]\nnetwork = "10.1.2.3/8"\nban_for = "1d"\n', "policy.network.1.network"),
        ('[[policy.network]]\nnetwork = "10.0.0.0/64"\nban_for = "1d"', "policy.network.0.network"),
        ('[stores.hosts_deny]\nrule = "ALL: ALL"', "stores.hosts_deny.rule"),
        ('[stores.hosts_deny]\nrule = "{address}: ALL"', "stores.hosts_deny.rule"),
        ('[stores.hosts_deny]\nrule = "ALL: {address} {address}"', "stores.hosts_deny.rule"),
        ('[stores.hosts_deny]\nrule = "ALL: {address}\\nALL: ALL"', "stores.hosts_deny.rule"),
        ('[stores.hosts_deny]\nrule = "ALL: {address} \\\\"', "stores.hosts_deny.rule"),
        ('[stores.hosts_deny]\nrule = " # ALL: {address}"', "stores.hosts_deny.rule"),
        ("[stores.firewall]\nchains = []", "stores.firewall.chains"),
        ('[stores.firewall]\ntarget = "REJECT:tcp-rst"', "stores.firewall.target"),
        ('[stores.firewall]\ntarget = "drop"', "stores.firewall.target"),
        ('[stores.firewall]\ntarget = "NFLOG"', "stores.firewall.target"),
        ("[stores.firewall]\ntarget = 5", "stores.firewall.target"),
        ('[stores.firewall]\nhook = ""', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "last"', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "after:"', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "after: allowed"', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "after:jailbridge"', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "after:a\\nb"', "stores.firewall.hook"),
        ('[stores.firewall]\nhook = "after:' + "x" * 256 + '"', "stores.firewall.hook"),
        ('[stores.firewall]\nbackend = "nftables"\ntarget = "TARPIT"', "stores.firewall.target"),
        ('[stores.firewall]\nbackend = "nftables"\nhook = "after:allowed"', "stores.firewall.hook"),
        ('[stores.firewall]\nchains = ["OUTPUT"]', "stores.firewall.chains.0"),
        ('[stores.firewall]\nexternal = "ignore"', "stores.firewall.external"),
        ('[stores.fail2ban]\njail = "--help"', "stores.fail2ban.jail"),
        ('[stores.fail2ban]\njail = "a\\n"', "stores.fail2ban.jail"),
        ('[control]\nsocket = "/' + "x" * 107 + '"', "control.socket"),
        ('[reconcile]\ninterval = "0s"', "reconcile.interval"),
    ],
)
def test_an_impossible_value_is_one_problem_that_names_its_key(text: str, key: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{key}: ")
    assert problem.isprintable()
    assert "<class" not in problem
    assert "Tuple" not in problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sensr = {}", "sensr: unknown key, did you mean sensor?"),
        ("[sensor]\ntrigger_port = 3", "sensor.trigger_port: unknown key, did you mean trigger_ports?"),
        ("[stores.fierwall]\nx = 1", "stores.fierwall: unknown key, did you mean firewall?"),
        ("[stores.firewall]\nbackends = 1", "stores.firewall.backends: unknown key, did you mean backend?"),
        ("[respond.mail]\ntoo = []", "respond.mail.too: unknown key, did you mean to?"),
        ('[[tail]]\npath = "/x"\nformats = 1', "tail.0.formats: unknown key, did you mean format?"),
        (
            '[[policy.network]]\nnetwork = "::/0"\nban_for = "1d"\nbanfor = "1d"',
            "policy.network.0.banfor: unknown key, did you mean ban_for?",
        ),
        ("[policy]\nzzz = 1", "policy.zzz: unknown key"),
        ("function-x = 1", "function-x: unknown key"),
        ('"a\\nb" = 1', "'a\\nb': unknown key"),
    ],
)
def test_an_unknown_key_is_a_problem_at_every_depth(text: str, problem: str) -> None:
    assert problems(text) == (problem,)


def test_every_problem_is_told_at_once() -> None:
    text = '[sensor]\nmode = "x"\nports = 1\n[policy]\nban_for = "y"\nallow = ["z", 7]\n[ledger]\npath = "here"'
    keys = {"sensor.mode", "sensor.ports", "policy.ban_for", "policy.allow.0", "policy.allow.1", "ledger.path"}
    found = problems(text)
    assert {problem.partition(": ")[0] for problem in found} == keys
    assert len(found) == len(keys)


def test_the_history_is_followed_by_default() -> None:
    assert [str(tail.path) for tail in Settings().tail] == ["/var/lib/portsentry/portsentry.history"]
    assert [str(t.path) for t in parse('[history]\npath = "/srv/h"', "x").tail] == ["/srv/h"]
    assert [str(t.path) for t in parse('[history]\ndialect = "2"', "x").tail] == [str(Settings().history.path)]


def test_a_given_tail_replaces_the_default_one() -> None:
    settings = parse(
        '[[tail]]\npath = "/a"\nformat = "portsentry-2"\nwatch = "poll"\nevidence = "handshake"\n[[tail]]\npath = "/b"',
        "x",
    )
    assert settings.tail == (
        TailSettings(
            path=Path("/a"), format=TailFormat.PORTSENTRY_2, watch=Watch.POLL, evidence=EvidenceRule.HANDSHAKE
        ),
        TailSettings(path=Path("/b")),
    )


@pytest.mark.parametrize(
    ("text", "name", "is_pattern"),
    [
        ('path = "/var/log/portsentry/*.history"', "/var/log/portsentry/*.history", True),
        ('path = "/var/log/portsentry.history"', "/var/log/portsentry.history", False),
        ('journal = "portsentry"', "journal:portsentry", False),
    ],
)
def test_a_tail_is_a_file_or_a_pattern_or_a_name_in_the_journal(text: str, name: str, is_pattern: bool) -> None:
    (tail,) = parse(f"[[tail]]\n{text}", "x").tail
    assert (tail.name, tail.is_pattern) == (name, is_pattern)


def test_text_becomes_exact_types() -> None:
    settings = parse(
        '[sensor]\nmode = "off"\ntcp_ports = "20-25, 80"\n[history]\ndialect = "2"\n[policy]\nban_for = "1h30m"\n'
        'ban_for_spoofable = "permanent"\nallow = ["192.0.2.7/24", "::ffff:198.51.100.0/120", "2001:db8::1"]\n'
        '[stores.fail2ban]\nexternal = "revert"',
        "x",
    )
    assert settings.sensor.mode is SensorMode.OFF
    assert settings.sensor.tcp_ports == ((20, 25), (80, 80))
    assert settings.history.dialect is HistoryDialect.PORTSENTRY_2
    assert settings.policy.ban_for == timedelta(minutes=90)
    assert settings.policy.ban_for_spoofable is None
    assert settings.policy.allow == tuple(map(parse_network, ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::1"]))
    assert settings.stores.fail2ban.external is External.REVERT
