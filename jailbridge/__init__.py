"""JailBridge: detects port scans, records each ban once, keeps every store of bans in agreement."""

__version__ = "0.1.0"
