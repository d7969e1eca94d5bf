"""The kernel: one module per facility, wrappers named like the system call, OSError only. Nothing here knows
containers.
"""
