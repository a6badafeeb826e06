"""The sensor: sees probes of ports where nothing listens, and tells who scans. It bans nobody.

packet     bytes of one packet -> the probe in it (pure)
bpf        port lists -> the kernel's filter program (pure)
detector   probes of many sources -> who reached how many ports in the window (pure)
capture    the packet sockets
listening  which ports have a live service
own        which addresses are this host's
sensor     joins them
"""

from jailbridge.sensor.sensor import Sensor

__all__ = ["Sensor"]
