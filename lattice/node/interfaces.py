"""The addresses of this machine's interfaces: where others reach a listener on every address.

Separate because it asks the operating system, and because what is announced must be concrete:
`0.0.0.0` means "here" to whoever reads it.
"""

from __future__ import annotations

import ipaddress

import ifaddr


def reachable_hosts(ipv6: bool = False) -> list[str]:
    """Concrete addresses of one IP version, loopback only if there is nothing else.

    Link-local ones are left out: they mean something only together with an interface.
    """
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for held in adapter.ips:
            if held.is_IPv6 is not ipv6:
                continue
            text = held.ip[0] if isinstance(held.ip, tuple) else held.ip
            address = ipaddress.ip_address(text)
            if not (address.is_link_local or address.is_loopback or address.is_unspecified):
                found.append(str(address))
    return list(dict.fromkeys(found)) or ["::1" if ipv6 else "127.0.0.1"]
