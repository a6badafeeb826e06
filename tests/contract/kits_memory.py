"""The kit of the twin."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jailbridge.stores.memory import MemoryStore
from jailbridge.stores.protocol import Store


class MemoryKit:
    """The twin."""

    def __init__(self, store: MemoryStore) -> None:
        self.store: Store = store
        self._twin = store

    def prepare(self) -> None:
        """Have it in force, as `apply` finds it."""

    def foreign(self) -> object:
        return None

    def lose(self) -> None:
        self._twin.lose()

    def older_copy(self) -> Callable[[], None]:
        bans, token = dict(self._twin.bans), self._twin.token

        def put_back() -> None:
            self._twin.bans, self._twin.token = bans, token

        return put_back

    def unhook(self) -> bool:
        self._twin.enforcing = False
        return True

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        self._twin.reachable = False
        yield
        self._twin.reachable = True
