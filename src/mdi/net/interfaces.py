"""The addresses of this machine, and which of them other machines can use."""

import re
import socket

from mdi.net.access import IpAddress, parse_ip

# Bridges and cables to containers and virtual machines of this machine: docker, podman, Kubernetes, libvirt, LXC.
_VIRTUAL = re.compile(r"(docker|podman|veth|cni|flannel|cali|virbr|vnet|lxc|lxd|vmnet)|br-[0-9a-f]{12}$")
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def all_addresses() -> list[str]:
    """Every address of this machine, loopback too."""
    import psutil  # --help can do without

    return [item.address for items in psutil.net_if_addrs().values() for item in items if item.family in _FAMILIES]


def shared_addresses() -> list[str]:
    """The addresses by which other machines can reach this one, those of IPv4 first.

    Of interfaces that are up: neither of loopback, nor of networks of containers and virtual machines on this machine.
    """
    import psutil

    states, found = psutil.net_if_stats(), []
    for name, items in psutil.net_if_addrs().items():
        if not _VIRTUAL.match(name) and name in states and states[name].isup:
            found += [ip for item in items if (ip := _shared_ip(item.family, item.address)) is not None]
    return list(map(str, sorted(found, key=lambda ip: ip.version)))


def _shared_ip(family: int, address: str) -> IpAddress | None:
    """An address; None where it is no IP address, or means this machine or one cable alone."""
    ip = parse_ip(address) if family in _FAMILIES else None
    return None if ip is None or ip.is_loopback or (ip.version == 6 and ip.is_link_local) else ip
