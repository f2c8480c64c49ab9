"""Links of a given rate between ranks on one machine: network namespaces, a switch, token buckets.

    rank 0 [link0]---[port0]  switch  [port1]---[link0] rank 1        each [ ] is one end of a veth pair

Every rank lives in a namespace of its own, and the switch in another one, so that nothing is added to the host's own
network. A token bucket (tc tbf) at link0 limits what the rank sends, one at its port what it receives: a full-duplex
link of that rate to a switch that itself is not a limit. It needs root, and Linux with `ip` and `tc`; `Loopback` has
the same surface without limits, for everybody else.

Design note.
(a) Buckets are small: a millisecond of the rate, two frames at least. What fits into the bucket travels at once, and
    in buckets of 128 kB, a usual choice, that is every compressed message of a network of a million parameters.
(b) The queue before a bucket holds 100 ms of the rate and drops what is beyond; TCP, with the congestion control that
    the machine has, finds the rate.
(c) Names carry the process id of the run. A namespace whose process is gone was left by a run that was killed; the next
    run removes it.
"""

from __future__ import annotations

import atexit
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

PREFIX = "compress-ddp"
FRAME = 1514  # bytes, of an Ethernet frame with a full packet
QUEUE = 0.1  # seconds
_COUNT = itertools.count()


def unavailable() -> str | None:
    """Why there can be no such links here, or None. Makes one and removes it."""
    if sys.platform != "linux":
        return f"network namespaces need Linux, this is {sys.platform}"
    if missing := [tool for tool in ("ip", "tc") if shutil.which(tool) is None]:
        return f"{' and '.join(missing)} not found (package iproute2)"
    if os.geteuid():
        return "network namespaces need root"
    try:
        with Links(1) as links:
            links.shape(10)
    except OSError as error:
        return str(error)
    return None


class Links:
    """n ranks on a switch, each by a link of its own. A context manager: everything is gone when it ends, also by an
    exception, by Ctrl-C and at the exit of Python.

    interface: its name inside of every rank's namespace. address(rank): inside. shaped: that rates are kept.
    Raises OSError, with what `ip` or `tc` said, where they fail.
    """

    interface, shaped = "link0", True

    def __init__(self, n: int):
        self.n = n
        name = f"{PREFIX}-{os.getpid()}-{next(_COUNT)}"
        self.switch, self.names = f"{name}-switch", [f"{name}-{rank}" for rank in range(n)]

    def __enter__(self):
        remove_leftovers()
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()
        atexit.unregister(self.close)

    def _build(self):
        _do("ip", "netns", "add", self.switch)
        _do("ip", "-n", self.switch, "link", "add", "switch", "type", "bridge", "forward_delay", "0")
        _quiet(self.switch)
        _do("ip", "-n", self.switch, "link", "set", "switch", "up")
        for rank, name in enumerate(self.names):
            _do("ip", "netns", "add", name)
            _quiet(name)
            pair = ["link", "add", self.interface, "netns", name, "type", "veth", "peer", "name", f"port{rank}"]
            _do("ip", *pair, "netns", self.switch)
            _do("ip", "-n", self.switch, "link", "set", f"port{rank}", "master", "switch", "up")
            _do("ip", "-n", name, "address", "add", f"{self.address(rank)}/16", "dev", self.interface)
            for device in ("lo", self.interface):
                _do("ip", "-n", name, "link", "set", device, "up")

    def close(self):
        """Remove the namespaces, and with them all that is in them."""
        for name in [*self.names, self.switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def address(self, rank: int) -> str:
        return f"10.0.{rank // 250}.{rank % 250 + 1}"

    def command(self, rank: int) -> list[str]:
        """What to put before a command so that it runs where the rank is."""
        return ["ip", "netns", "exec", self.names[rank]]

    def shape(self, rate: float | None) -> None:
        """Limit every link to `rate` Mbit/s in both directions; None takes the limits off."""
        for rank, name in enumerate(self.names):
            for namespace, device in ((name, self.interface), (self.switch, f"port{rank}")):
                subprocess.run(["tc", "-n", namespace, "qdisc", "del", "dev", device, "root"], capture_output=True)
                if rate is not None:
                    _do("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", *_bucket(rate))


class Loopback:
    """Ranks as plain processes: the surface of `Links`, without namespaces and without limits."""

    interface, shaped = "lo", False

    def __init__(self, n: int):
        self.n = n

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def address(self, rank: int) -> str:
        return "127.0.0.1"

    def command(self, rank: int) -> list[str]:
        return []

    def shape(self, rate: float | None) -> None:
        """Raises ValueError for a rate: nothing would keep it."""
        if rate is not None:
            raise ValueError(f"loopback has no limits, {rate:g} Mbit/s would not be kept")


@contextmanager
def ending_on_sigterm():
    """SIGTERM as SystemExit, so that namespaces are removed."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def remove_leftovers() -> list[str]:
    """Delete the namespaces of runs whose process is gone; their names."""
    if shutil.which("ip") is None:
        return []
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    names = re.findall(rf"^({PREFIX}-(\d+)-[\w-]+)", listed, re.MULTILINE)
    gone = [name for name, pid in names if not os.path.exists(f"/proc/{pid}")]
    for name in gone:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return gone


def _bucket(rate):
    """tbf's parameters for a rate in Mbit/s."""
    burst = max(2 * FRAME, round(rate * 1e6 / 8 / 1000))
    limit = max(burst + 20 * FRAME, round(rate * 1e6 / 8 * QUEUE))
    return ["tbf", "rate", f"{round(rate * 1e6)}bit", "burst", str(burst), "limit", str(limit)]


def _quiet(name):
    """Without what IPv6 sends of its own accord."""
    off = "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6 || true"
    _do("ip", "netns", "exec", name, "sh", "-c", off)


def _do(*command):
    """Run it; OSError with what it said where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}")
