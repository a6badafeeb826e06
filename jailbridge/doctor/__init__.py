"""What keeps JailBridge from working here as it is configured, each thing with its remedy. Looks, and changes nothing.

A check is a function of the settings that yields a line for each thing it finds; what it cannot look at is a find too.
"""

from jailbridge.doctor.examination import CHECKS, Check, Finding, examine

__all__ = ["CHECKS", "Check", "Finding", "examine"]
