"""Random recordings are read right, or the error names the mistake in them.

A recording begins as one that is right: a camera at 1 m/s along x sees a plane. Then some of its
parts are changed: fields, stamps, order, QoS, frames and sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import os
from pathlib import Path
import re
import tempfile
from typing import Any

from bag_messages import (
    HEIGHT,
    STORE,
    WIDTH,
    camera_info,
    compressed,
    image,
    odometry,
    pose_message,
    pose_with_covariance,
    transforms,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout

EXAMPLES = int(os.environ.get('MIRAGE_FUZZ', '200'))
START, COUNT, PERIOD = 100.0, 6, 0.125
LAYOUT = Layout(height=HEIGHT, width=WIDTH, rate=1 / PERIOD, least=1, frames=100)
RGB = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
METRES = np.full((HEIGHT, WIDTH), 2.5, np.float32)


@dataclass
class Recording:
    """Messages by topic with their times of writing, the options to read them, and the words that
    may name what was changed."""

    topics: dict[str, list[tuple[float, Any]]]
    options: dict[str, Any]
    words: list[str]


def right(source: str) -> Recording:
    """Return a recording without a mistake, with poses of a kind."""
    times = [START + i * PERIOD for i in range(COUNT)]
    around = [START - 0.1 + k * 0.2 for k in range(6)]
    pose: dict[str, Callable] = {
        'pose': lambda t: pose_message(t, t - START),
        'covariance': lambda t: pose_with_covariance(t, t - START),
        'odometry': lambda t: odometry(t, t - START, 'camera'),
        'tf': lambda t: transforms(t, ('map', 'base_link', t - START - 0.5)),
    }
    topics = {
        '/image': [(t, image(t, RGB, 'rgb8')) for t in times],
        '/info': [(t, camera_info(t)) for t in times],
        '/depth': [(t, image(t, METRES, '32FC1')) for t in times],
        '/pose': [(t, pose[source](t)) for t in around],
    }
    if source == 'tf':
        topics['/tf_static'] = [(START, transforms(0.0, ('base_link', 'camera', 0.5)))]
    options = {'base_frame': 'base_link' if source == 'tf' else 'camera'}
    return Recording(topics, options, [])


def each(recording: Recording, topic: str, change: Callable[[Any], Any], chosen: set[int]) -> None:
    messages = recording.topics[topic]
    recording.topics[topic] = [
        (t, change(m) if i in chosen else m) for i, (t, m) in enumerate(messages)
    ]


def stamped(message: Any, shift: float) -> Any:
    stamp = message.header.stamp
    total = max(0, stamp.sec * 10**9 + stamp.nanosec + round(shift * 1e9))
    moved = replace(stamp, sec=total // 10**9, nanosec=total % 10**9)
    return replace(message, header=replace(message.header, stamp=moved))


def framed(message: Any, frame: str) -> Any:
    return replace(message, header=replace(message.header, frame_id=frame))


def with_K(message: Any, fx: float, fy: float, cx: float, cy: float) -> Any:
    return replace(
        message,
        k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]),
        p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]),
    )


NAMES = r'camera_info|calibrated|frame|intrinsics|focal|field of view|centre|fx is|size|changes'
CHANGES: dict[str, tuple[str, str, Callable[[Any, Any], Any]]] = {
    # name: topic, the words that must name it if something is wrong, the change by a number
    'frame of images': ('/image', r'image: in frame|/image', lambda m, x: framed(m, 'left')),
    'slash of images': ('/image', r'never', lambda m, x: framed(m, '/camera')),
    'size of images': ('/image', r'image: 6x16', lambda m, x: image(at(m), RGB[:6], 'rgb8')),
    'encoding of images': ('/image', r'encoding', lambda m, x: replace(m, encoding='8UC3')),
    'bgr images': ('/image', r'never', lambda m, x: image(at(m), RGB[..., ::-1], 'bgr8')),
    'PNG images': ('/image', r'/image', lambda m, x: compressed(at(m), RGB)),
    'truncated images': ('/image', r'image: \d+ bytes', lambda m, x: replace(m, data=m.data[:9])),
    'stamps of images': ('/image', r'/pose|/depth|gap|/info|time goes', stamped),
    'frame of camera_info': ('/info', NAMES, lambda m, x: framed(m, 'left')),
    'size of camera_info': ('/info', NAMES, lambda m, x: replace(m, width=WIDTH * 2)),
    'K of another size': ('/info', NAMES, lambda m, x: with_K(m, 40, 40, 15.5, 11.5)),
    'K of half a size': ('/info', NAMES, lambda m, x: with_K(m, 10, 10, 3.5, 2.5)),
    'identity K': ('/info', NAMES, lambda m, x: with_K(m, 1, 1, 0, 0)),
    'normalised K': ('/info', NAMES, lambda m, x: with_K(m, 1.25, 1.67, 0.5, 0.5)),
    'NaN in K': ('/info', NAMES, lambda m, x: with_K(m, np.nan, 20, 7.5, 5.5)),
    'last bits of K': ('/info', r'never', lambda m, x: with_K(m, 20 + 1e-9 * x, 20, 7.5, 5.5)),
    'distorted': ('/info', r'rectified', lambda m, x: replace(m, p=np.zeros(12), d=m.d + 0.1)),
    'baseline': (
        '/info',
        r'P\[0,3\]',
        lambda m, x: replace(m, p=np.array([20, 0, 7.5, -2.0, 0, 20, 5.5, 0, 0, 0, 1, 0])),
    ),
    'frame of depth': ('/depth', r'depth: in frame', lambda m, x: framed(m, 'depth')),
    'no frame of depth': ('/depth', r'depth: frame_id', lambda m, x: framed(m, '')),
    'size of depth': ('/depth', r'depth: 6x16', lambda m, x: image(at(m), METRES[:6], '32FC1')),
    'millimetres': (
        '/depth',
        r'never',
        lambda m, x: image(at(m), (METRES * 1000).astype(np.uint16), '16UC1'),
    ),
    'float millimetres': (
        '/depth',
        r'a median of 2500 m',
        lambda m, x: image(at(m), METRES * 1000, '32FC1'),
    ),
    'integer metres': (
        '/depth',
        r'a median of 0.002 m',
        lambda m, x: image(at(m), METRES.astype(np.uint16), '16UC1'),
    ),
    'colours as depth': ('/depth', r'depth: encoding', lambda m, x: image(at(m), RGB, 'rgb8')),
    'stamps of depth': ('/depth', r'depth on /depth|time goes', stamped),
}


def at(message: Any) -> float:
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


QOS = Qos(
    QosHistory.KEEP_LAST,
    1,
    QosReliability.RELIABLE,
    QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0),
    QosTime(0, 0),
    QosLiveliness.AUTOMATIC,
    QosTime(0, 0),
    avoid_ros_namespace_conventions=False,
)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Recording, StoragePlugin, bool, dict[str, int]]:
    source = draw(st.sampled_from(['pose', 'covariance', 'odometry', 'tf']))
    recording = right(source)
    for name in draw(st.lists(st.sampled_from(sorted(CHANGES)), max_size=2, unique=True)):
        topic, words, change = CHANGES[name]
        some = st.sets(st.integers(0, COUNT - 1), min_size=1)
        chosen = draw(st.one_of(st.just(set(range(COUNT))), some))
        x = draw(st.sampled_from([-40.0, -3.0, -0.6, -0.05, -0.005, 0.005, 0.05, 0.6, 3.0, 40.0]))
        kinds = {m.__msgtype__ for _, m in recording.topics[topic]}
        if name == 'PNG images' or len(kinds) > 1:  # a topic has one type
            chosen = set(range(COUNT))
        try:
            each(recording, topic, lambda m: change(m, x), chosen)  # noqa: B023
        except TypeError:  # a field that PNG images lack
            continue
        recording.words.append(words)
    poses = recording.topics['/pose']
    lost = draw(st.sets(st.integers(0, len(poses) - 1), max_size=3))
    recording.topics['/pose'] = [p for i, p in enumerate(poses) if i not in lost]
    if lost:
        recording.words.append('/pose')
    if draw(st.booleans()):  # written in another order
        for topic, messages in recording.topics.items():
            delays = draw(
                st.lists(st.floats(0.0, 0.3), min_size=len(messages), max_size=len(messages))
            )
            recording.topics[topic] = [(t + delay, m) for (t, m), delay in zip(messages, delays)]
    if source != 'tf' and draw(st.integers(0, 4)) == 0:
        recording.options['base_frame'] = 'base_link'
        if source != 'odometry':
            recording.words.append("poses are of 'base_link'")
    qos = {topic: draw(st.integers(0, 1)) for topic in recording.topics}
    return recording, draw(st.sampled_from(list(StoragePlugin))), draw(st.booleans()), qos


def written(recording: Recording, path: Path, plugin: StoragePlugin, qos: dict[str, int]) -> None:
    sent = [(t, topic, m) for topic, messages in recording.topics.items() for t, m in messages]
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        connections = {}
        for time, topic, message in sorted(sent, key=lambda entry: entry[0]):
            kind = message.__msgtype__
            if (topic, kind) not in connections:
                connections[topic, kind] = writer.add_connection(
                    topic, kind, typestore=STORE, offered_qos_profiles=[QOS] * qos[topic]
                )
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic, kind], round(time * 1e9), data)


def mistakes(bag: Bag) -> list[str]:
    """Read all images; return their differences from the truth."""
    wrong = []
    for part in bag.listing().parts:
        clip = bag.load(part)
        if not (clip.frames == np.array([200, 100, 50])).all():
            wrong.append('colours')
        times = clip.cameras.times.numpy()
        poses = clip.cameras.world_from_camera.numpy()
        expected = np.tile(np.eye(4), (len(times), 1, 1))
        expected[:, 0, 3], expected[:, 1, 3] = times - START, poses[0, 1, 3]
        # float32 of a clip keeps 1e-6 up to some metres
        if np.abs(poses - expected).max() > 1e-6 * max(1.0, np.abs(times - START).max()):
            wrong.append('poses')
        K = np.array([[20, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
        if np.abs(clip.cameras.K.numpy() - K).max() > 1e-6:
            wrong.append('K')
        if np.abs(clip.depth.numpy() - 2.5).max() > 1e-6:
            wrong.append('depth')
    if len(bag.stamps) != COUNT:
        wrong.append('images are missing')
    return wrong


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(recordings())
def test_recordings_are_right_or_named(drawn):
    recording, plugin, nameless, qos = drawn
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'bag'
        written(recording, path, plugin, qos)
        if nameless:
            (path / 'metadata.yaml').unlink()
        config = BagConfig(
            image='/image', camera_info='/info', depth='/depth', pose='/pose', **recording.options
        )
        bag = Bag(path, replace(config, accept=('body_frame',)), LAYOUT)
        try:
            wrong = mistakes(bag)
        except ValueError as error:
            said, wrong = str(error), ['rejected']
        else:
            said = '; '.join([*(reason for _, _, reason in bag.listing().left_out)])
    if wrong:
        assert any(re.search(words, said) for words in recording.words), (wrong, said)
