"""hosts.deny as a store: on real files, in either form, with other writers about."""

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from operator import is_
from pathlib import Path

import pytest

from jailbridge.config.settings import HostsDenyForm, HostsDenySettings
from jailbridge.errors import FatalError, RetryLater
from jailbridge.host.wrappers import Wrappers
from jailbridge.model.network import Network, parse_network
from jailbridge.model.plan import Action, Change
from jailbridge.model.token import Token
from jailbridge.stores import replaced_file
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.protocol import Drifted

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FOREIGN = b"# by hand\nsshd: 203.0.113.5\n"
NOBODY = 65534
LINES, FILE = HostsDenyForm.LINES, HostsDenyForm.FILE


def token(sequence: int = 1) -> Token:
    return Token(ledger="0123456789ab", boot="-", layout=1, sequence=sequence)


def change(action: Action, network: str) -> Change:
    return Change(store="hosts_deny", action=action, network=parse_network(network), why="test")


def adds(*networks: str) -> list[Change]:
    return [change(Action.ADD, network) for network in networks]


def store_of(path: Path, rule: str = "ALL: {address}", form: HostsDenyForm = LINES) -> HostsDenyStore:
    # On a host without processes and configuration.
    empty = Wrappers(Path("/nonexistent"), Path("/nonexistent"))
    return HostsDenyStore(HostsDenySettings(path=path, rule=rule, form=form), empty)


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
        file.truncate(replaced_file.MAX_BYTES + 1)
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


@pytest.mark.parametrize("form", HostsDenyForm)
def test_however_many_lines_there_are_only_new_ones_are_parsed_and_no_old_one_is_kept(
    path: Path, form: HostsDenyForm
) -> None:
    # More than a cache would have had: a cache that is too small for a file finds none of its lines.
    networks = [Network(4, 10 << 24 | n, 32) for n in range(70_000)]
    store = store_of(path, form=form)
    store.apply([Change("hosts_deny", Action.ADD, network, "test") for network in networks], written(store), NOW)
    first = [ban.network for ban in store.observe(NOW).bans]
    assert first == networks
    append(path, b"sshd: 203.0.113.9\n")
    assert all(map(is_, first, [ban.network for ban in store.observe(NOW).bans]))
    store.apply(adds("192.0.2.7"), written(store, 2), NOW, expected=str(written(store)))
    again = [ban.network for ban in store.observe(NOW).bans]
    assert all(map(is_, first, again))
    assert again[70_000:] == [parse_network("192.0.2.7")]
    store.apply([Change("hosts_deny", Action.REMOVE, network, "test") for network in networks], written(store, 3), NOW)
    store.observe(NOW)
    assert len(store._said) + len(store._list_said) == 1


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


def test_what_another_puts_in_place_at_the_last_moment_is_kept(path: Path, store: HostsDenyStore) -> None:
    def edit() -> None:
        (path.parent / "theirs").write_bytes(FOREIGN + b"sshd: 203.0.113.10\n")
        (path.parent / "theirs").replace(path)

    with just_before_renames_to(path, edit):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().startswith(FOREIGN + b"sshd: 203.0.113.10\n" + BEGIN)
    assert held(store) == {parse_network("192.0.2.7")}
    assert list(path.parent.iterdir()) == [path]


def test_an_edit_in_place_at_the_last_moment_is_kept(path: Path, store: HostsDenyStore) -> None:
    with just_before_renames_to(path, lambda: path.write_bytes(b"sshd: 203.0.113.11\n")):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().startswith(b"sshd: 203.0.113.11\n" + BEGIN)
    assert held(store) == {parse_network("192.0.2.7")}


def test_who_has_the_file_open_when_it_is_replaced_is_waited_for(path: Path, store: HostsDenyStore) -> None:
    code = """
import os, sys
descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(1, b"!")
os.read(0, 1)
# Our writing is done but for the waiting.
while os.stat(sys.argv[1]).st_ino == os.fstat(descriptor).st_ino: pass
os.write(descriptor, b"sshd: 203.0.113.12\\n")
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.read(1) == b"!"
        go = partial(writer.stdin.write, b"!")
        with just_before_renames_to(path, go):
            store.apply(adds("192.0.2.7"), token(), NOW)
    assert path.read_bytes().count(b"203.0.113.12") == 1
    assert held(store) == {parse_network("192.0.2.7")}


# touched


@pytest.mark.parametrize("form", HostsDenyForm)
def test_what_others_write_is_a_touch_and_what_we_write_is_none(path: Path, form: HostsDenyForm) -> None:
    store = store_of(path, form=form)
    assert store.touched(), "never read"
    store.observe(NOW)
    assert not store.touched()
    for number in range(3):
        store.apply(adds(f"192.0.2.{number}"), token(number), NOW)
        assert not store.touched()
    files = [path] if form is LINES else [path, HostsDenySettings(path=path).list_path]
    for file in files:
        for act in (lambda file=file: append(file, b"# x\n"), file.unlink, file.touch):
            act()
            assert store.touched(), file
            assert store.touched(), "until it is read"
            store.observe(NOW)
            assert not store.touched(), file


def test_another_file_behind_a_link_is_a_touch(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    store = store_of(link)
    store.observe(NOW)
    (tmp_path / "other").write_bytes(FOREIGN)
    link.unlink()
    link.symlink_to(tmp_path / "other")
    assert store.touched()


def test_what_another_wrote_before_our_writing_is_a_touch_after_it(path: Path, store: HostsDenyStore) -> None:
    store.apply(adds("192.0.2.7", "192.0.2.8"), token(), NOW)
    store.observe(NOW)
    path.write_bytes(path.read_bytes().replace(b"ALL: 192.0.2.7\n", b""))
    store.apply(adds("192.0.2.9"), token(2), NOW, expected=str(token()))
    assert store.touched(), "nobody has seen yet what is missing"
    assert held(store) == {parse_network("192.0.2.8"), parse_network("192.0.2.9")}
    assert not store.touched()


def test_what_is_written_in_the_moment_of_our_writing_is_a_touch(path: Path, store: HostsDenyStore) -> None:
    store.observe(NOW)
    with just_before_renames_to(path, lambda: append(path, b"sshd: 203.0.113.9\n")):
        store.apply(adds("192.0.2.7"), token(), NOW)
    assert store.touched()


# form = "file"


@pytest.fixture
def listed(path: Path) -> HostsDenyStore:
    return store_of(path, form=FILE)


@pytest.fixture
def list_path(path: Path) -> Path:
    return path.with_name("hosts.deny.jailbridge")


def test_one_line_names_the_list_and_the_list_has_the_addresses(
    path: Path, list_path: Path, listed: HostsDenyStore
) -> None:
    listed.apply(adds("192.0.2.7", "10.0.0.0/8", "2001:db8::/64"), written(listed), NOW)
    assert f"\nALL: {list_path}\n{END.decode()}\n" in path.read_text()
    assert list_path.read_text().splitlines()[1:] == ["192.0.2.7", "10.0.0.0/255.0.0.0", "[2001:db8::]/64"]
    assert list_path.stat().st_mode & 0o777 == 0o644
    assert listed.observe(NOW).token == str(written(listed))


def test_hosts_deny_itself_is_written_once(path: Path, listed: HostsDenyStore) -> None:
    listed.apply(adds("192.0.2.7"), written(listed), NOW)
    before = path.stat()
    listed.apply(adds("192.0.2.8"), written(listed, 2), NOW, expected=str(written(listed)))
    assert path.stat() == before
    assert listed.observe(NOW).token == str(written(listed, 2))
    assert held(listed) == {parse_network("192.0.2.7"), parse_network("192.0.2.8")}


def test_what_a_person_takes_out_of_the_list_or_puts_there_is_seen_under_the_same_token(
    path: Path, list_path: Path, listed: HostsDenyStore
) -> None:
    listed.apply(adds("192.0.2.7", "192.0.2.8"), written(listed), NOW)
    text = list_path.read_text().replace("192.0.2.7\n", "198.51.100.0/24 203.0.113.9\n.example.org\n")
    list_path.write_text(text)
    append(path, b"")
    assert held(listed) == {parse_network(net) for net in ("192.0.2.8", "198.51.100.0/24", "203.0.113.9")}
    seen = listed.observe(NOW)
    assert (seen.token, seen.foreign) == (str(written(listed)), 2)
    listed.apply(adds("192.0.2.9"), written(listed, 2), NOW)
    assert "\n.example.org\n" in list_path.read_text()


@pytest.mark.parametrize("file", ["hosts.deny", "hosts.deny.jailbridge"])
def test_a_list_that_is_lost_or_no_longer_named_has_no_token(path: Path, listed: HostsDenyStore, file: str) -> None:
    listed.apply(adds("192.0.2.7"), written(listed), NOW)
    path.with_name(file).write_bytes(FOREIGN)
    seen = listed.observe(NOW)
    assert (seen.token, seen.bans) == (None, ())
    listed.apply(adds("192.0.2.8"), written(listed, 2), NOW)
    assert held(listed) == {parse_network("192.0.2.8")}, "what was not in force did not come back"
    assert listed.observe(NOW).token == str(written(listed, 2))


def test_an_older_list_brings_its_older_token(list_path: Path, listed: HostsDenyStore) -> None:
    listed.apply(adds("192.0.2.7"), written(listed), NOW)
    older = list_path.read_bytes()
    listed.apply(adds("192.0.2.8"), written(listed, 2), NOW)
    list_path.write_bytes(older)
    assert listed.observe(NOW).token == str(written(listed))
    with pytest.raises(Drifted):
        listed.apply(adds("192.0.2.9"), written(listed, 3), NOW, expected=str(written(listed, 2)))
    assert list_path.read_bytes() == older


def test_a_change_of_form_is_another_layout(path: Path, store: HostsDenyStore, listed: HostsDenyStore) -> None:
    assert store.capabilities.layout != listed.capabilities.layout
    assert listed.capabilities.layout != store_of(path, "sshd: {address}", FILE).capabilities.layout


@pytest.mark.parametrize("before", HostsDenyForm)
def test_a_change_of_form_keeps_every_ban_and_never_has_it_nowhere(
    path: Path, list_path: Path, before: HostsDenyForm
) -> None:
    old, new = store_of(path, form=before), store_of(path, "sshd: {address}", FILE if before is LINES else LINES)
    old.apply(adds("192.0.2.7", "2001:db8::/64"), written(old), NOW)
    both = {parse_network("192.0.2.7"), parse_network("2001:db8::/64")}
    assert held(new) == both
    found: list[set[Network]] = []

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in {"os.rename", "os.remove"}:
            found.append(held(store_of(path, form=LINES)))

    with hooked(look):
        new.apply(adds("192.0.2.8"), written(new, 2), NOW)
    assert found
    assert all(both <= bans for bans in found)
    assert held(new) == both | {parse_network("192.0.2.8")}
    assert new.observe(NOW).token == str(written(new, 2))
    assert list_path.exists() == (before is LINES)
    assert path.read_bytes().startswith(FOREIGN)


def test_patterns_by_hand_in_a_list_that_is_given_up_are_told_and_kept(
    path: Path, list_path: Path, listed: HostsDenyStore, store: HostsDenyStore, caplog: pytest.LogCaptureFixture
) -> None:
    listed.apply(adds("192.0.2.7"), written(listed), NOW)
    append(list_path, b".example.org\n")
    for number in (1, 2):
        store.apply(adds("192.0.2.8"), token(number), NOW)
    assert list_path.read_bytes() == b".example.org\n"
    assert [record.message for record in caplog.records] == [
        f"file={list_path} has patterns that nothing reads any more: put them into {path}"
    ]


def test_a_ban_by_hand_in_the_block_goes_into_the_list(path: Path, listed: HostsDenyStore) -> None:
    listed.apply(adds("192.0.2.7"), written(listed), NOW)
    path.write_bytes(path.read_bytes().replace(END, b"ALL: 192.0.2.66\n" + END))
    assert held(listed) == {parse_network("192.0.2.7"), parse_network("192.0.2.66")}
    listed.apply([change(Action.REMOVE, "192.0.2.7")], written(listed, 2), NOW)
    assert b"192.0.2.66" not in path.read_bytes()
    assert held(listed) == {parse_network("192.0.2.66")}


def written(store: HostsDenyStore, sequence: int = 1) -> Token:
    """A token as the ledger gives it to this store."""
    return Token(ledger="0123456789ab", boot="-", layout=store.capabilities.layout, sequence=sequence)


# what listens


def test_whether_anything_asks_tcp_wrappers_is_asked_of_the_host(path: Path, tmp_path: Path) -> None:
    (tmp_path / "inetd.conf").write_text("ftp stream tcp nowait root /usr/sbin/tcpd in.ftpd\n")
    store = HostsDenyStore(HostsDenySettings(path=path), Wrappers(Path("/nonexistent"), tmp_path))
    assert store.observe(NOW).enforcing is True
    assert store_of(path).observe(NOW).enforcing is None
