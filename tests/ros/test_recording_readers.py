"""Whole recordings at random through the node's reader and as bags: both are right, or say why."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
import os
from pathlib import Path
import re
import tempfile
from typing import Any

from bag_messages import image
from hypothesis import HealthCheck, given, settings
from node_reader import read_node
import numpy as np
import pytest
from recordings import (
    COUNT,
    PERIOD,
    RGB,
    START,
    Recording,
    at,
    mistakes,
    read_bag,
    recordings,
    right,
    stamped,
)
from rosbags.rosbag2 import StoragePlugin

EXAMPLES = int(os.environ.get('MIRAGE_FUZZ', '200'))
IN_NODE = {
    '/pose': 'no transform',
    '/depth': 'depth: none',
    '/info': 'camera_info',
    '/image': 'image: ',
    'time goes': 'was set back',
    'poses are of': 'no transforms join',
}
"""Words of the node, by those of a bag that name the same."""


def named(words: list[str], said: list[str]) -> bool:
    """Return whether one of the patterns, in the words of a bag or of the node, was said."""
    patterns = [*words, *(node for bag, node in IN_NODE.items() if bag in '|'.join(words))]
    return any(re.search(pattern, '; '.join(said)) for pattern in patterns)


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(recordings())
def test_node_and_bag_agree_or_name_what_is_wrong(drawn):
    recording, plugin, nameless, qos = drawn
    node, said = read_node(recording)
    if wrong := mistakes(node) + ['images are missing'] * (not node):
        assert named(recording.words, said), (wrong, said)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'bag'
        bag, said_of_bag = read_bag(recording, path, plugin, nameless=nameless, qos=qos)
    for time in node.keys() & bag.keys():
        for name in ('image', 'K', 'depth', 'world_from_camera'):
            np.testing.assert_allclose(
                getattr(node[time], name),
                getattr(bag[time], name),
                atol=1e-6,
                err_msg=f'{name} at {time}: node {said}, bag {said_of_bag}',
            )


def renewed(
    recording: Recording, topics: tuple[str, ...], change: Callable[[int, float, Any], Any]
):
    """Change the messages of topics by their number and time."""
    for topic in topics:
        messages = recording.topics[topic]
        recording.topics[topic] = [(t, change(i, t, m)) for i, (t, m) in enumerate(messages)]
    return recording


def picture(number: int, time: float, message: Any) -> Any:
    """A message at START, with colours of its own where it is an image."""
    if getattr(message, 'encoding', '') == 'rgb8':
        message = image(START, RGB + np.uint8(number), 'rgb8')
    return stamped(message, START - at(message))


def looped(recording: Recording) -> Recording:
    """The same stamps again, 5 s earlier than at first."""
    first = deepcopy(recording)
    renewed(first, tuple(first.topics), lambda i, t, m: stamped(m, 5.0))
    for topic, messages in recording.topics.items():
        again = [(t + 1.0, m) for t, m in messages]
        recording.topics[topic] = first.topics[topic] + again
    return recording


SENSORS = ('/image', '/info', '/depth')
IMAGES = {START + i * PERIOD for i in range(COUNT)}
TIMES: dict[str, tuple[Callable[[Recording], Recording], set[float], set[float], str, str]] = {
    # name: change; stamps that the node and a bag read; words of the node and of the bag
    'stamps of zero': (
        lambda r: renewed(r, SENSORS, lambda i, t, m: stamped(m, -at(m))),
        set(),
        set(),
        'at 0.000: .* is known from',
        '1 of 1 images have no pose',
    ),
    'one stamp for all': (
        lambda r: renewed(r, SENSORS, picture),
        {START},
        {START},
        'image: different messages have the same stamp, 100.000',
        '5 messages on /image are replaced by others of the same stamp, the first: 100.0',
    ),
    'images a microsecond apart': (
        lambda r: renewed(r, SENSORS, lambda i, t, m: stamped(m, START + i * 1e-6 - at(m))),
        {START + i * 1e-6 for i in range(COUNT)},
        {START},
        '',
        '',
    ),
    'poses a microsecond apart': (
        lambda r: renewed(r, ('/pose',), lambda i, t, m: stamped(m, START + i * 1e-6 - at(m))),
        {START},
        {START},
        'is known from 100.000 to 100.000',
        '5 of 6 images have no pose',
    ),
    'a bag that loops': (
        looped,
        IMAGES,
        {time + 5 for time in IMAGES},
        r'does a bag loop\?',
        'time goes backwards',
    ),
    'depth 50 ms late': (
        lambda r: renewed(r, ('/depth',), lambda i, t, m: stamped(m, 0.05)),
        set(),
        set(),
        'depth: none belongs to the image at 100.625, .* 0.050 s away',
        '6 of 6 images have no depth',
    ),
    'depth 15 ms late': (
        lambda r: renewed(r, ('/depth',), lambda i, t, m: stamped(m, 0.015)),
        IMAGES,
        IMAGES,
        '',
        '',
    ),
    'camera_info stamped zero': (
        lambda r: renewed(r, ('/info',), lambda i, t, m: stamped(m, -at(m))),
        IMAGES,
        IMAGES,
        '',
        '',
    ),
}


@pytest.mark.parametrize('name', TIMES)
def test_times(name, tmp_path):
    change, in_node, in_bag, words, words_of_bag = TIMES[name]
    recording = change(right('pose'))
    node, said = read_node(recording)
    path, qos = tmp_path / 'bag', dict.fromkeys(recording.topics, 0)
    bag, left_out = read_bag(recording, path, StoragePlugin.MCAP, nameless=False, qos=qos)
    assert (set(node), set(bag)) == (in_node, in_bag)
    assert bool(said) == bool(words) and re.search(words, '; '.join(said))
    assert bool(left_out) == bool(words_of_bag) and re.search(words_of_bag, '; '.join(left_out))
    for time in node.keys() & bag.keys():
        np.testing.assert_array_equal(node[time].image, bag[time].image)
