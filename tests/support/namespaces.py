"""Hosts of their own: network namespaces on one bridge, in which scripts run. Needs root and Linux."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("in_namespace.py")


@dataclass(frozen=True)
class Host:
    """One namespace, with an address of each kind."""

    namespace: str
    ipv4: str
    ipv6: str

    def script(self, name: str, *arguments: object) -> Sequence[object]:
        """What `Scripts.start` is to be given to run a script on this host."""
        return (str(SCRIPT), self.namespace, name, *arguments)

    def drop_connections(self, *, source: str, port: int) -> None:
        """A firewall: packets from `source` to a TCP port of this host are dropped, answers of that port are not.

        By rules of routing, which need no other program: those of this host's own addresses come first, unless they
        are put behind another one.
        """
        match = ["from", source, "ipproto", "tcp", "dport", str(port)]
        _ip("-n", self.namespace, "rule", "add", "pref", "10", *match, "blackhole")
        _ip("-n", self.namespace, "rule", "add", "pref", "100", "lookup", "local")
        _ip("-n", self.namespace, "rule", "del", "pref", "0")


@contextlib.contextmanager
def hosts(n_hosts: int) -> Iterator[list[Host] | None]:
    """Hosts that reach each other, and nothing else; None where this system, or this user, cannot have them."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        yield None
        return
    prefix = f"mdi{os.getpid()}"
    found = [Host(f"{prefix}-{i}", f"10.77.0.{i}", f"fd77::{i}") for i in range(1, n_hosts + 1)]
    switch = f"{prefix}-0"
    with contextlib.ExitStack() as stack:
        try:
            for namespace in (switch, *(host.namespace for host in found)):
                _ip("netns", "add", namespace)
                stack.callback(_ip, "netns", "del", namespace)
            _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            _ip("-n", switch, "link", "set", "bridge", "up")
            for number, host in enumerate(found):
                _connect(host, switch, f"port{number}")
        except subprocess.CalledProcessError:
            found.clear()
        yield found or None


def _connect(host: Host, switch: str, port: str) -> None:
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.ipv4}/24", "dev", "eth0")
    _ip("-n", host.namespace, "addr", "add", f"{host.ipv6}/64", "dev", "eth0", "nodad")
    for device in ("lo", "eth0"):
        _ip("-n", host.namespace, "link", "set", device, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
