"""A short recording and a small real model to replay it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
import shutil
import sys

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
import torch
import yaml

from mirage_model.camera import Cameras
from mirage_model.cli import main
from mirage_model.clip import Clip
from mirage_model.data.config import BagConfig
from mirage_model.evaluation.config import ReplayConfig
from mirage_model.evaluation.replay.sample_bag import write_sample

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from models import save_small_model  # noqa: E402

STORE = get_typestore(Stores.ROS2_JAZZY)
RATE = 8.0
HEIGHT, WIDTH = 40, 64
"""Neither the size nor the aspect of the small model's frames."""
OPTIONS = {
    'image': '/camera/image',
    'camera_info': '/camera/camera_info',
    'depth': '/camera/depth',
    'pose': '/tf',
    'accept': 'body_frame',  # the wall is filmed in a world whose z is the optical axis
    'horizon': 1.0,
    'stride': 1.0,
    'observe_every': 0.5,
}


def wall_drive(frames: int = 33, rate: float = RATE) -> Clip:
    """Return a drive sideways along a patterned wall three metres away, without revisits."""
    x = np.arange(frames) * 0.1
    columns = np.arange(WIDTH)[None, :] * 3.0 / 50.0 + x[:, None]
    rows = np.arange(HEIGHT) / 50.0
    pattern = np.sin(columns[:, None] * [[[3.0]]] + 4 * rows[None, :, None])
    colours = np.stack([pattern, -pattern, pattern**2], axis=-1)
    world_from_camera = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    world_from_camera[:, 0, 3] = x
    K = torch.tensor(
        [[50.0, 0.0, (WIDTH - 1) / 2], [0.0, 50.0, (HEIGHT - 1) / 2], [0.0, 0.0, 1.0]]
    )
    shape = (frames, HEIGHT, WIDTH)
    return Clip(
        name='wall',
        frames=torch.from_numpy((127.5 + 100 * colours).astype(np.uint8)),
        cameras=Cameras(
            K=K.expand(frames, 3, 3),
            world_from_camera=torch.from_numpy(world_from_camera),
            times=1000 + torch.arange(frames, dtype=torch.float64) / rate,
            height=HEIGHT,
            width=WIDTH,
        ),
        depth=torch.full(shape, 3.0),
        sky=torch.zeros(shape, dtype=torch.bool),
        moving=torch.zeros(shape, dtype=torch.bool),
        scene='wall',
    )


def record(folder: Path) -> Path:
    """Put a bag and a model into a folder."""
    wall_bag(folder / 'drive')
    save_small_model(folder / 'model')
    return folder


def wall_bag(path: Path, frames: int = 33, rate: float = RATE) -> Path:
    write_sample(path, wall_drive(frames, rate))
    return path


def copy_bag(
    source: Path,
    target: Path,
    change: Callable = lambda topic, message: message,
    plugin: StoragePlugin = StoragePlugin.MCAP,
    spoil: Callable = lambda topic, logged, data: data,
) -> Path:
    """Copy a bag with its messages changed, and then their bytes; None leaves a message out."""
    with AnyReader([source], default_typestore=STORE) as reader:
        with Writer(target, version=9, storage_plugin=plugin) as writer:
            connections = {}
            for connection, logged, data in reader.messages():
                kind, topic = connection.msgtype, connection.topic
                message = change(topic, reader.deserialize(data, kind))
                if message is None:
                    continue
                if topic not in connections:
                    connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
                data = spoil(topic, logged, bytes(STORE.serialize_cdr(message, kind)))
                writer.write(connections[topic], logged, data)
    return target


def split_bag(source: Path, target: Path, at: int) -> Path:
    """Copy a bag into two files, as rosbag2 splits recordings; messages logged from ``at`` on are
    in the second."""
    target.mkdir()
    parts = []
    with AnyReader([source], default_typestore=STORE) as reader:
        for index, (start, stop) in enumerate([(None, at), (at, None)]):
            part = target / f'part-{index}'
            with Writer(part, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
                connections = {
                    connection.id: writer.add_connection(
                        connection.topic, connection.msgtype, typestore=STORE
                    )
                    for connection in reader.connections
                }
                for connection, logged, data in reader.messages(start=start, stop=stop):
                    writer.write(connections[connection.id], logged, data)
            parts.append(yaml.safe_load((part / 'metadata.yaml').read_text()))
            (part / f'part-{index}.mcap').rename(target / f'part-{index}.mcap')
            shutil.rmtree(part)
    first, second = (part['rosbag2_bagfile_information'] for part in parts)
    for one, other in zip(
        first['topics_with_message_count'], second['topics_with_message_count'], strict=True
    ):
        one['message_count'] += other['message_count']
    first['message_count'] += second['message_count']
    first['duration']['nanoseconds'] += second['duration']['nanoseconds']
    first['relative_file_paths'] += second['relative_file_paths']
    first['files'] += second['files']
    (target / 'metadata.yaml').write_text(yaml.safe_dump(parts[0]))
    return target


def options(recorded: Path, **changed) -> tuple[BagConfig, ReplayConfig]:
    values = {**OPTIONS, 'accept': (OPTIONS['accept'],), 'model_folder': str(recorded / 'model')}
    values |= changed
    return tuple(
        cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        for cls in (BagConfig, ReplayConfig)
    )


def by_name(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((path / 'segments').iterdir())}


def command(recorded: Path, bag: Path, out: Path, *more: str) -> int:
    words = [
        'replay',
        str(bag),
        '--out',
        str(out),
        '--model-folder',
        str(recorded / 'model'),
        *more,
    ]
    for name, value in OPTIONS.items():
        if f'--{name.replace("_", "-")}' not in more:
            words += [f'--{name.replace("_", "-")}', str(value)]
    return main(words)
