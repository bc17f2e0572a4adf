"""Interfaces of a running node, and the permissions in config/."""

from __future__ import annotations

from pathlib import Path
import xml.etree.ElementTree as ET

from rclpy.action import (
    get_action_client_names_and_types_by_node,
    get_action_server_names_and_types_by_node,
)
from rclpy.node import Node

CONFIG = Path(__file__).resolve().parents[2] / 'config'
RIGHTS = {'topic': ('publish', 'subscribe'), 'service': ('reply', 'request')}
RIGHTS['action'] = ('execute', 'call')


def interfaces(node: Node, name: str = 'mirage', namespace: str = '/') -> dict[str, dict]:
    """Return the names and types that a running node publishes, subscribes to and serves, as
    ``node`` sees them."""
    where = name, namespace
    found = {
        'publish': node.get_publisher_names_and_types_by_node(*where),
        'subscribe': node.get_subscriber_names_and_types_by_node(*where),
        'reply': node.get_service_names_and_types_by_node(*where),
        'request': node.get_client_names_and_types_by_node(*where),
        'execute': get_action_server_names_and_types_by_node(node, *where),
        'call': get_action_client_names_and_types_by_node(node, *where),
    }
    return {
        right: {name: types for name, types in pairs if '/_action/' not in name}
        for right, pairs in found.items()
    }


def permitted() -> dict[str, set[str]]:
    """Return the names that config/sros2_policy.xml allows, by right, resolved as sros2 does."""
    root = ET.parse(CONFIG / 'sros2_policy.xml').getroot()
    (profile,) = root.findall('./enclaves/enclave/profiles/profile')
    allowed: dict[str, set[str]] = {right: set() for pair in RIGHTS.values() for right in pair}
    for rules in profile:
        for right, qualifier in rules.attrib.items():
            assert qualifier == 'ALLOW'
            allowed[right] |= {resolved(item.text, profile.attrib) for item in rules}
    return allowed


def resolved(name: str, profile: dict[str, str]) -> str:
    namespace = profile['ns'].rstrip('/')
    if name.startswith('~'):
        return f'{namespace}/{profile["node"]}{name[1:]}'
    return name if name.startswith('/') else f'{namespace}/{name}'


def check_permitted(node: Node) -> None:
    """Assert that the shipped permissions allow all that a running node does."""
    allowed = permitted()
    for right, names in interfaces(node).items():
        assert set(names) <= allowed[right], (right, set(names) - allowed[right])
