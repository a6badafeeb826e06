"""The fail2ban definitions we ship: rendered from the settings, put into fail2ban's folder, and looked after there.

render     templates and settings to the text of files; touches nothing
files      our files below fail2ban's folder
effective  what fail2ban itself makes of a folder
install    writes the files, has fail2ban test them and take them up; takes them out again
check      whether what is there is what we mean
"""

from jailbridge.definitions.check import AGAIN, Finding, What, check
from jailbridge.definitions.effective import jails
from jailbridge.definitions.files import write
from jailbridge.definitions.install import FAIL2BAN, OURS, Installed, install, reload, uninstall
from jailbridge.definitions.render import render
from jailbridge.owned_files import MARK, outdated

__all__ = [
    "AGAIN",
    "FAIL2BAN",
    "MARK",
    "OURS",
    "Finding",
    "Installed",
    "What",
    "check",
    "install",
    "jails",
    "outdated",
    "reload",
    "render",
    "uninstall",
    "write",
]
