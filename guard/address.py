"""Addresses of servers, as the command, the client and the server write them: HOST:PORT, [IPV6]:PORT or unix:PATH."""

from __future__ import annotations

import ipaddress

UNIX = ("unix:", "unix-abstract:")


def is_local(address: str) -> bool:
    """Whether only this machine can reach ``address``."""
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return address.startswith(UNIX) or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
