"""fail2ban's own client, for a server whose control socket speaks what we do not know: slower, a program a command."""

from pathlib import Path

from jailbridge import process
from jailbridge.errors import FatalError, RetryLater
from jailbridge.model.network import shown
from jailbridge.stores.fail2ban_socket import TIMEOUT_S, Refused

CLIENT = "fail2ban-client"
# client/beautifier.py, in all versions; a server that does not answer has its own words.
_NO_JAIL = "does not exist"
_NO_SERVER = ("Is fail2ban running?", "Could not find server", "Unable to contact server")


class Fail2banClient:
    """What `Fail2banSocket` is, by programs: its `ask` returns what the client prints, lists a line each."""

    def __init__(self, path: Path, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s

    @property
    def is_answered(self) -> bool:
        """Whether its server understands it."""
        try:
            return "pong" in str(self.ask("ping"))
        except (RetryLater, Refused):
            return False

    def ask(self, *words: str, timeout_s: float | None = None) -> object:
        """Return what the client prints for a command. Raises Refused and RetryLater as `Fail2banSocket.ask`."""
        try:
            argv = [process.find(CLIENT, "fail2ban"), "-s", str(self._path), *words]
        except FatalError as error:
            raise RetryLater(str(error)) from None
        result = process.run(argv, timeout_s=self._timeout_s if timeout_s is None else timeout_s)
        if result.code == 0:
            return result.out.rstrip("\n")
        said = result.err + result.out
        if any(words in said for words in _NO_SERVER):
            raise RetryLater(f"fail2ban does not answer at {self._path}: is it running?")
        raise Refused("UnknownJailException" if _NO_JAIL in said else "Error", shown(result.first_error))
