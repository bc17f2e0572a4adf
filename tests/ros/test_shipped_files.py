"""Permissions and viewer layouts name the topics, services and actions of the node."""

from __future__ import annotations

from collections.abc import Iterator
import json
from typing import Any
import xml.etree.ElementTree as ET

from graph import CONFIG, RIGHTS, interfaces, permitted
from instant_engine import InstantEngine
import pytest
import yaml

from mirage_ros.node import MirageNode

OPTIONAL = {'/odometry', '/pose', '/image/compressed', '/depth/compressedDepth', '/clock'}
"""Inputs of configurations that are not the default."""
DISPLAYS = {
    'PointCloud2': 'sensor_msgs/msg/PointCloud2',
    'Map': 'nav_msgs/msg/OccupancyGrid',
    'Path': 'nav_msgs/msg/Path',
    'Image': 'sensor_msgs/msg/Image',
}
"""Message type that each display of rviz_default_plugins shows."""
PANELS = {
    'Image': {'sensor_msgs/msg/Image'},
    'DiagnosticSummary': {'diagnostic_msgs/msg/DiagnosticArray'},
    '3D': {DISPLAYS['PointCloud2'], DISPLAYS['Map'], DISPLAYS['Path']},
}
"""Panels of Foxglove."""


@pytest.fixture(scope='module')
def found(ros) -> dict[str, dict]:
    node = MirageNode(lambda settings: InstantEngine())
    found = interfaces(node)
    node.close()
    node.destroy_node()
    return found


def test_permissions_match_the_interfaces(found):
    allowed = permitted()
    assert allowed['subscribe'] >= OPTIONAL
    allowed['subscribe'] -= OPTIONAL
    assert {right: set(names) for right, names in found.items()} == allowed


def test_permissions_have_the_elements_of_a_policy():
    """The elements are those of sros2's policy.xsd; each list holds rules of one kind."""
    root = ET.parse(CONFIG / 'sros2_policy.xml').getroot()
    assert (root.tag, root.attrib) == ('policy', {'version': '0.2.0'})
    element = root
    for tag, attributes in (
        ('enclaves', set()),
        ('enclave', {'path'}),
        ('profiles', set()),
        ('profile', {'ns', 'node'}),
    ):
        (element,) = element
        assert (element.tag, set(element.attrib)) == (tag, attributes)
    for rules in element:
        kind = rules.tag.removesuffix('s')
        assert set(rules.attrib) <= set(RIGHTS[kind]) and len(rules)
        assert {item.tag for item in rules} == {kind}


def types_of(found: dict[str, dict]) -> dict[str, list[str]]:
    return found['subscribe'] | found['publish']


def test_rviz_displays_have_publishers(found):
    layout = yaml.safe_load((CONFIG / 'mirage.rviz').read_text())['Visualization Manager']
    shown = {}
    for display in layout['Displays']:
        kind = display['Class'].removeprefix('rviz_default_plugins/')
        if 'Topic' in display:
            topic = display['Topic']
            shown['/' + topic['Value']] = [DISPLAYS[kind]]
            sensor = topic['Value'] == 'image'
            assert topic['Reliability Policy'] == ('Best Effort' if sensor else 'Reliable')
    assert shown.items() <= types_of(found).items()
    assert set(shown) >= {'/memory/points', '/memory/coverage', '/imagined/image', '/image'}
    assert layout['Global Options']['Fixed Frame'] == 'map'


def test_foxglove_panels_have_publishers(found):
    layout = json.loads((CONFIG / 'foxglove.json').read_text())
    panels = layout['configById']
    assert sorted(leaves(layout['layout'])) == sorted(panels)
    seen = set()
    for name, panel in panels.items():
        topics = set(panel.get('topics', ())) | set(named_topics(panel))
        for topic in topics:
            assert set(types_of(found)[topic]) <= PANELS[name.split('!')[0]], topic
        seen |= topics
    assert seen >= {'/memory/points', '/memory/coverage', '/imagined/image', '/diagnostics'}


def leaves(layout: Any) -> Iterator[str]:
    if isinstance(layout, str):
        yield layout
    else:
        yield from leaves(layout['first'])
        yield from leaves(layout['second'])


def named_topics(panel: dict) -> Iterator[str]:
    for key, value in panel.items():
        if isinstance(value, dict):
            yield from named_topics(value)
        elif key in ('imageTopic', 'topicToRender'):
            yield value
