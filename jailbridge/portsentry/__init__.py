"""The drop-in `jailbridge portsentry`: PortSentry 1.2's and 2.x's own flags, files and log lines, over our sensor.

flags       the command line of either version to one value; pure
engine      one probe to what follows from it: ignored, counted, already blocked, blocked; pure
lines       the words of PortSentry's log; pure
ignore      who is never acted on: the ignore file
blocked     who is "already blocked": the blocked file of either version
respond     KILL_ROUTE, KILL_HOSTS_DENY, KILL_RUN_CMD
output      syslog and stdout
sentry      carries out decisions in PortSentry's order, in a thread of its own
background  goes to the background
run         joins them to a watcher of the sensor, and ends with it
"""
