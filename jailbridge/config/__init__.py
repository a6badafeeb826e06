"""The configuration: TOML in, one frozen tree of settings out, or every problem at once."""

from jailbridge.config.load import DEFAULT_PATH, load, parse
from jailbridge.config.settings import Settings

__all__ = ["DEFAULT_PATH", "Settings", "load", "parse"]
