"""Folders of frames with a COLMAP reconstruction, or with a trajectory of the TUM RGB-D format.

COLMAP gives cameras in a unit of its own and no times: frames are in the order of their names, at
a given rate. A TUM folder holds ``rgb.txt`` with a line ``stamp path`` a frame, or images named by
their stamp; and optionally ``depth.txt`` with 16-bit images registered to the colour. The
trajectory has a line ``stamp tx ty tz qx qy qz qw`` a pose, camera to world, optical axes, metres.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
import struct

import cv2
from jaxtyping import Float, Float32, Float64
import numpy as np
from scipy.spatial.transform import Rotation

from mirage_model.clip import Clip
from mirage_model.data.sources import Layout, Listing, Part, clip_of, cut, read_image
from mirage_model.messages.poses import resample_trajectory

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_PINHOLE = {'SIMPLE_PINHOLE': 0, 'PINHOLE': 1}
"""Number of COLMAP's models without distortion."""
_PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8, 5: 8, 6: 12, 7: 5, 8: 4, 9: 5, 10: 12}
"""Parameters of COLMAP's models by their number."""


@dataclass(frozen=True, kw_only=True)
class Colmap:
    """Source of one folder of frames with a COLMAP model, in text or binary."""

    frames: Path
    """Folder that the names of the model's images are relative to."""
    model: Path
    """Folder with cameras and images, ``.bin`` or ``.txt``."""
    rate: float
    """Frames per second of consecutive names."""
    layout: Layout

    def listing(self) -> Listing:
        names = [image.name for image in read_colmap(self.model)]
        rows = [i for i, name in enumerate(names) if (self.frames / name).is_file()]
        scene = self.frames.name
        listing = cut(scene, scene, np.array(rows) / self.rate, self.layout, rows)
        if len(rows) < len(names):
            reason = f'{len(names) - len(rows)} of {len(names)} images are not in {self.frames}'
            listing.left_out.append((f'{scene} (frames)', scene, reason))
        return listing

    def load(self, part: Part) -> Clip:
        images = read_colmap(self.model)
        chosen = [images[row] for row in part.rows]
        return clip_of(
            part,
            self.layout,
            images=[read_image(self.frames / image.name) for image in chosen],
            K=np.stack([image.K for image in chosen]),
            world_from_camera=np.stack([image.world_from_camera for image in chosen]),
            times=np.array(part.rows) / self.rate,
            metric=False,
        )


@dataclass(frozen=True, kw_only=True)
class ColmapImage:
    """A registered image of a COLMAP model."""

    name: str
    """Path of the image, relative to the folder of frames."""
    K: Float64[np.ndarray, '3 3']
    """Intrinsics [px], with the centre of the first pixel at (0, 0)."""
    world_from_camera: Float64[np.ndarray, '4 4']
    """Pose in the unit of the model."""


def read_colmap(folder: Path) -> list[ColmapImage]:
    """Read the registered images of a COLMAP model in the order of their names.

    Raises:
        ValueError: A file is missing or damaged, or a camera has distortion.
    """
    binary = (folder / 'images.bin').exists()
    suffix = '.bin' if binary else '.txt'
    cameras_path, images_path = folder / f'cameras{suffix}', folder / f'images{suffix}'
    for path in (cameras_path, images_path):
        if not path.is_file():
            raise ValueError(f'{path}: the file is missing, a COLMAP model is needed')
    try:
        cameras = dict((_binary_cameras if binary else _text_cameras)(cameras_path))
        images = []
        for name, camera, numbers in (_binary_images if binary else _text_images)(images_path):
            w, x, y, z = numbers[:4]
            camera_from_world = np.eye(4)
            camera_from_world[:3, :3] = Rotation.from_quat([x, y, z, w]).as_matrix()
            camera_from_world[:3, 3] = numbers[4:]
            images.append(
                ColmapImage(
                    name=name,
                    K=_intrinsics(*cameras[camera], path=cameras_path),
                    world_from_camera=np.linalg.inv(camera_from_world),
                )
            )
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f'{folder}: damaged, or not a COLMAP model: {error!r}') from None
    return sorted(images, key=lambda image: image.name)


def _intrinsics(
    model: int, numbers: tuple[float, ...], *, path: Path
) -> Float64[np.ndarray, '3 3']:
    if model not in _PINHOLE.values():
        raise ValueError(
            f'{path}: a camera with distortion, {" and ".join(_PINHOLE)} are allowed; '
            'run colmap image_undistorter'
        )
    fx, fy, cx, cy = numbers if model else (numbers[0], *numbers)
    # COLMAP counts from the image's corner
    return np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1.0]])


def _text_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith('#')]


def _text_cameras(path: Path) -> Iterator[tuple[int, tuple[int, tuple[float, ...]]]]:
    for line in _text_lines(path):
        if fields := line.split():
            yield int(fields[0]), (_PINHOLE.get(fields[1], -1), tuple(map(float, fields[4:])))


def _text_images(path: Path) -> Iterator[tuple[str, int, list[float]]]:
    # each image has a second line, of its points, which may be empty
    for line in _text_lines(path)[::2]:
        fields = line.split(maxsplit=9)
        if fields:
            yield fields[9], int(fields[8]), [float(field) for field in fields[1:8]]


def _binary_cameras(path: Path) -> Iterator[tuple[int, tuple[int, tuple[float, ...]]]]:
    content, at = path.read_bytes(), 8
    for _ in range(struct.unpack_from('<Q', content)[0]):
        number, model = struct.unpack_from('<ii', content, at)
        count = _PARAMETERS[model]
        yield number, (model, struct.unpack_from(f'<{count}d', content, at + 24))
        at += 24 + 8 * count


def _binary_images(path: Path) -> Iterator[tuple[str, int, list[float]]]:
    content, at = path.read_bytes(), 8
    for _ in range(struct.unpack_from('<Q', content)[0]):
        numbers = struct.unpack_from('<7d', content, at + 4)
        camera = struct.unpack_from('<i', content, at + 60)[0]
        end = content.index(b'\0', at + 64)
        yield content[at + 64 : end].decode(), camera, list(numbers)
        points = struct.unpack_from('<Q', content, end + 1)[0]
        at = end + 9 + 24 * points


@dataclass(frozen=True, kw_only=True)
class Tum:
    """Source of one folder of frames with a trajectory of the TUM RGB-D format."""

    folder: Path
    """Folder with ``rgb.txt`` and ``depth.txt``, or of images named by their stamp [s]."""
    trajectory: Path
    """Text file of stamps and poses."""
    intrinsics: tuple[float, float, float, float]
    """fx fy cx cy [px], with the centre of the first pixel at (0, 0)."""
    depth_scale: float
    """Numbers of a depth image to the metre."""
    tolerance: float
    """Largest difference between the stamps of a frame and its depth [s]."""
    pose_gap: float
    """Longest time from a frame to the poses before and after it [s]."""
    layout: Layout

    def listing(self) -> Listing:
        frames = self._images('rgb.txt')
        stamps, _ = read_trajectory(self.trajectory)
        at = np.array([stamp for stamp, _ in frames])
        after = np.searchsorted(stamps, at).clip(0, len(stamps) - 1)
        before = (np.searchsorted(stamps, at, side='right') - 1).clip(0)
        posed = (np.abs(stamps[after] - at) <= self.pose_gap) & (stamps[after] >= at)
        posed &= (np.abs(at - stamps[before]) <= self.pose_gap) & (stamps[before] <= at)
        wanted = [posed]
        depth = self._depth_images()
        if depth is not None:
            wanted.append(np.array([self._nearest(depth, stamp) is not None for stamp in at]))
        rows = np.flatnonzero(np.all(wanted, axis=0)).tolist()
        scene = self.folder.name
        listing = cut(scene, scene, at[rows], self.layout, rows)
        if len(rows) < len(frames):
            reason = f'{len(frames) - len(rows)} of {len(frames)} frames lack a pose or depth'
            listing.left_out.append((f'{scene} (frames)', scene, reason))
        return listing

    def load(self, part: Part) -> Clip:
        frames = self._images('rgb.txt')
        chosen = [frames[row] for row in part.rows]
        times = np.array([stamp for stamp, _ in chosen])
        stamps, poses = read_trajectory(self.trajectory)
        fx, fy, cx, cy = self.intrinsics
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        images = self._depth_images()
        depth = None
        if images is not None:
            paths = [self._nearest(images, stamp) for stamp in times]
            depth = [self._read_depth(path) for path in paths if path is not None]
        return clip_of(
            part,
            self.layout,
            images=[read_image(path) for _, path in chosen],
            K=np.tile(K, (len(chosen), 1, 1)),
            world_from_camera=resample_trajectory(poses, stamps, times),
            times=times,
            depth=depth,
            metric=True,
        )

    def _depth_images(self) -> list[tuple[float, Path]] | None:
        return self._images('depth.txt') if (self.folder / 'depth.txt').exists() else None

    def _images(self, name: str) -> list[tuple[float, Path]]:
        """Return stamps and paths of a list, or of images named by their stamp."""
        path = self.folder / name
        if path.exists():
            lines = (line.split() for line in path.read_text().splitlines())
            pairs = [fields for fields in lines if fields and not fields[0].startswith('#')]
            try:
                return [(float(stamp), self.folder / file) for stamp, file in pairs]
            except ValueError:
                raise ValueError(f'{path}: lines of a stamp and a path are needed') from None
        images = [p for p in self.folder.glob('*') if p.suffix.lower() in _SUFFIXES]
        try:
            found = sorted((float(image.stem), image) for image in images)
        except ValueError:
            raise ValueError(
                f'{self.folder}: not all images are named by their stamp, and rgb.txt is missing'
            ) from None
        if not found:
            raise ValueError(f'{self.folder}: no images and no rgb.txt in this folder')
        return found

    def _nearest(self, images: list[tuple[float, Path]], stamp: float) -> Path | None:
        """Return the image nearest to a stamp, if it is within the tolerance."""
        at, path = min(images, key=lambda image: abs(image[0] - stamp))
        return path if abs(at - stamp) <= self.tolerance else None

    def _read_depth(self, path: Path) -> Float32[np.ndarray, 'h w']:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if image is None or image.dtype != np.uint16:
            raise ValueError(f'{path}: cannot be read as an image of 16 bits')
        metres = image.astype(np.float32) / np.float32(self.depth_scale)
        return np.where(image > 0, metres, np.float32(np.nan))


def read_trajectory(
    path: Path,
) -> tuple[Float64[np.ndarray, 'n'], Float[np.ndarray, 'n 4 4']]:
    """Read stamps [s] and world_from_camera of a TUM trajectory.

    Raises:
        ValueError: The file is missing, or a line has not 8 numbers or a quaternion of length 0.
    """
    try:
        numbers = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: cannot be read as a trajectory: {error}') from None
    if numbers.shape[1] != 8 or not numbers.size:
        raise ValueError(f'{path}: {numbers.shape[1]} columns, 8 are needed')
    numbers = numbers[numbers[:, 0].argsort(kind='stable')]
    poses = np.tile(np.eye(4), (len(numbers), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(numbers[:, 4:]).as_matrix()
    poses[:, :3, 3] = numbers[:, 1:4]
    return numbers[:, 0], poses
