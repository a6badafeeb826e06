"""The tailer: every complete line of the followed files, once, across rotation, truncation and restarts.

Knows bytes, lines and files. Refuses to know line formats, policy and the ledger.

opened    one open file: complete lines from an offset on
unpacked  the text of a compressed one
rotated   where a file's earlier lines went: its rotated files
follower  one path through all of its files
pattern   the files that a pattern names, each with its follower
journal   one name in the systemd journal
source    what all of these are to the tailer
watch     what wakes us when something was written
tailer    all of it together
"""

from jailbridge.tailer.follower import Follower
from jailbridge.tailer.source import Batch
from jailbridge.tailer.tailer import POLL_S, Tailer

__all__ = ["POLL_S", "Batch", "Follower", "Tailer"]
