"""The tailer: every complete line of the followed files, once, across rotation, truncation and restarts.

Knows bytes, lines and files. Refuses to know line formats, policy and the ledger.

opened    one open file: complete lines from an offset on
rotated   where a file's earlier lines went: the rotated files beside it
follower  one path through all of its files
watch     what wakes us when something was written
tailer    several paths together
"""

from jailbridge.tailer.follower import Follower
from jailbridge.tailer.opened import Batch
from jailbridge.tailer.tailer import POLL_S, Tailer

__all__ = ["POLL_S", "Batch", "Follower", "Tailer"]
