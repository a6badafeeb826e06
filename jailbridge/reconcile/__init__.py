"""Holds the stores against the ledger: `diff` thinks, `controller` reads, writes and reads again."""
