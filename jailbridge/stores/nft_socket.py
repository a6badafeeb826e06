"""Makes our nftables steps over netlink, lists sets, hears what others do to our table; what is said is nft_netlink's.

Both need CAP_NET_ADMIN. Options and numbers: netlink(7), linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

import errno
import os
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from jailbridge.errors import RetryLater
from jailbridge.stores import nft_netlink
from jailbridge.stores.nft_sets import NftSet, Step

_NETFILTER = 12
_GROUP = 7
_NO_NEWS, _NEWS_OF_NFTABLES = 0, 1 << _GROUP - 1
_SOL_NETLINK, _CAP_ACK = 270, 10
_JOIN, _LEAVE = 1, 2
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33
_NETWORK = Path("/proc/thread-self/ns/net")
# The kernel fills at most 32 KiB in one go.
_PART = 1 << 16
# Another table's bulk load, or our own, must not look like a loss: room for the news of 50,000 elements.
_ROOM = 4 << 20
# When we change more than this ourselves, we do not listen meanwhile: to be told takes as long as to have it done.
_AUDIBLE = 20_000
# Whoever changes our table this often while it is read will do so again.
_TRIES = 5
# More pieces than there is room for: a flood must not hold up who else waits.
_PIECES = 1 << 14
_T = TypeVar("_T")


class NftSocket:
    """The kernel's ear and mouth for nftables, as two sockets that are kept: to close one takes some 10 ms.

    They are opened anew where the process has forked, or the thread has moved to another network namespace since.
    Not thread-safe.
    """

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        """By the groups of news that each hears."""
        self._home: tuple[int, int] | None = None
        self._heard = False
        # Who forgets us holds no socket either.
        weakref.finalize(self, _close, self._sockets)

    def write(self, steps: Sequence[Step]) -> None:
        """Make all steps in one transaction; the kernel has made them when this returns. They are not heard.

        Raises OSError: the reason of the first step that it refused, and nothing is made; or its answer was lost.
        """
        self.hear()
        is_audible = sum(len(step.elements) for step in steps) <= _AUDIBLE
        with nullcontext() if is_audible else self.deaf(), self._talking() as talking:
            self._transact(talking, steps)
        self.hear()

    def elements(self, s: NftSet) -> list[nft_netlink.Held]:
        """Return what a set holds, in no order. Raises OSError, as where it is not there, and RetryLater.

        While a hash table grows, as for some milliseconds after it was filled, the kernel lists some elements twice and
        leaves out as many others (6.18).
        """
        self._come_home()
        for _ in range(_TRIES):
            elements = self._listed(s)
            starts = [element.address for element in elements if element.address is not None and not element.is_end]
            if len(starts) == len({*starts}):
                return elements
        raise RetryLater(f"the kernel lists elements of our nftables set {s.name} twice: it has not done growing")

    def _listed(self, s: NftSet) -> list[nft_netlink.Held]:
        elements: list[nft_netlink.Held] = []
        with self._talking() as talking:
            talking.send(nft_netlink.listing(s))
            while True:
                part = _received(talking)
                elements += nft_netlink.held(part, s)
                error = nft_netlink.outcome(part)
                if error:
                    raise OSError(error, os.strerror(error))
                if error is not None:
                    return elements

    def undisturbed(self, read: Callable[[], _T]) -> _T:
        """Return what `read` returns when nobody else changed our table meanwhile, so that it is of one moment.

        What was heard before is remembered. (The kernel marks a listing as interrupted by a change to any table, and
        on a host with containers there is always one.) Raises RetryLater.
        """
        self._is_listening()
        for _ in range(_TRIES):
            self.hear()
            before, self._heard = self._heard, False
            if before:
                self.skip()
            try:
                result = read()
            finally:
                self.hear()
                is_disturbed, self._heard = self._heard, self._heard or before
            if not is_disturbed:
                return result
        raise RetryLater("our nftables table is changed while it is read, again and again: see `nft monitor`")

    def forget(self) -> None:
        """Forget what was heard until now."""
        self._heard = False

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Hear nothing of what is done to our table, and spare the kernel the telling."""
        self.hear()
        listening = self._sockets.get(_NEWS_OF_NFTABLES)
        if listening is not None:
            listening.setsockopt(_SOL_NETLINK, _LEAVE, _GROUP)
        try:
            yield
        finally:
            if listening is not None:
                listening.setsockopt(_SOL_NETLINK, _JOIN, _GROUP)

    @contextmanager
    def _talking(self) -> Iterator[socket.socket]:
        try:
            yield self._opened(_NO_NEWS)
        except BaseException:
            # Whatever else it answers is of no later question.
            _close(self._sockets, _NO_NEWS)
            raise

    def _transact(self, talking: socket.socket, steps: Sequence[Step]) -> None:
        message = nft_netlink.batch(steps)
        talking.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, len(message))
        # The kernel works while we send, and has answered then.
        talking.send(message)
        while True:
            for number, error in nft_netlink.answers(_received(talking)):
                if error:
                    raise OSError(error, os.strerror(error))
                if number == len(steps):
                    return

    def listen(self) -> None:
        """Forget all that was heard, and listen from now on."""
        self._is_listening()
        self.skip()
        self._heard = False

    def hear(self) -> None:
        """Remember whether others did something to our table until now."""
        self._come_home()
        listening, talking = self._sockets.get(_NEWS_OF_NFTABLES), self._sockets.get(_NO_NEWS)
        own = talking.getsockname()[0] if talking is not None else None
        while listening is not None and not self._heard:
            try:
                self._heard = nft_netlink.is_of_others(listening.recv(_PART), own)
            except BlockingIOError:
                break
            except OSError:
                # The kernel could not tell us everything.
                self._heard = True

    def skip(self) -> None:
        """Pass over all that was said until now."""
        self._come_home()
        listening = self._sockets.get(_NEWS_OF_NFTABLES)
        if listening is None:
            return
        for _ in range(_PIECES):
            try:
                # What does not fit is cut off.
                listening.recv(1)
            except BlockingIOError:
                break
            except OSError:
                continue

    def touched(self) -> bool:
        """Tell whether others did something to our table since the last call; never raises.

        True, too, where it could not be heard until now; False where it cannot be heard at all.
        """
        is_new = not self._is_listening()
        self.hear()
        touched = _NEWS_OF_NFTABLES in self._sockets and (is_new or self._heard)
        if touched:
            # A flush tells of each element: one is enough.
            self.listen()
        return touched

    def _is_listening(self) -> bool:
        """Tell whether it has been listening, and see to it that it does."""
        self._come_home()
        has_been = _NEWS_OF_NFTABLES in self._sockets
        with suppress(OSError):
            self._opened(_NEWS_OF_NFTABLES)
        return has_been

    def _opened(self, groups: int) -> socket.socket:
        if groups not in self._sockets:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETFILTER)
            try:
                sock.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
                sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _ROOM)
                sock.bind((0, groups))
            except OSError:
                sock.close()
                raise
            self._sockets[groups] = sock
        return self._sockets[groups]

    def _come_home(self) -> None:
        try:
            home = (os.getpid(), _NETWORK.stat().st_ino)
        except OSError:
            home = (os.getpid(), 0)
        if home != self._home:
            _close(self._sockets)
            self._home = home


def _received(talking: socket.socket) -> bytes:
    try:
        return talking.recv(_PART)
    except BlockingIOError:
        raise OSError(errno.EIO, "no answer") from None


def _close(sockets: dict[int, socket.socket], *which: int) -> None:
    for groups in which or list(sockets):
        if groups in sockets:
            sockets.pop(groups).close()
