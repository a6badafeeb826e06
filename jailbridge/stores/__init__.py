"""The places that hold bans, each behind the same small protocol."""
