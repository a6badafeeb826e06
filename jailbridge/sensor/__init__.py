"""The sensor: sees probes of ports where nothing listens, and tells who scans. It bans nobody.

packet       bytes of one packet -> the probe in it (pure)
bpf          what to watch -> the kernel's filter program (pure)
detector     probes of many sources -> who reached how many ports in the window (pure)
solicited    what this host asked for by UDP (pure)
ring         packets from the kernel in shared memory
capture      the packet socket: filter, ring, drops
netlink      the kernel's lists
links        wakes when interfaces or addresses change
own          which addresses are this host's
listening    which ports have a live service
connections  whether a TCP connection exists
stealth      joins these: packets -> probes
decoy_sockets  sockets that pose as services
decoys       listens on the ports itself: connections -> probes
sensor       probes -> reports of scans
names        reports -> reports with the source's name in the DNS
"""
