"""Clips from a ROS bag: rectified images with their camera_info, poses, and depth where there is
any.

`rosbags` reads MCAP and sqlite3 without ROS. Messages are read as the node reads them, by
`mirage_model.messages`. Messages that cannot be used are left out, and so are those after the
clock was set back; `Bag.broken` has the reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
import math
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras
from mirage_model.clip import Clip
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout, Listing, Part, cut
from mirage_model.image_fit import fit_depth, fit_image, fit_K
from mirage_model.messages.camera_info import K_from_camera_info, read_depth, read_image
from mirage_model.messages.poses import (
    frame_name,
    matrix_from_numbers,
    read_pose,
    read_transform,
    seconds,
)
from mirage_model.messages.transform_tree import SET_BACK, TransformTree

_IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_POSES = (
    'geometry_msgs/msg/PoseStamped',
    'geometry_msgs/msg/PoseWithCovarianceStamped',
    'nav_msgs/msg/Odometry',
)


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Usable images of a bag in the order of their stamps.

    ``nanoseconds`` are the exact stamps, ``logged`` the times at which the images were written
    [ns]; ``depth_stamps`` and ``depth_logged`` are those of the depth of the same images.
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
    broken: list[str]


class _Rejected:
    """Counts of the messages that are left out, by topic and reason."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[int, object]] = {}

    def add(self, topic: str, reason: str, detail: object) -> None:
        """Count a message; the detail of the first is kept."""
        count, first = self._first.get((topic, reason), (0, detail))
        self._first[topic, reason] = count + 1, first

    def lines(self) -> list[str]:
        """Return one line for every topic and reason."""
        return [
            f'{count} messages on {topic} {reason}, the first: {detail}'
            for (topic, reason), (count, detail) in self._first.items()
        ]


@dataclass(frozen=True)
class Bag:
    """One bag, a folder or a file, as a source of clips.

    The scene is its name without .mcap or .db3.
    """

    path: Path
    config: BagConfig
    layout: Layout

    @property
    def scene(self) -> str:
        """Return the name of the bag."""
        path = self.path.resolve()
        return path.stem if path.suffix in ('.mcap', '.db3') else path.name

    @cached_property
    def recorded(self) -> Bag:
        """Return the same bag with its images at the size that they were recorded at."""
        layout = replace(self.layout, height=self._index.height, width=self._index.width)
        bag = replace(self, layout=layout)
        bag.__dict__['_index'] = self._index  # the bag is not read again
        return bag

    @property
    def camera_frame(self) -> str:
        """Return the optical frame of the camera."""
        return self._index.camera_frame

    @property
    def world_frame(self) -> str:
        """Return the fixed frame of the poses."""
        return self._index.world_frame

    @property
    def stamps(self) -> Float[np.ndarray, 'n']:
        """Return the stamps of the usable images [s]."""
        return self._index.stamps

    @property
    def nanoseconds(self) -> Int[np.ndarray, 'n']:
        """Return the exact stamps of the usable images [ns]."""
        return self._index.nanoseconds

    @property
    def world_from_camera(self) -> Float[np.ndarray, 'n 4 4']:
        """Return the poses of the usable images."""
        return self._index.world_from_camera

    @property
    def K(self) -> Float[np.ndarray, '3 3']:
        """Return the intrinsics of the images as they were recorded."""
        return self._index.K

    @property
    def broken(self) -> list[str]:
        """Return why messages are left out that cannot be used.

        They are part of the listing too.
        """
        return self._index.broken

    def listing(self) -> Listing:
        """Return the clips of the bag, and the reasons for what is left out."""
        index = self._index
        rows = list(range(len(index.stamps)))
        listing = cut(self.scene, self.scene, index.stamps, self.layout, rows)
        images = [
            (f'{self.scene} (images)', self.scene, reason)
            for reason in index.left_out + index.broken
        ]
        return Listing(parts=listing.parts, left_out=images + listing.left_out)

    def load(self, part: Part) -> Clip:
        """Return a clip.

        Raises ValueError that names the topic and the time of an image that cannot be used.
        """
        index, rows = self._index, list(part.rows)
        size, height, width = (index.height, index.width), self.layout.height, self.layout.width
        depth = np.full((len(rows), height, width), np.nan, np.float32)

        def frame_of(message: Any) -> np.ndarray:
            image = read_image(message, camera_frame=index.camera_frame, size=size)
            return fit_image(image, height, width)

        def depth_of(message: Any) -> np.ndarray:
            return fit_depth(read_depth(message, size=size), height, width)

        with self._reader() as reader:
            stamps, logged = index.stamps[rows], index.logged[rows]
            frames = self._images(reader, self.config.image, stamps, logged, frame_of)
            if self.config.depth:
                stamps, logged = index.depth_stamps[rows], index.depth_logged[rows]
                depth[:] = self._images(reader, self.config.depth, stamps, logged, depth_of)
        K = fit_K(index.K, size, height, width)
        cameras = Cameras(
            K=torch.from_numpy(np.tile(K, (len(rows), 1, 1))).float(),
            world_from_camera=torch.from_numpy(index.world_from_camera[rows]).float(),
            times=torch.from_numpy(index.stamps[rows]),
            height=height,
            width=width,
        )
        return Clip(
            name=part.name,
            frames=torch.from_numpy(np.stack(frames)),
            cameras=check_cameras(cameras),
            depth=torch.from_numpy(depth),
            sky=torch.zeros(depth.shape, dtype=torch.bool),
            moving=torch.zeros(depth.shape, dtype=torch.bool),
            scene=part.scene,
            labelled=False,
        )

    @cached_property
    def _index(self) -> _Index:
        """Read the whole bag once. Raises ValueError that names the topic."""
        config, rejected = self.config, _Rejected()
        with self._reader() as reader:
            K, size, camera_frame = self._camera(reader, rejected)
            world_frame, frame, tree = self._poses(reader, camera_frame, rejected)
            images = self._stamps(reader, config.image, rejected)
            depths = self._stamps(reader, config.depth, rejected) if config.depth else images
        stamps, nanoseconds, logged = images
        try:
            world_from_camera, posed, unused = tree.lookup_all(
                world_frame, frame, stamps, max_gap=config.pose_gap
            )
            first, last = tree.span(world_frame, frame)
        except ValueError as error:
            reasons = '; '.join([str(error), *rejected.lines()])
            raise ValueError(f'{self.path}: {config.pose}: {reasons}') from None
        if config.base_from_camera:
            world_from_camera = world_from_camera @ matrix_from_numbers(
                config.base_from_camera, name='base_from_camera'
            )
        nearest = _nearest(depths[0], stamps)
        paired = np.abs(depths[0][nearest] - stamps) <= config.tolerance
        left_out = []
        for usable, lack in (
            (posed, f'pose on {config.pose}: there are poses from {first:.6f} to {last:.6f}'),
            (paired, f'depth on {config.depth}'),
        ):
            if not usable.all():
                left_out.append(f'{(~usable).sum()} of {len(stamps)} images have no {lack}')
        usable = posed & paired
        return _Index(
            K=K,
            height=size[0],
            width=size[1],
            camera_frame=camera_frame,
            world_frame=world_frame,
            stamps=stamps[usable],
            nanoseconds=nanoseconds[usable],
            logged=logged[usable],
            depth_stamps=depths[0][nearest][usable],
            depth_logged=depths[2][nearest][usable],
            world_from_camera=world_from_camera[usable],
            left_out=left_out,
            broken=[*rejected.lines(), *(f'{config.pose}: {line}' for line in unused)],
        )

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        """Open the bag.

        Raises ImportError that names what to install, and ValueError for what is not a bag.
        """
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise ImportError('reading bags takes rosbags: pip install rosbags') from error
        try:
            reader = AnyReader(self._files(), default_typestore=get_typestore(Stores.ROS2_JAZZY))
            reader.open()
        except Exception as error:  # broken files raise whatever its parsers stumble over
            raise ValueError(f'{self.path}: not a bag that can be read: {error}') from error
        try:
            yield reader
        finally:
            reader.close()

    def _files(self) -> list[Path]:
        """Return the bag, or its storage files where a killed recorder wrote no metadata.yaml."""
        files = sorted([*self.path.glob('*.mcap'), *self.path.glob('*.db3')])
        whole = not files or (self.path / 'metadata.yaml').exists()
        return [self.path] if whole else files

    def _messages(
        self,
        reader: Any,
        topic: str,
        types: tuple[str, ...],
        rejected: _Rejected,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """Yield every message of a topic that can be read, with the time at which it was written
        [ns]."""
        connections = [c for c in reader.connections if c.topic == topic]
        if not connections:
            there = sorted({f'{c.topic} ({c.msgtype})' for c in reader.connections})
            raise ValueError(f'{self.path}: no topic {topic!r}, there are {", ".join(there)}')
        for connection in connections:
            if connection.msgtype not in types:
                raise ValueError(
                    f'{self.path}: {topic} is of type {connection.msgtype}, not '
                    f'{" or ".join(types)}'
                )
        from rosbags.highlevel import AnyReaderError

        stored = reader.messages(connections, start=start, stop=stop)
        while True:
            try:
                connection, logged, data = next(stored)
            except StopIteration:
                return
            except Exception as error:  # broken files raise whatever the parsers stumble over
                rejected.add(topic, 'and all that follow cannot be read', error)
                return
            try:
                message = reader.deserialize(data, connection.msgtype)
            except AnyReaderError as error:
                rejected.add(topic, 'cannot be read', f'{logged * 1e-9:.6f}: {error}')
                continue
            yield logged, message

    def _camera(
        self, reader: Any, rejected: _Rejected
    ) -> tuple[Float[np.ndarray, '3 3'], tuple[int, int], str]:
        """Return K, (height, width) and the optical frame, which are the same in the whole bag."""
        camera, topic = None, self.config.camera_info
        for _, message in self._messages(reader, topic, ('sensor_msgs/msg/CameraInfo',), rejected):
            try:
                K = K_from_camera_info(message)
            except ValueError as error:
                raise ValueError(f'{self.path}: {topic}: {error}') from None
            size, frame = (message.height, message.width), frame_name(message.header.frame_id)
            if camera is not None and (K.tolist(), size, frame) != camera:
                raise ValueError(f'{self.path}: {topic} changes within the bag')
            camera = K.tolist(), size, frame
        if camera is None:
            raise self._nothing(topic, 'messages', rejected)
        if not camera[2]:
            raise ValueError(f'{self.path}: {topic}: frame_id is empty, it must name the camera')
        return np.array(camera[0]), camera[1], camera[2]

    def _poses(
        self, reader: Any, camera_frame: str, rejected: _Rejected
    ) -> tuple[str, str, TransformTree]:
        """Return the fixed frame, the frame whose poses are wanted, and the transforms between
        them."""
        config, tree = self.config, TransformTree()
        mounted = bool(config.base_from_camera)
        if any(c.topic == config.pose and c.msgtype == _TRANSFORMS for c in reader.connections):
            self._add_transforms(reader, config.pose, tree, rejected, static=False)
            self._add_transforms(reader, config.transforms_static, tree, rejected, static=True)
            frame = frame_name(config.base_frame) if mounted else camera_frame
            return frame_name(config.world_frame), frame, tree
        base = config.base_frame if mounted else camera_frame
        worlds, bases = set(), set()
        for _, _, message in self._forwards(reader, config.pose, _POSES, rejected):
            try:
                parent, child, time, matrix = read_pose(message, base_frame=base, name='pose')
            except ValueError as error:
                detail = f'{seconds(message.header.stamp):.6f}: {error}'
                rejected.add(config.pose, 'hold no pose', detail)
                continue
            tree.add(parent, child, time, matrix, static=False)
            worlds.add(parent)
            bases.add(child)
        if not worlds:
            raise self._nothing(config.pose, 'poses', rejected)
        for frames, what in ((worlds, 'in'), (bases, 'of')):
            if len(frames) != 1:
                raise ValueError(
                    f'{self.path}: {config.pose} has poses {what} the frames {sorted(frames)}'
                )
        (world,), (base,) = worlds, bases
        if mounted or base == camera_frame:
            return world, base, tree
        self._add_transforms(
            reader, config.transforms_static, tree, rejected, static=True, except_of=base
        )
        try:
            tree.lookup(base, camera_frame, None)
        except ValueError as error:
            raise ValueError(
                f'{self.path}: {config.pose} has the poses of {base!r}, the camera is '
                f'{camera_frame!r}: set base_from_camera, or record its transform ({error})'
            ) from None
        return world, camera_frame, tree

    def _add_transforms(
        self,
        reader: Any,
        topic: str,
        tree: TransformTree,
        rejected: _Rejected,
        *,
        static: bool,
        except_of: str | None = None,
    ) -> None:
        """Add a topic of transforms to the tree, but those of a frame whose poses come from
        elsewhere."""
        if static and all(c.topic != topic for c in reader.connections):
            return
        for _, message in self._messages(reader, topic, (_TRANSFORMS,), rejected):
            for sent in message.transforms:
                child = frame_name(sent.child_frame_id)
                if child == except_of:
                    continue
                try:
                    tree.add(*read_transform(sent), static=static)
                except ValueError as error:
                    parent = frame_name(sent.header.frame_id)
                    reason = f'{seconds(sent.header.stamp):.6f}: {error}'
                    tree.reject(parent, child, reason, static=static)

    def _stamps(
        self, reader: Any, topic: str, rejected: _Rejected
    ) -> tuple[Float[np.ndarray, 'n'], Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
        """Return the increasing stamps of a topic's images in seconds and exactly, and when they
        were written."""
        images: list[tuple[float, int, int]] = []
        for logged, time, message in self._forwards(reader, topic, _IMAGES, rejected):
            exact = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            images.append((time, exact, logged))
        if not images:
            raise self._nothing(topic, 'messages', rejected)
        columns = list(zip(*sorted(images)))
        return (
            np.array(columns[0]),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.int64),
        )

    def _forwards(
        self, reader: Any, topic: str, types: tuple[str, ...], rejected: _Rejected
    ) -> Iterator[tuple[int, float, Any]]:
        """Yield messages with the time at which they were written and their stamp, until the clock
        is set back."""
        latest, set_back = -math.inf, False
        for logged, message in self._messages(reader, topic, types, rejected):
            time = seconds(message.header.stamp)
            set_back |= time < latest - SET_BACK
            if set_back:
                detail = f'{time:.6f} comes after {latest:.6f}; replay them as a bag of their own'
                rejected.add(topic, 'are left out since time goes backwards', detail)
                continue
            latest = max(latest, time)
            yield logged, time, message

    def _nothing(self, topic: str, what: str, rejected: _Rejected) -> ValueError:
        return ValueError('; '.join([f'{self.path}: {topic} has no {what}', *rejected.lines()]))

    def _images(
        self,
        reader: Any,
        topic: str,
        stamps: Float[np.ndarray, 'n'],
        logged: Int[np.ndarray, 'n'],
        read: Callable[[Any], np.ndarray],
    ) -> list[np.ndarray]:
        """Return the images with these stamps, read and fitted by ``read``, in this order."""
        images, wanted = {}, set(stamps.tolist())
        span = int(logged.min()), int(logged.max()) + 1
        for _, message in self._messages(reader, topic, _IMAGES, _Rejected(), *span):
            stamp = seconds(message.header.stamp)
            if stamp not in wanted:
                continue
            try:
                images[stamp] = read(message)
            except ValueError as error:
                raise ValueError(f'{self.path}: {topic} at {stamp:.6f}: {error}') from None
        return [images[stamp] for stamp in stamps.tolist()]


def _nearest(times: Float[np.ndarray, 'k'], at: Float[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    """Return for each of ``at`` the index of the nearest of the increasing ``times``, the earlier
    of two."""
    after = np.searchsorted(times, at).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(at - times[before] <= np.abs(times[after] - at), before, after)
