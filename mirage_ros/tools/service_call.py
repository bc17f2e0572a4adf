"""A question to a service that may be asked twice, until its answer comes."""

from __future__ import annotations

import time
from typing import Any

from rclpy.client import Client
from rclpy.task import Future

AGAIN = 10.0
"""Seconds after which it is asked again."""


class ServiceCall:
    """Ask again and again for `answer`: a service that has not found its client's end of the answers yet drops its answer."""

    def __init__(self, client: Client, request: Any):
        self._client, self._request = client, request
        self._asked: list[Future] = []
        self._next = 0.0

    def answer(self) -> Any:
        """None until it has come. Raises what the service's client does."""
        if time.monotonic() > self._next and self._client.service_is_ready():
            self._asked.append(self._client.call_async(self._request))
            self._next = time.monotonic() + AGAIN
        return next((future.result() for future in self._asked if future.done()), None)
