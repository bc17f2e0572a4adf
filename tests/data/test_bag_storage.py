"""Bags as other tools write them: ROS 1, compression, foreign channels, other QoS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bag_messages import STORE
from mcap.reader import make_reader
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
import numpy as np
import pytest
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from test_bag import CONFIG, LAYOUT, messages

from mirage_model.data.bag import Bag
from mirage_model.data.bag_storage import read_block

COUNT = 8
ROS1 = get_typestore(Stores.ROS1_NOETIC)


def as_ros1(message):
    """Return the message as ROS 1 has it: numbered headers, and capitals in camera_info."""
    kind = getattr(message, '__msgtype__', None)
    if kind is None:
        return message
    values = {k: as_ros1(v) for k, v in vars(message).items() if not k.startswith('__')}
    if kind == 'std_msgs/msg/Header':
        values['seq'] = 0
    if kind == 'sensor_msgs/msg/CameraInfo':
        values = {k.upper() if k in 'dkrp' else k: v for k, v in values.items()}
    return ROS1.types[kind](**values)


def sent():
    for topic, part in messages(COUNT).items():
        for message in part:
            stamp = message.header.stamp
            yield topic, stamp.sec * 10**9 + stamp.nanosec, message


def write_ros1(path: Path) -> Path:
    with Ros1Writer(path) as writer:
        connections = {}
        for topic, time, message in sorted(sent(), key=lambda entry: entry[1]):
            old, kind = as_ros1(message), message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ROS1)
            writer.write(connections[topic], time, ROS1.serialize_ros1(old, kind))
    return path


def write_ros2(path: Path, plugin=StoragePlugin.MCAP, mode: CompressionMode | None = None) -> Path:
    writer = Writer(path, version=9, storage_plugin=plugin)
    if mode is not None:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, time, message in sent():
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], time, STORE.serialize_cdr(message, kind))
    return path


def rewrite(source: Path, target: Path, *, definition: bool = True, foreign=(), **options) -> Path:
    (file,) = source.glob('*.mcap')
    with file.open('rb') as old, target.open('wb') as new:
        writer = McapWriter(new, **options)
        writer.start(profile='' if foreign else 'ros2')
        for number, (topic, name, encoding, data, form) in enumerate(foreign):
            schema = writer.register_schema(name, encoding, data) if name else 0
            channel = writer.register_channel(topic, form, schema)
            writer.add_message(channel, 100 * 10**9 + number, b'{}', 0)
        channels = {}
        for schema, channel, message in make_reader(old).iter_messages():
            if channel.topic not in channels:
                number = writer.register_schema(
                    schema.name, schema.encoding, schema.data if definition else b''
                )
                channels[channel.topic] = writer.register_channel(channel.topic, 'cdr', number)
            writer.add_message(
                channels[channel.topic], message.log_time, message.data, message.log_time
            )
        writer.finish()
    return target


def check(path: Path) -> None:
    bag = Bag(path, CONFIG, replace(LAYOUT, height=12, width=16))
    assert not bag.broken and len(bag.stamps) == COUNT
    clip = bag.load(bag.listing().parts[0])
    assert clip.frames[:, 0, 0, 0].tolist() == list(range(COUNT))
    np.testing.assert_allclose(bag.world_from_camera[:, 0, 3], np.arange(COUNT) / 10, atol=1e-9)


def test_ros1(tmp_path):
    check(write_ros1(tmp_path / 'old.bag'))


@pytest.mark.parametrize('plugin', list(StoragePlugin))
@pytest.mark.parametrize('mode', [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_by_file_and_by_message(tmp_path, plugin, mode):
    check(write_ros2(tmp_path / 'bag', plugin, mode))


def test_foreign_channels_cost_only_themselves(tmp_path):
    foreign = [
        ('/log', 'foxglove.Log', 'jsonschema', b'{}', 'json'),
        ('/proto', 'foxglove.Pose', 'protobuf', b'\x0a\xff\xfe', 'protobuf'),
        ('/nothing', '', '', b'', 'json'),
        ('/bad', 'my_msgs/msg/Bad', 'ros2msg', b'this is ! no definition\n', 'cdr'),
        ('/idl', 'my_msgs::msg::Idl', 'ros2idl', b'module my_msgs {};', 'cdr'),
    ]
    path = rewrite(write_ros2(tmp_path / 'bag'), tmp_path / 'more.mcap', foreign=foreign)
    check(path)
    with pytest.raises(ValueError, match="/log is stored as 'json' .foxglove.Log., not as ROS"):
        Bag(path, replace(CONFIG, depth='/log'), LAYOUT).listing()


@pytest.mark.parametrize(
    'options',
    [
        {'definition': False},
        {'use_chunking': False},
        {'compression': CompressionType.LZ4},
        {'use_summary_offsets': False, 'use_statistics': False, 'repeat_channels': False},
        {'chunk_size': 500},
    ],
    ids=['no definitions', 'no chunks', 'lz4', 'little summary', 'small chunks'],
)
def test_layouts_of_mcap(tmp_path, options):
    check(rewrite(write_ros2(tmp_path / 'bag'), tmp_path / 'other.mcap', **options))


def test_qos_of_the_metadata_does_not_matter(tmp_path):
    path = write_ros2(tmp_path / 'bag')
    metadata = path / 'metadata.yaml'
    profile = '[{history: unknown, depth: 0, reliability: reliable, durability: transient_local}]'
    text = metadata.read_text()
    changed = text.replace('offered_qos_profiles: []', f'offered_qos_profiles: {profile}')
    assert changed != text
    metadata.write_text(changed)
    check(path)


def test_pictures_of_one_chunk_decode_it_once(tmp_path):
    """A chunk holds all messages of this bag."""
    bag = Bag(write_ros2(tmp_path / 'b', mode=CompressionMode.STORAGE), CONFIG, LAYOUT)
    (part,) = bag.listing().parts
    read_block.cache_clear()
    one_by_one = [bag.load(replace(part, rows=(row,))) for row in part.rows]
    assert read_block.cache_info().misses == 1
    whole = bag.load(part)
    for i, clip in enumerate(one_by_one):
        assert (clip.frames[0] == whole.frames[i]).all()
        np.testing.assert_array_equal(clip.depth[0], whole.depth[i])
