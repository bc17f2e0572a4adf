"""Clips from a ROS bag: rectified images with their camera_info, poses, and depth if there is any.

Read by `rosbags`, which knows MCAP and sqlite3 and needs no ROS. A pose is that of the frame ``base``, in one
fixed frame; ``base_from_camera`` says where the camera's optical frame sits on it. Transforms know by
by themselves where it is: then ``base`` is the camera's own frame.

Messages that cannot be read or used are left out, and so is what comes after time was set back; `Bag.broken` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
import math
from pathlib import Path

from jaxtyping import Float, Int
import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras, resample_trajectory
from mirage_model.clip import Clip
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout, Listing, Part, cut, fit, fit_cameras
from mirage_model.messages.bag import colours, matrix, metres, seconds
from mirage_model.messages.sensors import intrinsics
from mirage_model.messages.transform_tree import SET_BACK, Tree

_SAME = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
_IMAGE, _COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
_TRANSFORMS = 'tf2_msgs/msg/TFMessage'
_POSES = {
    'geometry_msgs/msg/PoseStamped': lambda message: message.pose,
    'geometry_msgs/msg/PoseWithCovarianceStamped': lambda message: message.pose.pose,
    'nav_msgs/msg/Odometry': lambda message: message.pose.pose,
}


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
    broken: list[str]


class _Lost:
    """Counts messages that are left out, by topic and by what is the matter with them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list] = {}

    def add(self, topic: str, what: str, detail: object) -> None:
        """``detail`` is kept of the first."""
        self._found.setdefault((topic, what), [0, detail])[0] += 1

    def told(self) -> list[str]:
        return [
            f'{count} messages on {topic} {what}, the first: {detail}'
            for (topic, what), (count, detail) in self._found.items()
        ]


@dataclass(frozen=True)
class Bag:
    """One bag: its folder, or its one file. It is one scene, by that name without .mcap or .db3."""

    path: Path
    config: BagConfig
    layout: Layout

    @property
    def scene(self) -> str:
        path = self.path.resolve()
        return path.stem if path.suffix in ('.mcap', '.db3') else path.name

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

    @property
    def broken(self) -> list[str]:
        """What is left out because the bag holds it but it cannot be used; part of the listing too."""
        return self._index.broken

    def listing(self) -> Listing:
        index = self._index
        rows = list(range(len(index.stamps)))
        listing = cut(self.scene, self.scene, index.stamps, self.layout, rows)
        images = [
            (f'{self.scene} (images)', self.scene, reason)
            for reason in index.left_out + index.broken
        ]
        return Listing(parts=listing.parts, left_out=images + listing.left_out)

    def load(self, part: Part) -> Clip:
        index, rows = self._index, list(part.rows)
        shape = (len(rows), self.layout.height, self.layout.width)
        depth = np.full(shape, np.nan, np.float32)
        with self._reader() as reader:
            frames = self._images(
                reader, self.config.image, index.stamps[rows], index.logged[rows], colours
            )
            if self.config.depth:
                stamps, logged = index.depth_stamps[rows], index.depth_logged[rows]
                depth[:] = self._images(reader, self.config.depth, stamps, logged, metres)
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
        config, lost = self.config, _Lost()
        with self._reader() as reader:
            K, height, width, camera_frame = self._camera(reader, lost)
            world_frame, times, world_from_base, unused = self._poses(reader, camera_frame, lost)
            images = self._stamps(reader, config.image, lost)
            depths = self._stamps(reader, config.depth, lost) if config.depth else images
        stamps, nanoseconds, logged = images
        before = np.searchsorted(times, stamps, side='right') - 1
        after = np.minimum(before + (times[before.clip(0)] < stamps), len(times) - 1)
        posed = (before >= 0) & (times[after] >= stamps)
        posed &= np.maximum(stamps - times[before], times[after] - stamps) <= config.pose_gap
        nearest = _nearest(depths[0], stamps)
        paired = np.abs(depths[0][nearest] - stamps) <= config.tolerance
        span = f'there are poses from {times[0]:.6f} to {times[-1]:.6f}'
        left_out = []
        for usable, lack in (
            (posed, f'pose on {config.pose}: {span}'),
            (paired, f'depth on {config.depth}'),
        ):
            if not usable.all():
                left_out.append(f'{(~usable).sum()} of {len(stamps)} images have no {lack}')
        usable = posed & paired
        base_from_camera = matrix(config.base_from_camera or _SAME, 'base_from_camera')
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
            broken=[*lost.told(), *unused],
        )

    @contextmanager
    def _reader(self) -> Iterator:
        """Raises ImportError that names what to install, and ValueError for what is no bag."""
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise ImportError('reading bags takes rosbags: pip install rosbags') from error
        try:
            reader = AnyReader(self._files(), default_typestore=get_typestore(Stores.ROS2_JAZZY))
            reader.open()
        except (
            Exception
        ) as error:  # its parsers raise whatever broken files make them stumble over
            raise ValueError(f'{self.path} is no bag that can be read: {error}') from error
        try:
            yield reader
        finally:
            reader.close()

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
        lost: _Lost,
        start: int | None = None,
        stop: int | None = None,
    ) -> Iterator:
        """Every message of a topic that can be read, with the time that it was written at, in nanoseconds."""
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

        stored = reader.messages(connections, start=start, stop=stop)
        while True:
            try:
                connection, logged, data = next(stored)
            except StopIteration:
                return
            except Exception as error:  # as when it is opened
                lost.add(topic, 'and all that follow cannot be read', error)
                return
            try:
                message = reader.deserialize(data, connection.msgtype)
            except AnyReaderError as error:
                lost.add(topic, 'cannot be read', f'{logged * 1e-9:.6f}: {error}')
                continue
            yield logged, message

    def _camera(self, reader, lost: _Lost) -> tuple[Float[np.ndarray, '3 3'], int, int, str]:
        """K, the image's size and the camera's frame, the same in the whole bag."""
        found, topic = None, self.config.camera_info
        for _, message in self._messages(reader, topic, ('sensor_msgs/msg/CameraInfo',), lost):
            try:
                frame = message.header.frame_id
                camera = (intrinsics(message).tolist(), message.height, message.width, frame)
            except ValueError as error:
                raise ValueError(f'{self.path}: {topic}: {error}') from None
            if found is not None and camera != found:
                raise ValueError(f'{self.path}: {topic} changes within the bag')
            found = camera
        if found is None:
            raise self._nothing(topic, 'messages', lost)
        return np.array(found[0]), int(found[1]), int(found[2]), found[3]

    def _poses(
        self, reader, camera_frame: str, lost: _Lost
    ) -> tuple[str, Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4'], list[str]]:
        """The frame that the poses are in, their times and world_from_base, and what of a tree was not used."""
        topic, found, frames = self.config.pose, {}, set()
        connection = next((c for c in reader.connections if c.topic == topic), None)
        if connection is not None and connection.msgtype == _TRANSFORMS:
            return self.config.world_frame, *self._transforms(reader, camera_frame, lost)
        pose_of = _POSES.get(connection.msgtype) if connection else None
        for _, time, message in self._forwards(reader, topic, tuple(_POSES), lost):
            pose = pose_of(message)
            p, q = pose.position, pose.orientation
            moved = getattr(message, 'child_frame_id', '')
            if moved not in ('', camera_frame) and not self.config.base_from_camera:
                raise ValueError(
                    f'{self.path}: {topic} has the poses of {moved!r}, the camera is {camera_frame!r}: '
                    'base_from_camera must say where it sits'
                )
            try:
                sits = matrix((p.x, p.y, p.z, q.x, q.y, q.z, q.w), f'{time:.6f}')
            except ValueError as error:
                lost.add(topic, 'hold no pose', error)
                continue
            found.setdefault(time, sits)  # what is sent twice counts once
            frames.add(message.header.frame_id)
        if not found:
            raise self._nothing(topic, 'poses', lost)
        if len(frames) != 1:
            raise ValueError(f'{self.path}: {topic} has poses in the frames {sorted(frames)}')
        times = sorted(found)
        return frames.pop(), np.array(times), np.stack([found[time] for time in times]), []

    def _transforms(
        self, reader, camera_frame: str, lost: _Lost
    ) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k 4 4'], list[str]]:
        tree, config = Tree(), self.config
        topics = {c.topic for c in reader.connections} & {config.pose, config.transforms_static}
        for topic in sorted(topics):
            static = topic == config.transforms_static
            for _, message in self._messages(reader, topic, (_TRANSFORMS,), lost):
                for sent in message.transforms:
                    p, q = sent.transform.translation, sent.transform.rotation
                    parent, child, time = sent.header.frame_id, sent.child_frame_id, seconds(sent)
                    try:
                        sits = matrix((p.x, p.y, p.z, q.x, q.y, q.z, q.w), f'{time:.6f}')
                    except ValueError as error:
                        tree.refuse(parent, child, str(error), static=static)
                    else:
                        tree.add(parent, child, time, sits, static=static)
        try:
            times, world_from_camera, broken = tree.poses(config.world_frame, camera_frame)
        except ValueError as error:
            told = '; '.join([str(error), *lost.told()])
            raise ValueError(f'{self.path}: {config.pose}: {told}') from None
        return times, world_from_camera, [f'{config.pose}: {line}' for line in broken]

    def _stamps(
        self, reader, topic: str, lost: _Lost
    ) -> tuple[Float[np.ndarray, 'n'], Int[np.ndarray, 'n'], Int[np.ndarray, 'n']]:
        """Stamps of a topic's images, increasing, in seconds and exactly, and when they were written."""
        found: list[tuple[float, int, int]] = []
        for logged, time, message in self._forwards(reader, topic, (_IMAGE, _COMPRESSED), lost):
            exact = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            found.append((time, exact, logged))
        if not found:
            raise self._nothing(topic, 'messages', lost)
        stamps, exact, logged = zip(*sorted(found))
        return np.array(stamps), np.array(exact, np.int64), np.array(logged, np.int64)

    def _forwards(
        self, reader, topic: str, types: tuple[str, ...], lost: _Lost
    ) -> Iterator[tuple[int, float, object]]:
        """Messages with the time that they were written at and their stamp, until their clock is set back."""
        latest, back = -math.inf, False
        for logged, message in self._messages(reader, topic, types, lost):
            time = seconds(message)
            back |= time < latest - SET_BACK
            if back:
                detail = f'{time:.6f} comes after {latest:.6f}; replay them as a bag of their own'
                lost.add(topic, 'are left out since time goes backwards', detail)
                continue
            latest = max(latest, time)
            yield logged, time, message

    def _nothing(self, topic: str, what: str, lost: _Lost) -> ValueError:
        return ValueError('; '.join([f'{self.path}: {topic} has no {what}', *lost.told()]))

    def _images(
        self,
        reader,
        topic: str,
        stamps: Float[np.ndarray, 'n'],
        logged: Int[np.ndarray, 'n'],
        read: Callable,
    ) -> list[np.ndarray]:
        """The images with these stamps by ``read``, fitted, in this order."""
        index, found, wanted = self._index, {}, set(stamps.tolist())
        span = int(logged.min()), int(logged.max()) + 1
        for _, message in self._messages(reader, topic, (_IMAGE, _COMPRESSED), _Lost(), *span):
            stamp = seconds(message)
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
            found[stamp] = fit(image, self.layout, labels=read is metres)
        return [found[stamp] for stamp in stamps.tolist()]


def _nearest(times: Float[np.ndarray, 'k'], at: Float[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
    """For each of ``at`` the index of the nearest of the increasing ``times``, the earlier of two."""
    after = np.searchsorted(times, at).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(at - times[before] <= np.abs(times[after] - at), before, after)
