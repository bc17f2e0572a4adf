"""One pass over a bag: which images are usable, their stamps, intrinsics and poses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
import math
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from mirage_model.data.bag_storage import BagStorage, Stored
from mirage_model.data.config import BagConfig
from mirage_model.messages.camera_info import (
    SAME_NUMBERS,
    RectifiedCamera,
    check_depth_frame,
    check_image_frame,
    read_camera,
)
from mirage_model.messages.depth_registration import DepthCamera
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import (
    check_optical,
    frame_name,
    matrix_from_numbers,
    read_pose,
    read_transform,
    seconds,
)
from mirage_model.messages.transform_tree import SET_BACK, TransformTree

IMAGES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
_CAMERAS = ('sensor_msgs/msg/CameraInfo',)
_TRANSFORMS = ('tf2_msgs/msg/TFMessage', 'tf/msg/tfMessage')
_POSES = (
    'geometry_msgs/msg/PoseStamped',
    'geometry_msgs/msg/PoseWithCovarianceStamped',
    'nav_msgs/msg/Odometry',
)


@dataclass(frozen=True, kw_only=True)
class BagIndex:
    """Usable images of a bag in the order of their stamps.

    ``nanoseconds`` are the exact stamps, ``logged`` the times at which the images were written
    [ns]; ``depth_stamps`` and ``depth_logged`` are those of the depth of the same images.
    """

    camera: RectifiedCamera
    depth_camera: DepthCamera | None
    K: Float[np.ndarray, 'n 3 3']
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


@dataclass(kw_only=True)
class _Contents:
    """Stamps and poses that one pass over a bag collects.

    Images and depth are stamp [s], stamp [ns], time of writing [ns] and frame.
    """

    images: list[tuple[float, int, int, str]] = field(default_factory=list)
    depths: list[tuple[float, int, int, str]] = field(default_factory=list)
    cameras: list[tuple[float, RectifiedCamera]] = field(default_factory=list)
    depth_cameras: list[tuple[float, RectifiedCamera]] = field(default_factory=list)
    poses: list[tuple[str, str, float, np.ndarray]] = field(default_factory=list)
    transforms: list[tuple[Any, bool]] = field(default_factory=list)


class IndexReader:
    """Reader of the index of a bag."""

    def __init__(self, path: Path, storage: BagStorage, config: BagConfig, doubts: Doubts) -> None:
        self.path = path
        self.config = config
        self._storage = storage
        self._doubts = doubts

    def read(self) -> BagIndex:
        """Read the whole bag once. Raises ValueError that names the topic."""
        config, rejected = self.config, _Rejected()
        base_from_camera = (
            matrix_from_numbers(config.base_from_camera, name='base_from_camera')
            if config.base_from_camera
            else np.eye(4)
        )
        contents = self._contents(rejected)
        camera = self._one_camera(contents.cameras, config.camera_info, rejected)
        images = self._images_in(contents.images, config.image, rejected, camera.frame)
        stamps = np.array([image[0] for image in images])
        world_frame, frame, tree = self._tree(contents, camera.frame, rejected)
        try:
            world_from_camera, posed, unused = tree.lookup_all(
                world_frame, frame, stamps, max_gap=config.pose_gap
            )
            first, last = tree.span(world_frame, frame)
        except ValueError as error:
            reasons = '; '.join([f'{error}{self._mount_hint(contents)}', *rejected.lines()])
            raise ValueError(f'{self.path}: {config.pose}: {reasons}') from None
        world_from_camera = world_from_camera @ base_from_camera
        cameras, known = _cameras_at(contents.cameras, stamps, tolerance=config.tolerance)
        world_from_camera = world_from_camera @ np.stack([c.frame_from_camera for c in cameras])
        depth_camera = self._depth_camera(contents, camera, tree, rejected)
        depths = images
        if config.depth:
            if not contents.depths:
                raise self._nothing(config.depth, 'messages', rejected)
            depths = sorted(contents.depths)
            for depth_frame in dict.fromkeys(depth[3] for depth in depths):
                if depth_camera is None or frame_name(depth_frame) != depth_camera.frame:
                    self._named(
                        config.depth, check_depth_frame, depth_frame, camera.frame, self._doubts
                    )
        depth_stamps = np.array([depth[0] for depth in depths])
        nearest = nearest_rows(depth_stamps, stamps)
        paired = np.abs(depth_stamps[nearest] - stamps) <= config.tolerance
        left_out = []
        for usable, lack in (
            (posed, f'pose on {config.pose}: there are poses from {first:.6f} to {last:.6f}'),
            (paired, f'depth on {config.depth}'),
            (known, f'camera_info on {config.camera_info}, whose intrinsics vary'),
        ):
            if not usable.all():
                left_out.append(f'{(~usable).sum()} of {len(stamps)} images have no {lack}')
        usable = posed & paired & known
        check_optical(world_from_camera[usable], camera.frame, self._doubts)
        return BagIndex(
            camera=camera,
            depth_camera=depth_camera,
            K=np.stack([c.K for c in cameras])[usable],
            world_frame=world_frame,
            stamps=stamps[usable],
            nanoseconds=np.array([image[1] for image in images], np.int64)[usable],
            logged=np.array([image[2] for image in images], np.int64)[usable],
            depth_stamps=depth_stamps[nearest][usable],
            depth_logged=np.array([d[2] for d in depths], np.int64)[nearest][usable],
            world_from_camera=world_from_camera[usable],
            left_out=left_out,
            broken=[*rejected.lines(), *(f'{config.pose}: {line}' for line in unused)],
        )

    def _contents(self, rejected: _Rejected) -> _Contents:
        """Read stamps, cameras, poses and transforms in one pass."""
        config, storage, contents = self.config, self._storage, _Contents()
        roles: dict[str, list[Callable[[Stored, Any], None]]] = defaultdict(list)
        latest: dict[str, float] = {}
        set_back: set[str] = set()

        def forwards(topic: str, message: Any) -> bool:
            """Return whether a message comes before the clock of its topic was set back."""
            time, before = seconds(message.header.stamp), latest.get(topic, -math.inf)
            if topic in set_back or time < before - SET_BACK:
                set_back.add(topic)
                detail = f'{time:.6f} comes after {before:.6f}; replay them as a bag of their own'
                rejected.add(topic, 'are left out since time goes backwards', detail)
                return False
            latest[topic] = max(before, time)
            return True

        def image(into: list[tuple[float, int, int, str]]) -> Callable[[Stored, Any], None]:
            places: dict[int, int] = {}
            last = b''

            def add(stored: Stored, message: Any) -> None:
                """Add an image, or replace one of the same stamp, as the node does."""
                nonlocal last
                if not forwards(stored.topic.name, message):
                    return
                stamp = message.header.stamp
                exact = stamp.sec * 10**9 + stamp.nanosec
                place = places.setdefault(exact, len(into))
                if place < len(into) and stored.data != last:
                    detail = f'{seconds(stamp):.6f}; the driver must stamp each image'
                    rejected.add(
                        stored.topic.name, 'are replaced by others of the same stamp', detail
                    )
                last = stored.data
                into[place : place + 1] = [
                    (seconds(stamp), exact, stored.logged, message.header.frame_id)
                ]

            return add

        def camera(into: list[tuple[float, RectifiedCamera]]) -> Callable[[Stored, Any], None]:
            read: dict[tuple[object, ...], RectifiedCamera | ValueError] = {}

            def add(stored: Stored, message: Any) -> None:
                time = seconds(message.header.stamp)
                # all but the stamp repeats: it is read once
                key = _without_stamp(message)
                if key not in read:
                    try:
                        read[key] = read_camera(message, self._doubts)
                    except ValueError as error:
                        read[key] = error
                found = read[key]
                if isinstance(found, ValueError):
                    rejected.add(stored.topic.name, 'cannot be used', f'{time:.6f}: {found}')
                else:
                    into.append((time, found))

            return add

        def pose(stored: Stored, message: Any) -> None:
            if not forwards(stored.topic.name, message):
                return
            try:
                transform = read_pose(message, base_frame=config.base_frame, name='pose')
                contents.poses.append(transform)
            except ValueError as error:
                detail = f'{seconds(message.header.stamp):.6f}: {error}'
                rejected.add(stored.topic.name, 'hold no pose', detail)

        def transforms(static: bool) -> Callable[[Stored, Any], None]:
            def add(stored: Stored, message: Any) -> None:
                contents.transforms += [(sent, static) for sent in message.transforms]

            return add

        wanted: list[tuple[str, Collection[str], Callable[[Stored, Any], None]]] = [
            (config.image, IMAGES, image(contents.images)),
            (config.camera_info, _CAMERAS, camera(contents.cameras)),
        ]
        if config.depth:
            wanted.append((config.depth, IMAGES, image(contents.depths)))
        if config.depth and config.depth_camera_info:
            wanted.append((config.depth_camera_info, _CAMERAS, camera(contents.depth_cameras)))
        by_transforms = self._poses_are_transforms
        if not by_transforms:
            wanted.append((config.pose, _POSES, pose))
        moving = config.pose if by_transforms else config.transforms
        if by_transforms or storage.types(moving):
            wanted.append((moving, _TRANSFORMS, transforms(False)))
        if storage.types(config.transforms_static):
            wanted.append((config.transforms_static, _TRANSFORMS, transforms(True)))
        for topic, types, role in wanted:
            storage.check(topic, types)
            roles[topic].append(role)
        messages = storage.messages(roles)
        while True:
            try:
                stored = next(messages)
            except StopIteration:
                return contents
            except Exception as error:  # broken files raise whatever the parsers stumble over
                rejected.add('all topics', 'that follow cannot be read', error)
                return contents
            try:
                message = storage.read(stored)
            except ValueError as error:
                detail = f'{stored.logged * 1e-9:.6f}: {error}'
                rejected.add(stored.topic.name, 'cannot be read', detail)
                continue
            for role in roles[stored.topic.name]:
                role(stored, message)

    @property
    def _poses_are_transforms(self) -> bool:
        return any(kind in _TRANSFORMS for kind in self._storage.types(self.config.pose))

    def _one_camera(
        self, cameras: list[tuple[float, RectifiedCamera]], topic: str, rejected: _Rejected
    ) -> RectifiedCamera:
        """Return the first camera. Raises ValueError where there is none, or where the frame or
        size of others differs."""
        if not cameras:
            raise self._nothing(topic, 'usable messages', rejected)
        _, camera = cameras[0]
        for time, other in cameras:
            if (other.frame, other.size) != (camera.frame, camera.size):
                first, then = (f"'{c.frame}' {c.size[0]}x{c.size[1]}" for c in (camera, other))
                raise ValueError(
                    f'{self.path}: {topic} changes within the bag, from {first} to {then} at '
                    f'{time:.6f}: record each camera on a topic of its own'
                )
        return camera

    def _images_in(
        self,
        images: list[tuple[float, int, int, str]],
        topic: str,
        rejected: _Rejected,
        camera_frame: str,
    ) -> list[tuple[float, int, int, str]]:
        """Return the images in the camera's frame, in the order of their stamps."""
        kept = []
        for image in images:
            try:
                check_image_frame(image[3], camera_frame)
                kept.append(image)
            except ValueError as error:
                rejected.add(topic, 'cannot be used', f'{image[0]:.6f}: {error}')
        if not kept:
            raise self._nothing(topic, 'usable messages', rejected)
        return sorted(kept)

    def _tree(
        self, contents: _Contents, camera_frame: str, rejected: _Rejected
    ) -> tuple[str, str, TransformTree]:
        """Return the fixed frame, the frame whose poses are wanted, and the transforms."""
        config, tree = self.config, TransformTree()
        frame = frame_name(config.base_frame) if config.base_from_camera else camera_frame
        world, posed = frame_name(config.world_frame), {child for _, child, _, _ in contents.poses}
        if not self._poses_are_transforms:
            if not contents.poses:
                raise self._nothing(config.pose, 'poses', rejected)
            worlds = sorted({parent for parent, _, _, _ in contents.poses})
            for frames, what in ((worlds, 'in'), (sorted(posed), 'of')):
                if len(frames) != 1:
                    raise ValueError(
                        f'{self.path}: {config.pose}: its poses are {what} the frames '
                        f'{", ".join(frames)}, one frame is needed'
                    )
            (world,) = worlds
        for transform in contents.poses:
            tree.add(*transform, static=False)
        for sent, static in contents.transforms:
            if frame_name(sent.child_frame_id) in posed:
                continue
            try:
                tree.add(*read_transform(sent), static=static)
            except ValueError as error:
                parent, child = frame_name(sent.header.frame_id), frame_name(sent.child_frame_id)
                reason = f'{seconds(sent.header.stamp):.6f}: {error}'
                tree.reject(parent, child, reason)
        return world, frame, tree

    def _mount_hint(self, contents: _Contents) -> str:
        """Return what to do where the camera is not joined to the frame of the poses."""
        config = self.config
        if self._poses_are_transforms:
            return ''
        (child,) = {child for _, child, _, _ in contents.poses}
        if config.base_from_camera:
            return f" (the poses are of '{child}', base_frame is '{config.base_frame}')"
        return (
            f" (the poses are of '{child}': set base_from_camera, record its transform to the "
            "camera, or set base_frame to the camera's frame if they are the camera's own)"
        )

    def _depth_camera(
        self,
        contents: _Contents,
        camera: RectifiedCamera,
        tree: TransformTree,
        rejected: _Rejected,
    ) -> DepthCamera | None:
        """Return the camera of depth; None where no camera_info is of the frame of the depth."""
        topic = self.config.depth_camera_info
        if not (self.config.depth and topic):
            return None
        own = self._one_camera(contents.depth_cameras, topic, rejected)
        if own.frame not in {frame_name(depth[3]) for depth in contents.depths}:
            return None
        frames = np.eye(4)
        if own.frame != camera.frame:
            frames = self._named(topic, tree.lookup, camera.frame, own.frame, None)
        image_from_frame = np.linalg.inv(camera.frame_from_camera)
        return DepthCamera(
            frame=own.frame,
            K=own.K,
            size=own.size,
            image_from_depth=image_from_frame @ frames @ own.frame_from_camera,
        )

    def _named(self, topic: str, call: Callable, *arguments: Any) -> Any:
        """Return what a call returns; its ValueError gets the bag and the topic."""
        try:
            return call(*arguments)
        except ValueError as error:
            raise ValueError(f'{self.path}: {topic}: {error}') from None

    def _nothing(self, topic: str, what: str, rejected: _Rejected) -> ValueError:
        """Return the error of a topic without what is needed."""
        return ValueError('; '.join([f'{self.path}: {topic} has no {what}', *rejected.lines()]))


def _cameras_at(
    cameras: list[tuple[float, RectifiedCamera]],
    stamps: Float[np.ndarray, 'n'],
    *,
    tolerance: float,
) -> tuple[list[RectifiedCamera], Bool[np.ndarray, 'n']]:
    """Return the camera of each image, and whether it is known: where intrinsics vary, only by a
    camera_info whose stamp is within the tolerance."""
    first = cameras[0][1]
    same = all(
        np.allclose(camera.K, first.K, rtol=SAME_NUMBERS)
        and np.allclose(camera.frame_from_camera, first.frame_from_camera, rtol=SAME_NUMBERS)
        for camera in {id(camera): camera for _, camera in cameras}.values()
    )
    if same:
        return [first] * len(stamps), np.ones(len(stamps), bool)
    cameras = sorted(cameras, key=lambda entry: entry[0])
    times = np.array([time for time, _ in cameras])
    nearest = nearest_rows(times, stamps)
    return [cameras[i][1] for i in nearest], np.abs(times[nearest] - stamps) <= tolerance


def _without_stamp(message: Any) -> tuple[object, ...]:
    """Return all of a camera_info but its stamp, to be compared."""
    region = message.roi
    return (
        frame_name(message.header.frame_id),
        message.distortion_model,
        *(message.height, message.width, message.binning_x, message.binning_y),
        *(region.x_offset, region.y_offset, region.height, region.width),
        *(np.asarray(getattr(message, name)).tobytes() for name in 'dkp'),
    )


def nearest_rows(
    times: Float[np.ndarray, 'k'], at: Float[np.ndarray, 'n']
) -> Int[np.ndarray, 'n']:
    """Return for each of ``at`` the index of the nearest of the increasing ``times``, the earlier
    of two."""
    after = np.searchsorted(times, at).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(at - times[before] <= np.abs(times[after] - at), before, after)
