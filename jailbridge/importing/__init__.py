"""`jailbridge import`: what a machine with PortSentry and fail2ban holds, made a configuration and a ledger.

It is read, planned, shown, and only then written; what stands in the old places stays there to the byte.
"""
