"""`jailbridge demo`: the whole loop on real programs, in network namespaces of its own.

lab    two namespaces, a folder, real programs in them, all gone at the end
story  what is shown, step by step, each statement checked
"""
