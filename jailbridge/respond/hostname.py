"""The name that the DNS has for an address. Its owner chooses it: it proves nothing, and may be slow to come."""

import re

from jailbridge import process
from jailbridge.errors import RetryLater
from jailbridge.model.network import Network, is_host, network_text

TIMEOUT_S = 2.0
# RFC 1035, 2.3.4: 253 letters in all; of them those of RFC 1123, 2.1, and none first that would make it an option.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")


def hostname(network: Network, timeout_s: float = TIMEOUT_S) -> str:
    """Return the name of an address, "" for a network, where there is none in time, and for one with odd letters."""
    if not is_host(network):
        return ""
    try:
        # The library's own look-up has no time limit.
        answer = process.run(["getent", "hosts", network_text(network)], timeout_s=timeout_s)
    except RetryLater:
        return ""
    words = answer.out.split()
    name = words[1] if answer.code == 0 and len(words) > 1 else ""
    return name if _NAME.fullmatch(name) else ""
