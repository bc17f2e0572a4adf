"""Whole recordings at random: one that is right, of which some parts are changed.

A camera at 1 m/s along x sees a plane. Fields, stamps, order, QoS, frames and sizes are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
import yaml

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.interface import Observation

START, COUNT, PERIOD = 100.0, 6, 0.125
LAYOUT = Layout(height=HEIGHT, width=WIDTH, rate=1 / PERIOD, least=1, frames=100)
RGB = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
METRES = np.full((HEIGHT, WIDTH), 2.5, np.float32)


@dataclass(repr=False)
class Recording:
    """Messages by topic with their times of writing, the kind of poses, the options to read them,
    and the words that may name what was changed."""

    topics: dict[str, list[tuple[float, Any]]]
    source: str
    options: dict[str, Any]
    words: list[str]
    changes: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        """Leave out the messages."""
        return f'{self.source}, {self.options}, {self.changes}, {self.words}'

    def sent(self) -> list[tuple[float, str, Any]]:
        """Return time, topic and message in the order of writing."""
        all_sent = [(t, topic, m) for topic, messages in self.topics.items() for t, m in messages]
        return sorted(all_sent, key=lambda entry: entry[0])


def right(source: str) -> Recording:
    """A recording without a mistake, with poses of a kind."""
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
    return Recording(topics, source, options, [])


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
    """The message with these intrinsics of its images, after the binning that it reports."""
    fx, fy, cx, cy = (value * max(1, message.binning_x) for value in (fx, fy, cx, cy))
    return replace(
        message,
        k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]),
        p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]),
    )


def binned(message: Any) -> Any:
    """The same camera, before the binning that it reports."""
    whole = with_K(replace(message, binning_x=0), 40, 40, 15, 11)
    return replace(whole, height=2 * HEIGHT, width=2 * WIDTH, binning_x=2, binning_y=2)


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
    'binning': ('/info', r'never', lambda m, x: binned(m)),
    'stamps of camera_info': ('/info', r'never', stamped),
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
        recording.changes.append((name, x, sorted(chosen)))
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


class LibYaml:
    """libyaml in the place of the YAML that `rosbags` writes with, half of a small bag's time."""

    def __init__(self, **options: Any):
        self.default_flow_style = False

    def dump(self, content: Any, stream: Any) -> None:
        yaml.dump(content, stream, yaml.CSafeDumper, default_flow_style=self.default_flow_style)


def write(recording: Recording, path: Path, plugin: StoragePlugin, qos: dict[str, int]) -> None:
    """Write a recording as a bag, in the order of writing."""
    with (
        patch('rosbags.rosbag2.writer.YAML', LibYaml),
        patch('rosbags.rosbag2.metadata.YAML', LibYaml),
        Writer(path, version=9, storage_plugin=plugin) as writer,
    ):
        connections = {}
        for time, topic, message in recording.sent():
            kind = message.__msgtype__
            if (topic, kind) not in connections:
                connections[topic, kind] = writer.add_connection(
                    topic, kind, typestore=STORE, offered_qos_profiles=[QOS] * qos[topic]
                )
            data = STORE.serialize_cdr(message, kind)
            writer.write(connections[topic, kind], round(time * 1e9), data)


def read_bag(
    recording: Recording, path: Path, plugin: StoragePlugin, *, nameless: bool, qos: dict[str, int]
) -> tuple[dict[float, Observation], list[str]]:
    """Write a recording and read it: observations by their stamps, and what was said of others."""
    write(recording, path, plugin, qos)
    if nameless:
        (path / 'metadata.yaml').unlink()
    config = BagConfig(
        image='/image',
        camera_info='/info',
        depth='/depth',
        pose='/pose',
        accept=('body_frame',),
        **recording.options,
    )
    bag = Bag(path, config, LAYOUT)
    try:
        found = {view.time: view for view in _views(bag)}
    except ValueError as error:
        return {}, [str(error)]
    return found, [reason for _, _, reason in bag.listing().left_out]


def _views(bag: Bag) -> Iterator[Observation]:
    for part in bag.listing().parts:
        clip = bag.load(part)
        for i, row in enumerate(part.rows):
            yield Observation(
                image=clip.frames[i].numpy(),
                K=clip.cameras.K[i].double().numpy(),
                world_from_camera=bag.world_from_camera[row],
                time=float(bag.stamps[row]),
                depth=clip.depth[i].numpy(),
            )


def mistakes(found: dict[float, Observation]) -> list[str]:
    """Return what differs from the truth."""
    wrong = []
    K = np.array([[20, 0, 7.5], [0, 20, 5.5], [0, 0, 1]])
    for time, view in found.items():
        pose = np.eye(4)
        pose[0, 3] = time - START
        pose[1, 3] = view.world_from_camera[1, 3]
        if not (view.image == np.array([200, 100, 50])).all():
            wrong.append('colours')
        if np.abs(view.world_from_camera - pose).max() > 1e-6:
            wrong.append('poses')
        if np.abs(view.K - K).max() > 1e-6:
            wrong.append('K')
        if view.depth is None or not np.abs(view.depth - 2.5).max() <= 1e-6:
            wrong.append('depth')
    return wrong
