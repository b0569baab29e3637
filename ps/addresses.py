"""Where a process listens on a host with several networks or behind a firewall."""

import ipaddress
import re
import socket

import psutil

from ps.errors import ConfigError


def listen_host(host: str, interface: str | None) -> str:
    """The IPv4 address to bind: `host` unless an interface is named, as its name ("eth1"), an address or a network ("10.1.0.0/16").

    Raises ConfigError if this host has no such address, or several.
    """
    if interface is None:
        return host
    addresses = _own_addresses()
    found = _within(interface, addresses) if _is_network(interface) else addresses.get(interface, [])
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{name} {address}" for name, own in addresses.items() for address in own)
    what = f"means {' and '.join(found)}" if found else "is not there"
    raise ConfigError(f'comm.interface = "{interface}" {what} on host {socket.gethostname()}, which has {there}: name one of them, or a network')


def check_interface(text: str) -> None:
    """Raises ValueError for what can be neither a name nor an address nor a network."""
    if _is_network(text):
        try:
            ipaddress.IPv4Network(text, strict=False)
        except ValueError as error:
            raise ValueError(f'comm.interface = "{text}" is no network ({error}): write for example "eth1", "10.1.0.7" or "10.1.0.0/16"') from error
    elif not text:
        raise ValueError('comm.interface = "" names no interface: write for example "eth1", "10.1.0.7" or "10.1.0.0/16"')


def parse_ports(text: str) -> range:
    """The ports of "20000-20100", both ends included. Raises ValueError."""
    found = re.fullmatch(r"\s*(\d+)\s*-\s*(\d+)\s*", text)
    if found and 1024 <= int(found[1]) <= int(found[2]) <= 65535:
        return range(int(found[1]), int(found[2]) + 1)
    raise ValueError(f'{text!r} is no range of ports: write for example "20000-20100", from 1024 to 65535')


def _own_addresses() -> dict[str, list[str]]:
    """IPv4 addresses by name of the interface."""
    found = {name: [a.address for a in addresses if a.family == socket.AF_INET] for name, addresses in psutil.net_if_addrs().items()}
    return {name: own for name, own in found.items() if own}


def _is_network(text: str) -> bool:
    return "/" in text or re.fullmatch(r"[0-9.]+", text) is not None


def _within(text: str, addresses: dict[str, list[str]]) -> list[str]:
    network = ipaddress.IPv4Network(text, strict=False)
    return [address for own in addresses.values() for address in own if ipaddress.IPv4Address(address) in network]
