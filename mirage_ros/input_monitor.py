"""The topics that a node needs, and which of them stay silent, with what is published instead."""

from __future__ import annotations

from difflib import SequenceMatcher
import math
import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

NEARBY = 4
"""Most topics of other names that a description lists."""


class InputMonitor:
    """The inputs without which a node cannot serve, and the time of the last message of each."""

    def __init__(self, node: Node):
        self._node = node
        self._inputs: dict[str, Subscription] = {}
        self._last_received: dict[str, float] = {}

    def add(self, name: str, subscription: Subscription) -> None:
        """Add an input of the node by its name."""
        self._inputs[name] = subscription

    def received(self, topic: str) -> None:
        """Note that a message came on a topic."""
        self._last_received[topic] = time.monotonic()

    def silent(self, seconds: float = math.inf) -> list[str]:
        """Return the names of the inputs on which nothing came for some time, or ever."""
        since = time.monotonic() - seconds
        return [
            name
            for name, subscription in self._inputs.items()
            if self._last_received.get(subscription.topic_name, -math.inf) <= since
        ]

    def describe(self, name: str) -> str:
        """Return the topic of an input, who publishes it, and near-by topics of its type."""
        subscription = self._inputs[name]
        topic, qos = subscription.topic_name, subscription.qos_profile
        kind = _type_name(subscription.msg_type)
        publishers = self._node.get_publishers_info_by_topic(topic)
        if publishers:
            found = '; '.join(sorted({_match(each, kind, qos) for each in publishers}))
        else:
            found = f'nobody publishes it; {self._nearby(topic, kind)}'
        return f'the topic is {topic} ({kind}, {_qos_text(qos)}): {found}'

    def _nearby(self, topic: str, kind: str) -> str:
        own = self._node.get_name(), self._node.get_namespace()
        known = {
            name: others
            for name, types in self._node.get_topic_names_and_types()
            if name != topic and (kind in types or _is_transport(types, kind))
            if (
                others := [
                    each
                    for each in self._node.get_publishers_info_by_topic(name)
                    if (each.node_name, each.node_namespace) != own
                ]
            )
        }
        if not known:
            return 'no topic of its type is published'
        nearest = sorted(known, key=lambda name: -SequenceMatcher(None, name, topic).ratio())
        listed = ', '.join(
            f'{name} ({_short_type(known[name][0], kind)}{_qos_text(known[name][0].qos_profile)})'
            for name in nearest[:NEARBY]
        )
        more = f' and {len(nearest) - NEARBY} more' if len(nearest) > NEARBY else ''
        return f'published of its type: {listed}{more}'


def _is_transport(types: list[str], kind: str) -> bool:
    """Return whether a topic has the images of another transport."""
    images = {'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'}
    return kind in images and bool(images & set(types))


def _match(publisher: TopicEndpointInfo, kind: str, qos: QoSProfile) -> str:
    who = f"'{publisher.node_name}' publishes it"
    if publisher.topic_type != kind:
        return f'{who} as {publisher.topic_type}'
    compatible, reason = qos_check_compatible(publisher.qos_profile, qos)
    reason = reason.removeprefix('ERROR: ').rstrip('; ')
    offered = _qos_text(publisher.qos_profile)
    if compatible == QoSCompatibility.ERROR:
        return f'{who} as {offered}, which this subscription cannot receive: {reason}'
    return f'{who} as {offered}, but no message came'


def _short_type(publisher: TopicEndpointInfo, kind: str) -> str:
    return '' if publisher.topic_type == kind else f'{publisher.topic_type}, '


def _type_name(message: Any) -> str:
    package, _, name = message.__module__.partition('.')
    return f'{package}/{name.split(".")[0]}/{message.__name__}'


def _qos_text(qos: QoSProfile) -> str:
    """Return reliability and durability in words."""
    words = [qos.reliability.name.lower(), qos.durability.name.lower()]
    return ' '.join(word.replace('_', ' ') for word in words)
