"""hosts.deny as a store: on real files, with other writers about, and asked of the real TCP wrappers."""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jailbridge.config.settings import HostsDenySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores import hosts_deny
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.hosts_deny import HostsDenyStore

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FOREIGN = b"# by hand\nsshd: 203.0.113.5\n"
NOBODY = 65534


def token(sequence: int = 1) -> Token:
    return Token(ledger="0123456789ab", boot="-", layout=1, sequence=sequence)


def change(action: Action, network: str) -> Change:
    return Change(store="hosts_deny", action=action, network=parse_network(network), why="test")


def adds(*networks: str) -> list[Change]:
    return [change(Action.ADD, network) for network in networks]


def store_of(path: Path, rule: str = "ALL: {address}") -> HostsDenyStore:
    return HostsDenyStore(HostsDenySettings(path=path, rule=rule))


def held(store: HostsDenyStore) -> set[Network]:
    return {ban.network for ban in store.observe(NOW).bans}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "etc" / "hosts.deny"
    file.parent.mkdir()
    file.write_bytes(FOREIGN)
    return file


@pytest.fixture
def store(path: Path) -> HostsDenyStore:
    return store_of(path)


# the file


def test_a_missing_file_holds_nothing_and_is_made_readable_for_all(path: Path, store: HostsDenyStore) -> None:
    path.unlink()
    seen = store.observe(NOW)
    assert (seen.token, seen.bans, seen.foreign, seen.enforcing) == (None, (), 0, None)
    before = os.umask(0o077)
    try:
        store.apply(adds("192.0.2.7"), token(), NOW)
    finally:
        os.umask(before)
    assert held(store) == {parse_network("192.0.2.7")}
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_missing_folder_is_tried_later(path: Path) -> None:
    store = store_of(path.parent / "no" / "hosts.deny")
    assert held(store) == set()
    with pytest.raises(RetryLater, match=r"no/hosts\.deny cannot be written: No such file or directory"):
        store.apply(adds("192.0.2.7"), token(), NOW)


def test_the_file_is_replaced_and_nothing_is_left_beside_it(path: Path, store: HostsDenyStore) -> None:
    with path.open("rb") as reader:
        store.apply(adds("192.0.2.7"), token(), NOW)
        assert reader.read() == FOREIGN, "who reads it just now reads the whole old one"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_writer_left_beside_the_file_is_no_hindrance(path: Path, store: HostsDenyStore) -> None:
    for name in leftovers(path, store):
        (path.parent / name).write_bytes(b"half a li" * 1000)
    store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().startswith(FOREIGN + BEGIN)
    assert path.read_bytes().endswith(END + b"\n")
    assert list(path.parent.iterdir()) == [path]


def leftovers(path: Path, store: HostsDenyStore) -> set[str]:
    """The names beside the file that a write uses."""
    seen: set[str] = set()

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and Path(str(arguments[1])) == path:
            seen.update(file.name for file in path.parent.iterdir())

    with hooked(look):
        store.apply([], token(), NOW)
    assert len(seen) > 1
    return seen - {path.name}


def test_mode_owner_and_attributes_are_kept(path: Path, store: HostsDenyStore) -> None:
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    with contextlib.suppress(OSError):
        os.setxattr(path, "user.label", b"kept")
    before = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    store.apply(adds("192.0.2.7"), token(), NOW)
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == attributes


def test_a_symbolic_link_stays_one(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("etc/hosts.deny")
    store_of(link).apply(adds("192.0.2.7"), token(), NOW)
    assert link.is_symlink()
    assert b"192.0.2.7" in path.read_bytes()
    assert held(store_of(link)) == held(store_of(path))


def test_a_symbolic_link_to_nothing_is_followed(path: Path, tmp_path: Path) -> None:
    path.unlink()
    link = tmp_path / "link"
    link.symlink_to(path)
    store_of(link).apply(adds("192.0.2.7"), token(), NOW)
    assert link.is_symlink()
    assert path.is_file()


@pytest.mark.parametrize("method", ["observe", "apply"])
def test_what_is_no_file_is_an_error_of_one_line(tmp_path: Path, method: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("fifo", "folder", "loop", "file/below"):
        store = store_of(tmp_path / name)
        with pytest.raises((FatalError, RetryLater), match=rf"^{tmp_path / name} [^\n]+$"):
            store.observe(NOW) if method == "observe" else store.apply(adds("192.0.2.7"), token(), NOW)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def test_a_file_without_end_is_refused_before_it_is_read(path: Path, store: HostsDenyStore) -> None:
    with path.open("r+b") as file:
        file.truncate(hosts_deny.MAX_BYTES + 1)
    with pytest.raises(FatalError, match="at most 64 MiB"):
        store.observe(NOW)


def test_broken_marks_are_refused_and_nothing_is_written(path: Path, store: HostsDenyStore) -> None:
    store.apply(adds("192.0.2.7"), token(), NOW)
    path.write_bytes(path.read_bytes().replace(END, b"# my end"))
    before = path.read_bytes()
    inode = path.stat().st_ino
    for act in (lambda: store.observe(NOW), lambda: store.apply(adds("192.0.2.8"), token(), NOW)):
        with pytest.raises(FatalError, match=rf"^{path}: broken jailbridge marks \(line 3\): [^\n]*$"):
            act()
    assert path.read_bytes() == before
    assert path.stat().st_ino == inode
    assert list(path.parent.iterdir()) == [path]


def test_a_changed_rule_is_another_layout(path: Path) -> None:
    layouts = {store_of(path, rule).capabilities.layout for rule in ("ALL: {address}", "sshd: {address}")}
    assert len(layouts) == 2
    assert store_of(path).capabilities.layout in layouts


def test_every_layout_goes_into_a_token_and_is_read_back(path: Path) -> None:
    for number in range(100):
        store = store_of(path, f"daemon{number}: {{address}}")
        written = Token(ledger="0123456789ab", boot="-", layout=store.capabilities.layout, sequence=number)
        store.apply([], written, NOW)
        assert Token.parse(store.observe(NOW).token) == written


def test_ten_thousand_bans_are_written_and_read(path: Path, store: HostsDenyStore) -> None:
    many = [f"10.{n >> 8}.{n & 255}.7" for n in range(8000)] + [f"2001:db8:0:{n:x}::/64" for n in range(2000)]
    store.apply(adds(*many), token(), NOW)
    assert held(store) == {parse_network(text) for text in many}
    store.apply([change(Action.REMOVE, text) for text in many], token(2), NOW)
    assert held(store) == set()
    assert path.read_bytes().startswith(FOREIGN)
    assert path.stat().st_size < 300


@pytest.mark.e2e
def test_a_file_that_may_not_be_changed_is_tried_later(open_folder: Path) -> None:
    code = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from jailbridge.config.settings import HostsDenySettings
from jailbridge.errors import RetryLater
from jailbridge.model.token import Token
from jailbridge.stores.hosts_deny import HostsDenyStore
store = HostsDenyStore(HostsDenySettings(path=Path(sys.argv[1])))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
store.observe(datetime.now(UTC))
try:
    store.apply([], Token(ledger="a", boot="-", layout=1, sequence=1), datetime.now(UTC))
except RetryLater as error:
    print(error)
"""
    path = open_folder / "hosts.deny"
    path.write_bytes(FOREIGN)
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"{path} cannot be written: Permission denied\n"
    assert path.read_bytes() == FOREIGN


# other writers


_listeners: list[Callable[[str, tuple[object, ...]], None]] = []


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    for listener in _listeners:
        listener(event, arguments)


sys.addaudithook(_audit)


@contextlib.contextmanager
def hooked(listener: Callable[[str, tuple[object, ...]], None]) -> Iterator[None]:
    """Have the interpreter tell every system call of note just before it makes it (sys.addaudithook)."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def just_before_renames_to(path: Path, *acts: Callable[[], object]) -> Iterator[None]:
    """Do one act before each renaming to `path`, in turn."""
    left = list(acts)

    def listener(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and Path(str(arguments[1])) == path and left:
            left.pop(0)()

    with hooked(listener):
        yield
    assert not left, "fewer renames than acts"


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


def test_a_line_appended_at_the_last_moment_is_kept(path: Path, store: HostsDenyStore) -> None:
    with just_before_renames_to(path, lambda: append(path, b"sshd: 203.0.113.9\n")):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().count(b"203.0.113.9") == 1
    assert path.read_bytes().startswith(FOREIGN)
    assert held(store) == {parse_network("192.0.2.7")}
    assert store.observe(NOW).token == str(token())


def test_lines_appended_at_last_moments_are_all_kept_once(path: Path, store: HostsDenyStore) -> None:
    lines = [b"sshd: 203.0.113.%d\n" % n for n in range(4)]
    with just_before_renames_to(path, *[lambda line=line: append(path, line) for line in lines]):
        store.apply(adds("192.0.2.7"), token(), NOW)
    content = path.read_bytes()
    assert [content.count(line) for line in lines] == [1, 1, 1, 1]
    assert held(store) == {parse_network("192.0.2.7")}


def test_a_writer_that_had_emptied_the_file_while_we_read_loses_nothing(path: Path, store: HostsDenyStore) -> None:
    path.write_bytes(b"")
    with just_before_renames_to(path, lambda: append(path, FOREIGN)):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert FOREIGN in path.read_bytes()
    assert held(store) == {parse_network("192.0.2.7")}


def test_a_rewriting_in_place_at_the_last_moment_never_costs_foreign_lines(path: Path, store: HostsDenyStore) -> None:
    with just_before_renames_to(path, lambda: path.write_bytes(b"")):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().startswith(FOREIGN)


def test_a_writer_that_never_rests_makes_us_wait(path: Path, store: HostsDenyStore) -> None:
    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and Path(str(arguments[1])) == path:
            append(path, b"# more\n")

    with hooked(look), pytest.raises(RetryLater, match="is being written by something else all the time"):
        store.apply(adds("192.0.2.7"), token(), NOW)


def test_a_file_changed_between_reading_and_writing_is_read_again(path: Path, store: HostsDenyStore) -> None:
    changes: list[Callable[[], object]] = [
        lambda: append(path, b"sshd: 203.0.113.9\n"),
        lambda: (path.parent / "new").write_bytes(b"sshd: 203.0.113.10\n") and (path.parent / "new").replace(path),
        path.unlink,
    ]
    left = list(changes)

    def look(event: str, arguments: tuple[object, ...]) -> None:
        # Our temporary file being opened for writing: we have read, and not yet renamed.
        flags = arguments[2] if event == "open" else 0
        is_ours = (
            isinstance(flags, int) and flags & os.O_CREAT and str(arguments[0]).startswith(f"{path.parent}/.hosts")
        )
        if is_ours and left:
            left.pop(0)()

    with hooked(look):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert left == []
    assert path.read_bytes().startswith(BEGIN), "the last change took the file away"
    assert held(store) == {parse_network("192.0.2.7")}


def test_an_appender_beside_us_loses_no_line(path: Path, store: HostsDenyStore) -> None:
    code = """
import os, sys
n = 0
while os.read(0, 1):
    for n in range(n, n + 20):
        descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, b"sshd: 10.0.0.0 # %d\\n" % n)
        os.close(descriptor)
    n += 1
    os.write(1, b".")
"""
    rounds = 40
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as appender:
        assert appender.stdin is not None
        assert appender.stdout is not None
        for n in range(rounds):
            appender.stdin.write(b"!")
            with contextlib.suppress(RetryLater):
                store.apply(adds(f"192.0.2.{n}"), token(n), NOW)
            assert appender.stdout.read(1) == b"."
        appender.stdin.close()
    store.apply([], token(99), NOW)
    numbers = re.findall(rb"^sshd: 10.0.0.0 # (\d+)$", path.read_bytes(), re.MULTILINE)
    assert sorted(map(int, numbers)) == list(range(20 * rounds))


def test_a_second_of_our_kind_waits_for_its_turn_and_nobody_else_can_make_us_wait(
    path: Path, store: HostsDenyStore
) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    file = os.open(path, os.O_RDONLY)
    try:
        # Anybody may lock what anybody may read.
        fcntl.flock(folder, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_EX)
        store.apply(adds("192.0.2.7"), token(), NOW)
    finally:
        os.close(folder)
        os.close(file)

    refused: list[bool] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "os.rename" and Path(str(arguments[1])) == path and not refused:
            refused.append(True)
            with pytest.raises(RetryLater, match=rf"^another jailbridge is writing {path}$"):
                store_of(path).apply(adds("192.0.2.9"), token(9), NOW)

    with hooked(look):
        store.apply(adds("192.0.2.8"), token(2), NOW)
    assert refused
    assert held(store) == {parse_network("192.0.2.7"), parse_network("192.0.2.8")}
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_killed_at_any_moment_leaves_the_old_file_or_the_new_one(path: Path) -> None:
    code = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from jailbridge.config.settings import HostsDenySettings
from jailbridge.model.network import parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores.hosts_deny import HostsDenyStore
store = HostsDenyStore(HostsDenySettings(path=Path(sys.argv[1])))
sequence = int(sys.argv[2])
while True:
    sequence += 1
    held = [ban.network for ban in store.observe(datetime.now(UTC)).bans]
    changes = [Change(store="", action=Action.REMOVE, network=network, why="") for network in held]
    changes += [
        Change(store="", action=Action.ADD, network=parse_network(f"10.{sequence % 256}.{n // 256}.{n % 256}"), why="")
        for n in range(2000)
    ]
    store.apply(changes, Token(ledger="a", boot="-", layout=1, sequence=sequence), datetime.now(UTC))
    print(sequence, flush=True)
"""
    sequence = 0
    for rounds in range(1, 7):
        writer = subprocess.Popen([sys.executable, "-c", code, str(path), str(sequence)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(rounds)][-1]
        writer.kill()
        writer.wait()
        writer.stdout.close()
        content = path.read_bytes()
        match = re.fullmatch(
            re.escape(FOREIGN + BEGIN) + rb"jb1:a:-:1:(\d+) [^\n]*\n((?:ALL: [0-9.]+\n)*)" + END + b"\n", content
        )
        assert match is not None
        sequence = int(match[1])
        assert sequence in {told, told + 1}
        assert match[2].splitlines() == [b"ALL: 10.%d.%d.%d" % (sequence % 256, *divmod(n, 256)) for n in range(2000)]


# what TCP wrappers make of it


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("banned", "inside", "outside"),
    [
        ("192.0.2.7", ["192.0.2.7"], ["192.0.2.8", "192.0.2.70"]),
        ("192.0.2.64/26", ["192.0.2.64", "192.0.2.127"], ["192.0.2.63", "192.0.2.128"]),
        ("10.0.0.0/8", ["10.255.0.1"], ["11.0.0.1"]),
        ("0.0.0.0/0", ["192.0.2.7", "203.0.113.1"], []),
        ("2001:db8::7", ["2001:db8::7", "2001:db8:0:0::0007"], ["2001:db8::8"]),
        ("2001:db8::/64", ["2001:db8::7", "2001:db8:0:0:ffff::"], ["2001:db8:0:1::7"]),
        ("2001:db8:0:8::/61", ["2001:db8:0:f::1"], ["2001:db8:0:10::1", "2001:db8:0:7::1"]),
    ],
)
@pytest.mark.parametrize(
    "before", [b"", b"sshd: 203.0.113.5", b"# a comment that goes on \\\n", b"sshd: 203.0.113.5, \\\n 203.0.113.6 \\\n"]
)
def test_tcp_wrappers_obey_every_form_of_ban(
    tmp_path: Path, before: bytes, banned: str, inside: list[str], outside: list[str]
) -> None:
    path = tmp_path / "hosts.deny"
    (tmp_path / "hosts.allow").touch()
    path.write_bytes(before)
    store_of(path).apply(adds("198.51.100.1", banned, "198.51.100.2"), token(), NOW)
    append(path, b"sshd: 203.0.113.7\n")

    def access(address: str) -> str:
        done = subprocess.run(
            ["tcpdmatch", "-d", "sshd", address], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return done.stdout.split()[-1]

    for address in [*inside, "198.51.100.1", "198.51.100.2", "203.0.113.7"]:
        assert access(address) == "denied", address
    for address in outside:
        assert access(address) == "granted", address


@pytest.mark.e2e
def test_tcp_wrappers_no_longer_obey_a_ban_that_was_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "hosts.deny"
    (tmp_path / "hosts.allow").touch()
    store = store_of(path)
    store.apply(adds("192.0.2.7"), token(), NOW)
    store.apply([change(Action.REMOVE, "192.0.2.7")], token(2), NOW)
    done = subprocess.run(
        ["tcpdmatch", "-d", "sshd", "192.0.2.7"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "granted"
