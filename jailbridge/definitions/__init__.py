"""The fail2ban definitions we ship: rendered from the settings, put into fail2ban's folder, and looked after there.

render     templates and settings to the text of files; touches nothing
files      our files below a folder, told from everybody else's
effective  what fail2ban itself makes of a folder
install    writes the files, has fail2ban test them and take them up; takes them out again
check      whether what is there is what we mean
"""

from jailbridge.definitions.check import Finding, What, check
from jailbridge.definitions.files import outdated, write
from jailbridge.definitions.install import FAIL2BAN, OURS, Installed, install, reload, uninstall
from jailbridge.definitions.render import MARK, render

__all__ = [
    "FAIL2BAN",
    "MARK",
    "OURS",
    "Finding",
    "Installed",
    "What",
    "check",
    "install",
    "outdated",
    "reload",
    "render",
    "uninstall",
    "write",
]
