"""This host: its place in the network, whom it asks for names, who is logged in from elsewhere. Decides nothing."""

from jailbridge.host.addresses import Surroundings, surroundings
from jailbridge.host.boot import boot_id

__all__ = ["Surroundings", "boot_id", "surroundings"]
