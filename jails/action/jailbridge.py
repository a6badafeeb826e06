# Written by jailbridge; do not edit: changes are lost with the next install
"""A fail2ban action that stops no packets: it holds the jailbridge daemon's mark on this jail.

`fail2ban-client set JAIL action jailbridge token X` sets the mark. It survives a reload and is gone after a restart of
the jail or of the server, together with the bans it stands for, and once fail2ban has let a ban run out. Enforcement is
the daemon's firewall store.
What happens in the jail is told to the daemon's socket `wake`, so that it looks; where nobody listens nothing waits.
Written for fail2ban 1.0.2 to 1.1; needs nothing but fail2ban.
"""

import socket
import time

from fail2ban.server.action import ActionBase


class Action(ActionBase):
    """Bookkeeping alone."""

    def __init__(self, jail, name, wake="", **options):
        super().__init__(jail, name)
        self.token = ""
        self.wake = wake

    # fail2ban drops a Python action at a plain reload unless it has both of the next two.
    def clearAllParams(self):  # noqa: N802
        """Keep the mark: a reload leaves the bans in place."""

    def reload(self, wake="", **options):
        """Keep the mark."""
        self.wake = wake

    def start(self):
        self._tell("start")

    def stop(self):
        self.token = ""
        self._tell("stop")

    def ban(self, aInfo):
        self._tell("ban %s" % aInfo["ip"])

    def unban(self, aInfo):
        if _has_run_out(aInfo):
            # Nobody took it out: the mark must not say so.
            self.token = ""
        self._tell("unban %s" % aInfo["ip"])

    def flush(self):
        """Say that all is flushed, so that fail2ban does not call unban for each address."""
        self._tell("flush")
        return True

    def _tell(self, what):
        self._logSys.debug("jailbridge action=%s", what)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(what.encode(), self.wake)
        except OSError:
            # Nobody listens, or has not kept up: the daemon reads the jail now and then all the same.
            pass


def _has_run_out(aInfo):
    lasts = aInfo["bantime"]
    return lasts is not None and lasts >= 0 and aInfo["time"] + lasts <= time.time()
