"""The settings that tests of whole commands and of the daemon begin with."""

from pathlib import Path


def settings_text(folder: Path, *, store: str = "hosts_deny", policy: str = "allow_files = []") -> str:
    """Return a configuration in TOML that touches nothing outside of a folder, but for what its only store does.

    policy  the lines of its section
    """
    enabled = {name: str(name == store).lower() for name in ("hosts_deny", "firewall", "fail2ban", "blocked_files")}
    return f"""
[ledger]
path = "{folder}/ledger"
[policy]
{policy}
[stores.hosts_deny]
enabled = {enabled["hosts_deny"]}
path = "{folder}/hosts.deny"
[stores.firewall]
enabled = {enabled["firewall"]}
backend = "nftables"
[stores.fail2ban]
enabled = {enabled["fail2ban"]}
[stores.blocked_files]
enabled = {enabled["blocked_files"]}
[portsentry]
conf = "{folder}/portsentry.conf"
[control]
socket = "{folder}/run/control.sock"
"""
