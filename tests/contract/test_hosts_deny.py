"""hosts.deny beside the others that write it: PortSentry, fail2ban's own action, an editor. Nobody loses anything.

Each is a process of its own that writes while we do, as fast as we can. What one of them does to another is its own
affair, so each has us alone to deal with.
"""

import configparser
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config.settings import HostsDenyForm, HostsDenySettings
from jailbridge.errors import RetryLater
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.hosts_deny import HostsDenyStore

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FOREIGN = b"# by hand\nsshd: 203.0.113.5\n"
HOSTSDENY = Path("/etc/fail2ban/action.d/hostsdeny.conf")
# As PortSentry 1.2 writes a line: fopen(path, "a+"), fprintf, fclose.
APPENDER = """
import os, sys
for number in range(int(sys.argv[2])):
    file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(file, b"ALL: 10.1.%d.%d : DENY\\n" % divmod(number, 256))
    os.close(file)
    os.sched_yield()
"""
# As vim and sed do: read, write another file, rename. Each finds its edit of last time, or says that it is lost. Both
# rest a little, or else their next writing falls into the instant for which the last one may be out of place: some
# 20 us, and ms where the kernel gives our processor to another just then.
EDITOR = """
import os, sys, time
path = sys.argv[1]
for number in range(int(sys.argv[2])):
    with open(path, "rb") as file: lines = file.readlines()
    if number and b"sshd: 10.2.0.0 # edit %d\\n" % (number - 1) not in lines:
        print("lost", number - 1)
    kept = [line for line in lines if b"# edit" not in line]
    with open(path + ".swp", "wb") as file: file.writelines([b"sshd: 10.2.0.0 # edit %d\\n" % number, *kept])
    os.rename(path + ".swp", path)
    time.sleep(0.01)
"""
# Whoever reads the file at any moment reads our block whole. (Of a line that is just appended some see half.)
READER = """
import sys
while True:
    with open(sys.argv[1], "rb") as file: content = file.read()
    if [content.count(mark) for mark in (b"# jailbridge begin ", b"# jailbridge end\\n")] != [1, 1]:
        sys.exit(repr(content))
"""


class Beside:
    """Our store, which goes on writing as long as another does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(FOREIGN)
        self.store = HostsDenyStore(HostsDenySettings(path=path))
        self.sequence = 0
        self.write()

    def write(self) -> None:
        """One more ban, and one less: what a pass of the reconciler writes."""
        self.sequence += 1
        changes = [(Action.ADD, self.sequence), (Action.REMOVE, self.sequence - 4)]
        self.store.apply(
            [
                Change(store="hosts_deny", action=action, network=parse_network(f"192.0.2.{n % 256}"), why="test")
                for action, n in changes
            ],
            Token(ledger="0123456789ab", boot="-", layout=1, sequence=self.sequence),
            NOW,
        )

    def write_while(self, *argv: str) -> str:
        """Write until this program ends; return its output."""
        reader = subprocess.Popen([sys.executable, "-c", READER, str(self.path)], stderr=subprocess.PIPE, text=True)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
            while other.poll() is None:
                # It may not rest for long enough: the reconciler tries again.
                with suppress(RetryLater):
                    self.write()
            said, _ = other.communicate(timeout=60)
        assert other.returncode == 0, said
        reader.kill()
        assert reader.communicate()[1] == "", "it read half a file"
        self.write()
        content = self.path.read_bytes()
        assert content.count(BEGIN) == content.count(END) == 1
        assert all(line in content.splitlines() for line in FOREIGN.splitlines())
        assert [name for name in self.path.parent.iterdir() if name != self.path] == []
        return said


@pytest.fixture
def beside(tmp_path: Path) -> Beside:
    return Beside(tmp_path / "hosts.deny")


def test_no_line_that_portsentry_appends_is_lost_or_doubled(beside: Beside) -> None:
    assert beside.write_while(sys.executable, "-c", APPENDER, str(beside.path), "3000") == ""
    found = re.findall(rb"^ALL: 10\.1\.(\d+)\.(\d+) : DENY$", beside.path.read_bytes(), re.MULTILINE)
    assert sorted(int(a) * 256 + int(b) for a, b in found) == list(range(3000))


def test_no_edit_of_an_editor_is_lost(beside: Beside) -> None:
    assert beside.write_while(sys.executable, "-c", EDITOR, str(beside.path), "150") == ""
    assert re.findall(rb"# edit (\d+)", beside.path.read_bytes()) == [b"149"]


@pytest.mark.e2e
def test_fail2bans_own_action_bans_and_unbans_as_if_alone(beside: Beside) -> None:
    action = configparser.RawConfigParser()
    action.read(HOSTSDENY)

    def command(name: str) -> str:
        tags = {"<daemon_list>": "ALL", "<ip_value>": "10.3.0.$n", "<file>": str(beside.path), "%%": "%"}
        text = action["Definition"][name]
        for tag, value in tags.items():
            text = text.replace(tag, value)
        return text

    script = f"""
for n in $(seq 60); do
{command("actionban")} && sleep 0.01 || exit 1
if [ $n -gt 3 ]; then n=$((n - 3)); {command("actionunban")} && sleep 0.01 || exit 1; fi
done
"""
    assert beside.write_while("sh", "-c", script) == ""
    found = re.findall(rb"^ALL: 10\.3\.0\.(\d+)$", beside.path.read_bytes(), re.MULTILINE)
    assert sorted(map(int, found)) == [58, 59, 60]


@pytest.mark.parametrize("form", HostsDenyForm)
def test_what_is_written_beside_us_is_noticed_at_the_next_look(tmp_path: Path, form: HostsDenyForm) -> None:
    path = tmp_path / "hosts.deny"
    store = HostsDenyStore(HostsDenySettings(path=path, form=form))
    acts: list[Callable[[], object]] = [
        lambda: subprocess.run(["sh", "-c", f"echo ALL: 10.4.0.1 >> {path}"], check=True),
        lambda: subprocess.run(["sed", "-i", "s/10.4.0.1/10.4.0.2/", str(path)], check=True),
        lambda: subprocess.run(["touch", str(path)], check=True),
    ]
    for number, act in enumerate(acts):
        store.apply([], Token(ledger="a", boot="-", layout=1, sequence=number), NOW)
        store.observe(NOW)
        assert not store.touched()
        act()
        assert store.touched()
