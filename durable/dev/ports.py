"""Ports of this machine that a new server can listen on.

A port that is free now may be taken a moment later: whoever starts a server on it must be ready to choose again.
"""

from __future__ import annotations

import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, chosen by the system."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def free_port_near(wanted: int, host: str = LOOPBACK) -> int:
    """The port `wanted` of `host` if nobody listens on it, else another one; 0 asks for any."""
    with socket.socket() as probe:
        # As servers do: the last connections of a server that has just stopped don't block its port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, wanted))
        except OSError:
            return free_port()
        return int(probe.getsockname()[1])
