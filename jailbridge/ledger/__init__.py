"""The ledger: the one record of bans that every store is held against. SQLite, and nowhere else."""

from jailbridge.ledger.ledger import Ledger

__all__ = ["Ledger"]
