"""Servers that say to a client of fail2ban's whatever a test wants."""

import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jailbridge.stores.fail2ban_socket import END


@contextmanager
def serving(path: Path, *connections: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server on the socket that meets each connection in turn as told, then closes it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for meet in connections:
                connection, _ = listener.accept()
                with connection:
                    meet(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)
            assert not thread.is_alive()


def request(connection: socket.socket) -> list[str]:
    received = b""
    while not received.endswith(END):
        part = connection.recv(4096)
        assert part, received
        received += part
    words = pickle.loads(received[: -len(END)])
    assert isinstance(words, list)
    return words


def saying(*answers: bytes) -> Callable[[socket.socket], None]:
    def meet(connection: socket.socket) -> None:
        for answer in answers:
            request(connection)
            connection.sendall(answer)

    return meet
