# Written by jailbridge; do not edit: changes are lost with the next install
"""A fail2ban action that stops no packets: it holds the jailbridge daemon's mark on this jail.

`fail2ban-client set JAIL action jailbridge token X` sets the mark. It survives a reload and is gone after a restart of
the jail or of the server, together with the bans it stands for. Enforcement is the daemon's firewall store.
Written for fail2ban 1.0.2 to 1.1; needs nothing but fail2ban.
"""

from fail2ban.server.action import ActionBase


class Action(ActionBase):
    """Bookkeeping alone."""

    def __init__(self, jail, name, **options):
        super().__init__(jail, name)
        self.token = ""

    # fail2ban drops a Python action at a plain reload unless it has both of the next two.
    def clearAllParams(self):  # noqa: N802
        """Keep the mark: a reload leaves the bans in place."""

    def reload(self, **options):
        """Keep the mark."""

    def start(self):
        self._logSys.debug("jailbridge action=start")

    def stop(self):
        self.token = ""
        self._logSys.debug("jailbridge action=stop")

    def ban(self, aInfo):
        self._logSys.debug("jailbridge action=ban address=%s", aInfo["ip"])

    def unban(self, aInfo):
        self._logSys.debug("jailbridge action=unban address=%s", aInfo["ip"])

    def flush(self):
        """Say that all is flushed, so that fail2ban does not call unban for each address."""
        self._logSys.debug("jailbridge action=flush")
        return True
