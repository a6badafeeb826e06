"""The kit of the store behind hosts.deny, in either form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jailbridge.config.settings import HostsDenyForm, HostsDenySettings
from jailbridge.stores.deny_file import BEGIN, END
from jailbridge.stores.hosts_deny import HostsDenyStore
from jailbridge.stores.protocol import Store

FOREIGN_LINES = b"# by hand\nsshd: 203.0.113.5\n"


class HostsDenyKit:
    """A file, and under "file" the list beside it, in a folder of the test's own."""

    def __init__(self, path: Path, form: HostsDenyForm = HostsDenyForm.LINES) -> None:
        self.path = path
        path.write_bytes(FOREIGN_LINES)
        settings = HostsDenySettings(path=path, form=form)
        self.list_path = settings.list_path
        self.store: Store = HostsDenyStore(settings)

    def prepare(self) -> None:
        """Foreign lines on both sides of the block."""
        self.path.write_bytes(FOREIGN_LINES + BEGIN + b"\n" + END + b"\n# more by hand\nin.ftpd: .example.org")

    def foreign(self) -> object:
        before, _, rest = self.path.read_bytes().partition(BEGIN)
        return before, rest.partition(END + b"\n")[2]

    def lose(self) -> None:
        """Somebody's configuration management puts its own file there."""
        self.path.write_bytes(FOREIGN_LINES)

    def older_copy(self) -> Callable[[], None]:
        copies = {path: path.read_bytes() for path in (self.path, self.list_path) if path.exists()}

        def put_back() -> None:
            for path, content in copies.items():
                path.write_bytes(content)

        return put_back

    def unhook(self) -> bool:
        return False

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        content = self.path.read_bytes()
        self.path.unlink()
        self.path.mkdir()
        yield
        self.path.rmdir()
        self.path.write_bytes(content)
