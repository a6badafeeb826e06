"""Errors, named by what the caller should do about them.

Each carries one line of text that names the thing and the remedy; it is shown as it is.
"""


class JailBridgeError(Exception):
    """Anything that JailBridge itself reports; the text is one line for people."""


class ParseError(JailBridgeError):
    """Skip this input; it is not what it should be."""


class RetryLater(JailBridgeError):
    """Wait: the thing is out of reach now and may be back."""


class GiveUp(JailBridgeError):
    """Drop this change: trying again will not help."""


class UnsafePlan(JailBridgeError):
    """Ask a person before doing this (the command line's --force)."""


class FatalError(JailBridgeError):
    """Stop: a person must mend something first."""
