"""Our definitions in a real fail2ban's folder: put there, looked after, taken away."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jailbridge.config.settings import Settings
from jailbridge.definitions import install, render, write
from jailbridge.errors import FatalError
from tests.e2e.fail2ban_server import Server, eventually, now, on_both

pytestmark = pytest.mark.e2e

SAMPLES = Path(__file__).parents[2] / "sample-logs"
JAIL = "jail.d/jailbridge.conf"


class Command:
    """`jailbridge fail2ban` for one fail2ban."""

    def __init__(self, server: Server) -> None:
        self._config = server.directory.parent / "jailbridge.toml"
        self._config.write_text(
            f'[history]\npath = "{server.history}"\n[policy]\nallow_files = []\n'
            f'[stores.fail2ban]\nsocket = "{server.socket}"\n[control]\nsocket = "{server.wake.parent}/control.sock"\n'
        )
        self._into = server.directory
        programs = Path(server.program("client")).parent
        self._env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}

    def __call__(self, what: str, *options: str) -> subprocess.CompletedProcess[str]:
        where = ["--into", str(self._into), "--config", str(self._config)]
        command = [sys.executable, "-m", "jailbridge", "fail2ban", what, *where, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=self._env)

    def found(self, *options: str) -> list[tuple[str, str]]:
        """Return what `check` finds."""
        done = self("check", "--json", *options)
        findings = [(finding["what"], finding["text"]) for finding in json.loads(done.stdout)]
        assert done.returncode == (2 if findings else 0), done.stderr
        return findings


@pytest.fixture
def command(server: Server) -> Command:
    return Command(server)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@on_both
def test_an_installation_is_tested_by_fail2ban_and_makes_the_missing_history(server: Server) -> None:
    server.history.unlink()
    done = install(render(server.settings()), server.directory, logs=[server.history], client=server.program("client"))
    assert done.tested
    assert done.changed
    assert done.created == (server.history,)
    server.start()
    assert server.store().observe(now()).enforcing is True
    again = install(render(server.settings()), server.directory, logs=[server.history], client=server.program("client"))
    assert not again.changed
    assert again.created == ()


@on_both
def test_an_installation_that_fail2ban_refuses_leaves_everything_as_it_was(server: Server) -> None:
    old = render(server.settings())
    install(old, server.directory, client=server.program("client"))
    (server.directory / "jail.d/jailbridge.local").write_text("[portsentry]\nfilter = no-such-filter\n")
    other = server.history.with_name("other.history")
    new = render(Settings.model_validate({"tail": [{"path": str(other)}]}), standalone=True)
    with pytest.raises(FatalError, match="no-such-filter"):
        install(new, server.directory, logs=[other], client=server.program("client"))
    assert {name: (server.directory / name).read_text() for name in old} == old
    assert not other.exists()


@on_both
def test_a_running_fail2ban_takes_it_up_and_gives_it_back(server: Server, command: Command) -> None:
    before = content(server.directory)
    server.start(jail=None)
    done = command("install", "--reload")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fail2ban has taken it up\n")
    eventually(lambda: server.asked("get", "portsentry", "actions") == ["jailbridge"])
    assert command.found() == []
    assert command("check").stdout == "all is as it should be\n"
    assert command("install", "--reload").stdout == "nothing to change\nfail2ban has taken it up\n"
    done = command("uninstall", "--reload")
    assert done.returncode == 0, done.stderr
    assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["removed"] * 3 + ["fail2ban"]
    eventually(lambda: server.asked("get", "portsentry", "actions") is None)
    assert content(server.directory) == before


def test_what_a_user_wrote_stays_theirs_and_wins(server: Server, command: Command) -> None:
    own = {
        "jail.d/portsentry.conf": "[portsentry]\nmaxretry = 3\n",
        "jail.d/jailbridge.local": "[portsentry]\nfindtime = 5\n",
    }
    for name, text in own.items():
        (server.directory / name).write_text(text)
    command("install")
    server.start()
    assert (server.asked("get", "portsentry", "maxretry"), server.asked("get", "portsentry", "findtime")) == (3, 5)
    changed = command.found()
    assert [what for what, _ in changed] == ["changed", "changed"]
    where = ", ".join(str(server.directory / name) for name in own)
    assert changed[0][1] == f"jail portsentry: findtime is '5', in our files '600': see {where}"
    command("uninstall")
    assert {name: (server.directory / name).read_text() for name in own} == own


def nothing(server: Server) -> None:
    (server.directory / JAIL).unlink()


def somebody_elses(server: Server) -> None:
    (server.directory / JAIL).write_text("[portsentry]\nenabled = false\n")


def a_line_more(server: Server) -> None:
    with (server.directory / JAIL).open("a") as jail:
        jail.write("maxretry = 2\n")


def of_another_configuration(server: Server) -> None:
    write(render(server.settings(allow=["192.0.2.0/24"])), server.directory)


def switched_off(server: Server) -> None:
    (server.directory / "jail.d/jailbridge.local").write_text("[portsentry]\nenabled = false\n")


def not_to_be_read(server: Server) -> None:
    (server.directory / "jail.local").write_text("[portsentry]\nfilter = no-such-filter\n")


def another_filter(server: Server) -> None:
    (server.directory / "filter.d/jailbridge-portsentry.local").write_text("[Definition]\nfailregex = ^ x <HOST>$\n")


def without_our_action(server: Server) -> None:
    (server.directory / "jail.local").write_text("[portsentry]\naction = %(banaction)s[name=x]\n")


@pytest.mark.parametrize(
    ("harm", "expected", "text"),
    [
        (nothing, "missing", r"jailbridge.conf is not there: run `jailbridge fail2ban install`"),
        (somebody_elses, "foreign", "was not written by jailbridge: move it away, then run"),
        (a_line_more, "edited", "was edited: put the change into jailbridge.local, then"),
        (of_another_configuration, "stale", "is of another configuration or version: run"),
        (switched_off, "disabled", "the jail portsentry is not enabled: see {directory}/jail.d/jailbridge.local"),
        (not_to_be_read, "refused", "no-such-filter"),
        (another_filter, "changed", "see {directory}/filter.d/jailbridge-portsentry.local"),
        (
            without_our_action,
            "changed",
            "action is 'iptables-multiport-x', in our files 'jailbridge': see {directory}/jail.local",
        ),
    ],
)
def test_what_is_the_matter_is_found(
    server: Server, command: Command, harm: Callable[[Server], None], expected: str, text: str
) -> None:
    write(render(server.settings()), server.directory)
    harm(server)
    found = dict(reversed(command.found()))
    assert found.pop("server") == f"fail2ban does not answer at {server.socket}: is it running?"
    assert text.format(directory=server.directory) in found[expected]


def test_what_the_running_server_has_otherwise_is_found(server: Server, command: Command) -> None:
    command("install")
    server.start()
    server.client("set", "portsentry", "bantime", "600")
    ((what, text),) = command.found()
    assert what == "server"
    assert text.startswith("fail2ban's jail portsentry has bantime '600' and not -1, ")
    server.client("set", "portsentry", "bantime", "-1")
    server.client("set", "portsentry", "delignoreip", "::1")
    ((what, text),) = command.found()
    assert text.startswith("the running fail2ban has other ignoreip in jail portsentry: ")
    server.client("set", "portsentry", "delaction", "jailbridge")
    assert any("other actions in jail portsentry" in text for _, text in command.found())
    assert command("install", "--reload").returncode == 0
    assert command.found() == []


@on_both
def test_whatever_jail_was_there_before_its_actions_are_the_new_ones(server: Server, command: Command) -> None:
    own = f"[portsentry]\nenabled = true\nlogpath = {server.history}\nbantime = 1h\naction = %(banaction)s[name=x]\n"
    (server.directory / "jail.d/a.conf").write_text(own)
    server.start()
    server.client("set", "portsentry", "banip", "192.0.2.7")
    before = server.asked("get", "portsentry", "actions")
    for words, actions in (
        (("install",), ["jailbridge"]),
        (("install", "--standalone"), ["iptables-allports"]),
        (("install",), ["jailbridge"]),
        (("uninstall",), before),
    ):
        done = command(*words, "--reload")
        assert done.returncode == 0, done.stderr
        assert server.asked("get", "portsentry", "actions") == actions, words
        # What a restart of the jail puts back comes a little later.
        eventually(lambda: server.asked("get", "portsentry", "banip") == ["192.0.2.7"])
        assert words == ("uninstall",) or command.found(*words[1:]) == []


def test_an_older_action_is_replaced_in_a_running_server(server: Server, command: Command) -> None:
    for name, text in render(server.settings()).items():
        (server.directory / name).parent.mkdir(exist_ok=True)
        (server.directory / name).write_text(text.replace("    def _tell(", "    older = 1\n\n    def _tell("))
    server.start()
    assert server.asked("get", "portsentry", "action", "jailbridge", "older") == 1
    assert command("install", "--reload", "--force").returncode == 0
    assert server.asked("get", "portsentry", "actions") == ["jailbridge"]
    assert server.asked("get", "portsentry", "action", "jailbridge", "older") is None


def test_a_copy_that_is_only_prepared_does_not_get_into_a_running_server(server: Server, command: Command) -> None:
    server.start(jail=None)
    done = command("install")
    assert done.stdout.endswith(
        f"to have a running fail2ban take it up: fail2ban-client -c {server.directory} reload\n"
    )
    assert server.asked("get", "portsentry", "actions") is None


def test_what_keeps_fail2ban_from_starting_is_found(server: Server, command: Command) -> None:
    command("install")
    server.history.unlink()
    assert "Have not found any log file for portsentry jail" in dict(command.found())["refused"]


def test_general_keys_that_mean_nothing_there_are_no_findings_and_those_that_do_name_their_file(
    server: Server, command: Command
) -> None:
    command("install")
    server.start()
    local = server.directory / "jail.local"
    local.write_text("[DEFAULT]\nbantime.maxtime = 5w\nbantime.factor = 1\nmaxretry = 9\n")
    assert command.found() == []
    local.write_text("[DEFAULT]\nlogtimezone = UTC+01\n")
    (found,) = command.found()
    assert found == ("changed", f"jail portsentry: logtimezone is 'UTC+01', in our files not set: see {local}")


def test_no_log_and_no_jail_file_holds_it_up(server: Server, command: Command) -> None:
    os.mkfifo(server.history.with_name("pipe.history"))
    (server.directory / "jail.d/folder.conf").mkdir()
    jail = f"[portsentry-x]\nenabled = true\nfilter = portsentry\nlogpath = {server.history.parent}/*.history\n"
    (server.directory / "jail.d/x.conf").write_text(jail)
    command("install")
    assert {what for what, _ in command.found()} <= {"server", "refused"}


def test_a_folder_that_is_not_there_is_an_error(server: Server, command: Command) -> None:
    shutil.rmtree(server.directory)
    for what in ("install", "uninstall"):
        done = command(what)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{server.directory} is not there" in done.stderr


@pytest.mark.parametrize(("dialect", "is_read"), [("portsentry-1.2", True), ("portsentry-2", False)])
def test_the_stock_jail_on_a_history_of_the_other_dialect_is_found(
    server: Server, command: Command, dialect: str, is_read: bool
) -> None:
    shutil.copy(SAMPLES / f"{dialect}.log", server.history)
    theirs = f"[portsentry]\nenabled = true\nfilter = portsentry\nlogpath = {server.history}\nmaxretry = 1\n"
    (server.directory / "jail.d/portsentry.conf").write_text(theirs)
    unread = [text for what, text in command.found() if what == "unread"]
    assert bool(unread) is not is_read
    for text in unread:
        assert text.startswith(f"jail portsentry reads {server.history} and understands none of its last ")


def test_a_log_that_is_not_portsentrys_proves_nothing(server: Server, command: Command) -> None:
    server.history.write_text("Nov 22 06:31:13 host sshd[5]: Invalid user x from 192.0.2.1 port 4\n" * 2000)
    jail = f"[sshd]\nenabled = true\nbackend = auto\nlogpath = {server.history}\nfilter = portsentry\n"
    (server.directory / "jail.d/x.conf").write_text(jail)
    assert "unread" not in dict(command.found())


def test_what_somebody_edited_is_not_lost(server: Server, command: Command) -> None:
    command("install")
    a_line_more(server)
    refused = command("install")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "was edited by hand: put your change into jailbridge.local" in refused.stderr
    assert f"kept {server.directory / JAIL}: it is not as we wrote it" in command("uninstall").stdout
    assert command("install", "--force").returncode == 0
    assert command.found() == [("server", f"fail2ban does not answer at {server.socket}: is it running?")]


def test_the_allow_files_are_ignored_by_fail2ban_too(server: Server, command: Command, tmp_path: Path) -> None:
    (tmp_path / "ignore").write_text("192.0.2.7\n")
    config = tmp_path / "jailbridge.toml"
    config.write_text(config.read_text().replace("allow_files = []", f'allow_files = ["{tmp_path}/ignore"]'))
    command("install")
    assert "192.0.2.7" in (server.directory / JAIL).read_text()
    (tmp_path / "ignore").unlink()
    refused = command("install")
    assert refused.returncode == 1
    assert "is not there" in refused.stderr
