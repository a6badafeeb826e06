from pathlib import Path

import pytest

from jailbridge.importing.migration import Asked

# Debian's, with what an article has changed.
STOCK = """
TCP_PORTS="1,11,15,79"
UDP_PORTS="1,7,9"
ADVANCED_PORTS_TCP="1024"
ADVANCED_PORTS_UDP="1024"
ADVANCED_EXCLUDE_TCP="113,139"
ADVANCED_EXCLUDE_UDP="520,138,137,67"
IGNORE_FILE="{folder}/portsentry.ignore"
HISTORY_FILE="{folder}/portsentry.history"
BLOCKED_FILE="{folder}/portsentry.blocked"
RESOLVE_HOST = "0"
SCAN_TRIGGER="0"
"""
ARTICLE_1 = """BLOCK_UDP="1"
BLOCK_TCP="1"
KILL_HOSTS_DENY="ALL: $TARGET$ : DENY"
KILL_RUN_CMD="/usr/local/bin/notify $TARGET$ $PORT$ $MODE$"
"""
ARTICLE_2 = """BLOCK_UDP="1"
BLOCK_TCP="1"
KILL_ROUTE="/sbin/iptables -I INPUT -s $TARGET$ -j CHAOS"
KILL_HOSTS_DENY="ALL: $TARGET$"
"""


class Machine:
    """The files of a machine with PortSentry, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toml, self.history = folder / "jailbridge.toml", folder / "portsentry.history"
        self.ignore = folder / "portsentry.ignore"
        self.ignore.write_text("127.0.0.1/32\n0.0.0.0\n192.0.2.0/255.255.255.0\n")
        (folder / "hosts.deny").write_text("")

    def conf(self, text: str, tcp: str = "atcp", udp: str = "audp") -> None:
        (self.folder / "portsentry.conf").write_text(STOCK.format(folder=self.folder) + text)
        (self.folder / "defaults").write_text(f'TCP_MODE="{tcp}"\nUDP_MODE="{udp}"\n')

    def asked(self, **more: object) -> Asked:
        return Asked(
            conf=self.folder / "portsentry.conf",
            defaults=self.folder / "defaults",
            config=self.toml,
            hosts_deny=self.folder / "hosts.deny",
            socket=self.folder / "no.sock",
            database=self.folder / "fail2ban.sqlite3",
            jobs=[self.folder / "cron"],
            **more,  # type: ignore[arg-type]
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)
