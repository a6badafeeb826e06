"""The fail2ban definitions we ship: rendered from the settings, and put into fail2ban's folder.

render    templates and settings to the text of files; touches nothing
install   writes those files, tests them with fail2ban itself, takes them back
"""

from jailbridge.definitions.install import FAIL2BAN, Installed, install, outdated, uninstall, write
from jailbridge.definitions.render import MARK, render

__all__ = ["FAIL2BAN", "MARK", "Installed", "install", "outdated", "render", "uninstall", "write"]
