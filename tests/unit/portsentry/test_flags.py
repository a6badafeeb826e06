from pathlib import Path

import pytest

from jailbridge.config.portsentry_conf import Mode
from jailbridge.errors import FatalError
from jailbridge.portsentry.flags import HELP, Asked, Invocation, LogTarget, Method, parse

LONG = ["configfile", "method", "interface", "disable-local-check", "disable-service-check", "logoutput", "daemon"]
LONG += ["debug", "verbose", "help", "version"]


def refused(*argv: str) -> str:
    with pytest.raises(FatalError) as error:
        parse(argv)
    return str(error.value)


def test_without_flags_it_is_2_x_in_stealth_mode() -> None:
    assert parse([]) == Invocation(
        mode=Mode.STEALTH,
        config=Path("/etc/portsentry/portsentry.conf"),
        interfaces=("ALL_NLO",),
        method=Method.PCAP,
        log=LogTarget.STDOUT,
        daemonize=False,
        debug=False,
        verbose=False,
        local_check=True,
        service_check=True,
    )


@pytest.mark.parametrize("mode", ["tcp", "udp", "stcp", "sudp", "atcp", "audp"])
def test_a_mode_of_1_2_goes_to_the_background_and_to_syslog(mode: str) -> None:
    asked = parse([f"-{mode}"])
    assert isinstance(asked, Invocation)
    assert (asked.mode, asked.version) == (Mode(mode), 1)
    assert (asked.log, asked.daemonize, asked.interfaces) == (LogTarget.SYSLOG, True, ("ALL",))
    assert (asked.local_check, asked.service_check) == (True, True)


def test_a_mode_of_1_2_may_stay_in_the_foreground_with_another_file() -> None:
    for argv in (["--foreground", "-tcp", "--config", "/x"], ["-tcp", "-tcp", "--config=/x", "--foreground"]):
        asked = parse(argv)
        assert isinstance(asked, Invocation)
        assert (asked.mode, asked.config, asked.daemonize) == (Mode.TCP, Path("/x"), False)


@pytest.mark.parametrize(
    "argv",
    [
        "--connect --configfile /x --method raw --interface eth0 -i eth1 --disable-local-check -Sl syslog -dDv",
        "--connect -c /x -m raw -i eth0 -i eth1 -L --disable-service-check --logoutput syslog --daemon --debug -v",
        "--connect -c /x -m raw -i eth0 -i eth1 -i eth0 -L -S -l syslog -D -d -v",
        "--connect -c/x -mraw -ieth0 -ieth1 -LSDd --verbose -lsyslog",
        "--conn --config=/x --meth=raw --int=eth0 --int eth1 --disable-l --disable-s --log=syslog --da --deb --verb",
        "-vLSDdc /x -m raw -i eth0 -i eth1 --connect --connect -vvv",
    ],
)
def test_2_x_flags_are_read_as_getopt_does(argv: str) -> None:
    assert parse(argv.split()) == Invocation(
        mode=Mode.CONNECT,
        config=Path("/x"),
        interfaces=("eth0", "eth1"),
        method=Method.RAW,
        log=LogTarget.SYSLOG,
        daemonize=True,
        debug=True,
        verbose=True,
        local_check=False,
        service_check=False,
    )


def test_in_the_background_2_x_logs_to_syslog() -> None:
    asked = parse(["-D", "-l", "stdout"])
    assert isinstance(asked, Invocation)
    assert asked.log is LogTarget.SYSLOG


@pytest.mark.parametrize(("name", "meant"), [("ALL", "ALL"), ("ALL_NLO", "ALL_NLO"), ("any", "ALL"), ("lo", "lo")])
def test_an_interface_is_a_name_or_an_alias(name: str, meant: str) -> None:
    asked = parse(["-i", name])
    assert isinstance(asked, Invocation)
    assert asked.interfaces == (meant,)


@pytest.mark.parametrize(
    ("argv", "asked"),
    [
        ("-h", Asked.HELP),
        ("--help", Asked.HELP),
        ("-vV", Asked.VERSION),
        ("--vers", Asked.VERSION),
        ("-h --nonsense", Asked.HELP),
    ],
)
def test_help_and_version_end_the_reading(argv: str, asked: Asked) -> None:
    assert parse(argv.split()) is asked


def test_the_help_names_every_flag() -> None:
    for flag in ["-tcp", "-udp", "-stcp", "-sudp", "-atcp", "-audp", "--config ", "--foreground", "--stealth"]:
        assert flag in HELP
    for short, long in zip("cmiLSlDdvhV", LONG, strict=True):
        assert f"-{short}, --{long}" in HELP


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["-tcp", "-udp"], "-tcp and -udp: PortSentry 1.2 has one mode a process: start one for each"),
        (["-tcp", "-c", "/x"], "'-c' does not go with -tcp, a flag of PortSentry 1.2, which takes no other: "),
        (["--stealth", "-atcp"], "'--stealth' does not go with -atcp"),
        (["-atcp", "x"], "'x' does not go with -atcp"),
        (["-tcp", "--config"], "'' is no file: name a portsentry.conf"),
        (["--tcp"], "'--tcp' is no flag; see jailbridge portsentry --help"),
        (["--foreground"], "--foreground goes with a mode of PortSentry 1.2; 2.x stays in the foreground without -D"),
        (["--stealth", "--connect"], "--stealth and --connect: choose one of them"),
        (["-x"], "'-x' is no flag of PortSentry: see jailbridge portsentry --help"),
        (["-dx"], "'-x' is no flag of PortSentry: see jailbridge portsentry --help"),
        (["-"], "'-' is no flag: see jailbridge portsentry --help"),
        (["--"], "'--' is no flag"),
        (["x"], "'x' is no flag: see jailbridge portsentry --help"),
        (["-c"], "-c needs a value after it: see jailbridge portsentry --help"),
        (["--configfile"], "--configfile needs a value after it"),
        (["--configfile="], "'' is no file: name a portsentry.conf"),
        (["--debug=1"], "--debug takes no value: leave '=1' out"),
        (["--d"], "may be --disable-local-check or --disable-service-check or --daemon or --debug: write it out"),
        (["-m", "rawx"], "--method is pcap or raw, not 'rawx'"),
        (["-l", "file"], "--logoutput is stdout or syslog, not 'file'"),
        (["-l", "stdout", "-l", "syslog"], "--logoutput is given twice, 'stdout' and 'syslog': choose one"),
        (["-i", "ALL", "-i", "eth0"], "-i ALL -i eth0: choose ALL, ALL_NLO or interfaces by name"),
        (["-i", "eth0,eth1"], "'eth0,eth1' is no interface: name one, ALL or ALL_NLO, each with its own -i"),
        (["-i", "a-very-long-name"], "'a-very-long-name' is no interface"),
    ],
)
def test_wrong_usage_is_one_line_with_its_remedy(argv: list[str], problem: str) -> None:
    told = refused(*argv)
    assert problem in told
    assert "\n" not in told
