"""Celery's Redis transport, as a worker uses it: a message is gone once it is received.

Kombu keeps a copy of each message in Redis until it is acknowledged, and puts it back when a connection breaks. Both
need the very connection that broke: with kombu 5.7 either one then ends the worker with an AttributeError. Messages are
only hints; one that is lost is repeated by the sweeper.
"""

from __future__ import annotations

from kombu.transport import redis


class Channel(redis.Channel):
    """Neither keeps copies nor puts messages back."""

    ack_emulation = False
    do_restore = False


class Transport(redis.Transport):
    """Opens such channels."""

    Channel = Channel
