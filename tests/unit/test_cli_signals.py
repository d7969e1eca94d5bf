"""The signals of a call in the foreground, with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.support import wait

TARGET = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN})
print("ready", flush=True)
for _ in range(501):
    signal.sigwait({signal.SIGRTMIN})
print("all", flush=True)
"""

PROXY = """
import os, select, sys
from shimd.cli.signals import SignalProxy
proxy = SignalProxy()
os.kill(os.getpid(), 34)  # before there is somebody to forward it to
pidfd = os.pidfd_open(int(sys.argv[1]))
proxy.forward_to(pidfd, lambda: None)
print("ready", flush=True)
poller = select.poll()
poller.register(pidfd, select.POLLIN)
poller.poll()
"""


def test_of_a_burst_of_real_time_signals_none_is_lost() -> None:
    """They queue in the kernel, up to our own limit of them."""
    target = subprocess.Popen([sys.executable, "-c", TARGET], stdout=subprocess.PIPE)
    with target:
        assert target.stdout is not None
        wait.read_until(target.stdout.fileno(), b"ready\n")
        command = [sys.executable, "-c", PROXY, str(target.pid)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as proxy:
            assert proxy.stdout is not None
            wait.read_until(proxy.stdout.fileno(), b"ready\n")
            for _ in range(500):
                os.kill(proxy.pid, signal.SIGRTMIN)
            assert wait.read_to_end(target.stdout.fileno()) == b"all\n"
