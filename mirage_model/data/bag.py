"""Clips from a ROS bag: rectified images with their camera_info, poses, and depth if there is any.

Read by `rosbags`, which knows MCAP and sqlite3 and needs no ROS. A pose is that of the frame ``base``, in one
fixed frame; ``base_from_camera`` says where the camera's optical frame sits on it. Transforms know by
themselves where it is: then ``base`` is the camera's own frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
import math
from pathlib import Path
import sqlite3

import cv2
from jaxtyping import Float, Int, Shaped
import numpy as np
from scipy.spatial.transform import Rotation
import torch

from mirage_model.camera import Cameras, check_cameras, resample_trajectory
from mirage_model.data.clip import Clip
from mirage_model.data.sources import Layout, Listing, Part, cut, fit, fit_cameras
from mirage_model.data.transforms import Tree

_COLOURS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
}
_DEPTHS = {'16UC1': ('u2', 0.001), '32FC1': ('f4', 1.0)}
_SAME = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_SET_BACK = (
    1.0  # seconds by which stamps may lie out of order before the clock must have been set back
)
_POSES = {
    'geometry_msgs/msg/PoseStamped': lambda message: message.pose,
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda message: message.pose.pose,
    'nav_msgs/msg/Odometry': lambda message: message.pose.pose,
}


@dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Topics by name, ``depth`` empty for none.

    ``pose`` may be a topic of transforms: then ``world_frame`` names the fixed frame that the poses are in,
    and ``transforms_static`` is read too where it exists.
    ``base_from_camera`` is x y z in metres and a quaternion x y z w; empty where the poses are the optical
    frame's own. A depth image belongs to the colour image whose stamp is within ``tolerance`` seconds, and an
    image needs a pose at most ``pose_gap`` seconds before it and one as long after it.
    """

    image: str
    camera_info: str
    pose: str
    depth: str = ''
    world_frame: str = 'map'
    transforms_static: str = '/tf_static'
    base_from_camera: tuple[float, ...] = ()
    tolerance: float = 0.02
    pose_gap: float = 0.5


@dataclass(frozen=True, kw_only=True)
class _Index:
    """What a bag holds, in the order of the images' stamps.

    ``nanoseconds`` are the stamps exactly, ``logged`` is when an image was written, in nanoseconds too; its
    depth has a stamp and was written as well.
    """

    K: Float[np.ndarray, '3 3']
    height: int
    width: int
    camera_frame: str
    world_frame: str
    stamps: Float[np.ndarray, 'n']
    nanoseconds: Int[np.ndarray, 'n']
    logged: Int[np.ndarray, 'n']
    depth_stamps: Float[np.ndarray, 'n']
    depth_logged: Int[np.ndarray, 'n']
    world_from_camera: Float[np.ndarray, 'n 4 4']
    left_out: list[str]


@dataclass(frozen=True)
class Bag:
    """One bag: its folder, or its one file. It is one scene, by that name."""

    path: Path
    config: BagConfig
    layout: Layout

    @property
    def scene(self) -> str:
        return self.path.resolve().name

    @cached_property
    def recorded(self) -> Bag:
        """The same bag with its images at the size that they were recorded at."""
        layout = replace(self.layout, height=self._index.height, width=self._index.width)
        bag = replace(self, layout=layout)
        bag.__dict__['_index'] = self._index  # what was read once
        return bag

    @property
    def camera_frame(self) -> str:
        return self._index.camera_frame

    @property
    def world_frame(self) -> str:
        return self._index.world_frame

    @property
    def stamps(self) -> Float[np.ndarray, 'n']:
        """Of the images that can be used, by row, in seconds."""
        return self._index.stamps

    @property
    def nanoseconds(self) -> Int[np.ndarray, 'n']:
        """The same stamps to the last digit."""
        return self._index.nanoseconds

    @property
    def world_from_camera(self) -> Float[np.ndarray, 'n 4 4']:
        """Of the same images."""
        return self._index.world_from_camera

    @property
    def K(self) -> Float[np.ndarray, '3 3']:
        """Of the images as they were recorded."""
        return self._index.K

    def listing(self) -> Listing:
        index = self._index
        rows = list(range(len(index.stamps)))
        listing = cut(self.scene, self.scene, index.stamps, self.layout, rows)
        images = [(f'{self.scene} (images)', self.scene, reason) for reason in index.left_out]
        return Listing(parts=listing.parts, left_out=images + listing.left_out)

    def load(self, part: Part) -> Clip:
        index, rows = self._index, list(part.rows)
        frames = self._images(self.config.image, index.stamps[rows], index.logged[rows], _colours)
        shape = (len(rows), self.layout.height, self.layout.width)
        depth = np.full(shape, np.nan, np.float32)
        if self.config.depth:
            images = self._images(
                self.config.depth, index.depth_stamps[rows], index.depth_logged[rows], _metres
            )
            depth[:] = images
        cameras = Cameras(
            K=torch.from_numpy(np.tile(index.K, (len(rows), 1, 1))).float(),
            world_from_camera=torch.from_numpy(index.world_from_camera[rows]).float(),
            times=torch.from_numpy(index.stamps[rows]),
            height=index.height,
            width=index.width,
        )
        return Clip(
            name=part.name,
            frames=torch.from_numpy(np.stack(frames)),
            cameras=fit_cameras(check_cameras(cameras), self.layout),
            depth=torch.from_numpy(depth),
            sky=torch.zeros(shape, dtype=torch.bool),
            moving=torch.zeros(shape, dtype=torch.bool),
            scene=part.scene,
            labelled=False,
        )

    @cached_property
    def _index(self) -> _Index:
        """Read through the whole bag once. Raises ValueError that names the topic."""
        config = self.config
        with self._reader() as reader:
            K, height, width, camera_frame = self._camera(reader)
            world_frame, times, world_from_base = self._poses(reader, camera_frame)
            images = self._stamps(reader, config.image, (_IMAGE, _COMPRESSED))
            depths = self._stamps(reader, config.depth, (_IMAGE,)) if config.depth else images
        stamps, nanoseconds, logged = images
        before = np.searchsorted(times, stamps, side='right') - 1
        after = np.minimum(before + (times[before.clip(0)] < stamps), len(times) - 1)
        posed = (before >= 0) & (times[after] >= stamps)
        posed &= np.maximum(stamps - times[before], times[after] - stamps) <= config.pose_gap
        nearest = _nearest(depths[0], stamps)
        paired = np.abs(depths[0][nearest] - stamps) <= config.tolerance
        left_out = []
        for usable, lack in (
            (posed, f'pose on {config.pose}'),
            (paired, f'depth on {config.depth}'),
        ):
            if not usable.all():
                left_out.append(f'{(~usable).sum()} of {len(stamps)} images have no {lack}')
        usable = posed & paired
        base_from_camera = _matrix(config.base_from_camera or _SAME, 'base_from_camera')
        world_from_base = resample_trajectory(world_from_base, times, stamps[usable])
        return _Index(
            K=K,
            height=height,
            width=width,
            camera_frame=camera_frame,
            world_frame=world_frame,
            stamps=stamps[usable],
            nanoseconds=nanoseconds[usable],
            logged=logged[usable],
            depth_stamps=depths[0][nearest][usable],
            depth_logged=depths[2][nearest][usable],
            world_from_camera=world_from_base @ base_from_camera,
            left_out=left_out,
        )

    @contextmanager
    def _reader(self) -> Iterator:
        """Raises ImportError that names what to install, and ValueError for what is no bag."""
        try:
            from rosbags.highlevel import AnyReader, AnyReaderError
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise ImportError('reading bags takes rosbags: pip install rosbags') from error
        try:
            with AnyReader(
                self._files(), default_typestore=get_typestore(Stores.ROS2_JAZZY)
            ) as reader:
                yield reader
        except (AnyReaderError, OSError, sqlite3.DatabaseError) as error:
            raise ValueError(f'{self.path} is no bag that can be read: {error}') from error

    def _files(self) -> list[Path]:
        """The bag; of a recorder that was killed, and so wrote no metadata.yaml, its storage files."""
        files = sorted([*self.path.glob('*.mcap'), *self.path.glob('*.db3')])
        whole = not files or (self.path / 'metadata.yaml').exists()
        return [self.path] if whole else files

    def _messages(
        self,
        reader,
        topic: str,
        types: tuple[str, ...],
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator:
        """Every message of a topic with the time that it was written at, in nanoseconds."""
        connections = [c for c in reader.connections if c.topic == topic]
        if not connections:
            there = sorted({f'{c.topic} ({c.msgtype})' for c in reader.connections})
            raise ValueError(f'{self.path}: no topic {topic!r}, there are {", ".join(there)}')
        for connection in connections:
            if connection.msgtype not in types:
                raise ValueError(
                    f'{self.path}: {topic} is of type {connection.msgtype}, not {" or ".join(types)}'
                )
        from rosbags.highlevel import AnyReaderError

        for connection, logged, data in reader.messages(connections, start=start, stop=stop):
            try:
                message = reader.deserialize(data, connection.msgtype)
            except AnyReaderError as error:
                raise ValueError(
                    f'{self.path}: {topic}, the message of {logged * 1e-9:.6f} cannot be read: {error}'
                ) from None
            yield logged, message

    def _camera(self, reader) -> tuple[Float[np.ndarray, '3 3'], int, int, str]:
        """K, the image's size and the camera's frame, the same in the whole bag."""
        found = None
        for _, message in self._messages(
            reader, self.config.camera_info, ('sensor_msgs/msg/CameraInfo',)
        ):
            try:
                frame = message.header.frame_id
                camera = (_K(message).tolist(), message.height, message.width, frame)
            except ValueError as error:
                raise ValueError(f'{self.path}: {self.config.camera_info}: {error}') from None
            if found is not None and camera != found:
                raise ValueError(f'{self.path}: {self.config.camera_info} changes within the bag')
            found = camera
        if found is None:
            raise ValueError(f'{self.path}: {self.config.camera_info} has no messages')
        return np.array(found[0]), int(found[1]), int(found[2]), found[3]

    def _poses(
        self, reader, camera_frame: str
    ) -> tuple[str, Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4']]:
        """The frame that the poses are in, their times and world_from_base."""
        topic, times, matrices, frames = self.config.pose, [], [], set()
        connection = next((c for c in reader.connections if c.topic == topic), None)
        if connection is not None and connection.msgtype == _TRANSFORMS:
            return self.config.world_frame, *self._transforms(reader, camera_frame)
        pose_of = _POSES.get(connection.msgtype) if connection else None
        for _, message in self._messages(reader, topic, tuple(_POSES)):
            pose = pose_of(message)
            p, q = pose.position, pose.orientation
            name = f'{self.path}: {topic}, pose {len(times)}'
            matrices.append(_matrix((p.x, p.y, p.z, q.x, q.y, q.z, q.w), name))
            moved = getattr(message, 'child_frame_id', '')
            if moved not in ('', camera_frame) and not self.config.base_from_camera:
                raise ValueError(
                    f'{self.path}: {topic} has the poses of {moved!r}, the camera is {camera_frame!r}: '
                    'base_from_camera must say where it sits'
                )
            times.append(_seconds(message))
            frames.add(message.header.frame_id)
        if not frames:
            raise ValueError(f'{self.path}: {topic} has no messages')
        if len(frames) != 1:
            raise ValueError(f'{self.path}: {topic} has poses in the frames {sorted(frames)}')
        try:
            resample_trajectory(np.stack(matrices), np.array(times), np.zeros(0))
        except ValueError as error:
            raise ValueError(f'{self.path}: {topic}: {error}') from None
        return frames.pop(), np.array(times), np.stack(matrices)

    def _transforms(
        self, reader, camera_frame: str
    ) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4']]:
        tree, config = Tree(), self.config
        topics = {c.topic for c in reader.connections} & {config.pose, config.transforms_static}
        for topic in sorted(topics):
            for _, message in self._messages(reader, topic, (_TRANSFORMS,)):
                for sent in message.transforms:
                    p, q = sent.transform.translation, sent.transform.rotation
                    parent, child = sent.header.frame_id, sent.child_frame_id
                    name = f'{self.path}: {topic}, {child!r} in {parent!r}'
                    matrix = _matrix((p.x, p.y, p.z, q.x, q.y, q.z, q.w), name)
                    try:
                        static = topic == config.transforms_static
                        tree.add(parent, child, _seconds(sent), matrix, static=static)
                    except ValueError as error:
                        raise ValueError(f'{self.path}: {topic}: {error}') from None
        try:
            return tree.poses(config.world_frame, camera_frame)
        except ValueError as error:
            raise ValueError(f'{self.path}: {config.pose}: {error}') from None

    def _stamps(
        self, reader, topic: str, types: tuple[str, ...]
    ) -> tuple[Float[np.ndarray, 'n'], Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
        """Stamps of a topic's messages, increasing, in seconds and exactly, and when they were written."""
        found: list[tuple[float, int, int]] = []
        latest = -math.inf
        for logged, message in self._messages(reader, topic, types):
            stamp = _seconds(message)
            if stamp < latest - _SET_BACK:
                raise ValueError(
                    f'{self.path}: time goes backwards on {topic}: {stamp:.6f} comes after '
                    f'{latest:.6f}, image {len(found)}; replay the part before it as a bag of its own'
                )
            latest = max(latest, stamp)
            exact = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            found.append((stamp, exact, logged))
        if not found:
            raise ValueError(f'{self.path}: {topic} has no messages')
        stamps, exact, logged = zip(*sorted(found))
        return np.array(stamps), np.array(exact, np.int64), np.array(logged, np.int64)

    def _images(
        self,
        topic: str,
        stamps: Float[np.ndarray, 'n'],
        logged: Int[np.ndarray, 'n'],
        read: Callable,
    ) -> list[np.ndarray]:
        """The images with these stamps by ``read``, fitted, in this order."""
        index, found, wanted = self._index, {}, set(stamps.tolist())
        span = int(logged.min()), int(logged.max()) + 1
        with self._reader() as reader:
            for _, message in self._messages(reader, topic, (_IMAGE, _COMPRESSED), *span):
                stamp = _seconds(message)
                if stamp not in wanted:
                    continue
                try:
                    image = read(message)
                except ValueError as error:
                    raise ValueError(f'{self.path}: {topic} at {stamp:.6f}: {error}') from None
                if image.shape[:2] != (index.height, index.width):
                    raise ValueError(
                        f'{self.path}: {topic} at {stamp:.6f} has images of {image.shape[0]}x{image.shape[1]}, '
                        f'{self.config.camera_info} of {index.height}x{index.width}'
                    )
                found[stamp] = fit(image, self.layout, labels=read is _metres)
        return [found[stamp] for stamp in stamps.tolist()]


def _nearest(times: Float[np.ndarray, 'k'], at: Float[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    """For each of ``at`` the index of the nearest of the increasing ``times``, the earlier of two."""
    after = np.searchsorted(times, at).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(at - times[before] <= np.abs(times[after] - at), before, after)


def _seconds(message) -> float:
    stamp = message.header.stamp
    return stamp.sec + stamp.nanosec * 1e-9


def _matrix(numbers: tuple[float, ...], name: str) -> Float[np.ndarray, '4 4']:
    """From x y z and a quaternion x y z w. Raises ValueError, with ``name``."""
    if len(numbers) != 7 or not all(map(math.isfinite, numbers)):
        raise ValueError(f'{name}: 7 finite numbers are needed (x y z, quaternion x y z w)')
    length = math.hypot(*numbers[3:])
    if abs(length - 1) > 0.01:
        raise ValueError(f'{name}: the quaternion has length {length:.3g}, not 1')
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(numbers[3:]).as_matrix()
    matrix[:3, 3] = numbers[:3]
    return matrix


def _K(message) -> Float[np.ndarray, '3 3']:
    """Intrinsics of the rectified image: the left of P, or K where there is no P and no distortion.

    Raises ValueError for a camera that is not calibrated or not rectified, and for binning and regions.
    """
    region = message.roi
    whole = (region.width, region.height) in ((0, 0), (message.width, message.height))
    if max(message.binning_x, message.binning_y) > 1 or not whole:
        raise ValueError('binning and regions of interest are not taken')
    if message.p[0]:
        K = np.array(message.p).reshape(3, 4)[:, :3].copy()
    elif not any(message.d):
        K = np.array(message.k).reshape(3, 3)
    else:
        raise ValueError('distorted and without P; rectified images are needed')
    pinhole = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
    if not np.isfinite(K).all() or (K != pinhole).any() or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f'not the intrinsics of a calibrated camera: {K.tolist()}')
    return K


def _colours(message) -> Shaped[np.ndarray, 'h w 3']:
    """RGB of an image, raw or compressed."""
    if hasattr(message, 'format'):
        data = np.asarray(message.data)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
        if image is None:
            raise ValueError(f'{message.format!r} that cannot be decoded')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding not in _COLOURS:
        raise ValueError(f'encoding {message.encoding!r} is not one of {sorted(_COLOURS)}')
    channels, conversion = _COLOURS[message.encoding]
    image = _pixels(message, np.dtype('u1'), channels)
    return image if conversion is None else cv2.cvtColor(image, conversion)


def _metres(message) -> Float[np.ndarray, 'h w']:
    """Depth of a raw image, NaN where there is none."""
    if getattr(message, 'encoding', None) not in _DEPTHS:
        kind = getattr(message, 'encoding', 'compressed')
        raise ValueError(f'depth is {kind!r}, not one of {sorted(_DEPTHS)}')
    kind, scale = _DEPTHS[message.encoding]
    order = '>' if message.is_bigendian else '<'
    depth = _pixels(message, np.dtype(order + kind), 1)[..., 0].astype(np.float32) * scale
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)


def _pixels(message, dtype: np.dtype, channels: int) -> Shaped[np.ndarray, 'h w c']:
    """The image's pixels, without what fills up its rows."""
    height, width, step = message.height, message.width, message.step
    row = width * channels * dtype.itemsize
    data = np.ascontiguousarray(message.data).view(np.uint8)
    if not height or not width or step < row or len(data) != step * height:
        raise ValueError(
            f'{len(data)} bytes in rows of {step} are not {height}x{width} {message.encoding}'
        )
    return (
        np.ascontiguousarray(data.reshape(height, step)[:, :row])
        .view(dtype)
        .reshape(height, width, channels)
    )
