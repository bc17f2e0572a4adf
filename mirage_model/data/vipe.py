"""A video with the results of ViPE: poses, intrinsics, depth and masks of dynamic objects.

For a video ``NAME.mp4`` the folder holds ``pose/NAME.npz`` (``inds``, and ``data`` with camera to
world, optical axes, metres), ``intrinsics/NAME.npz`` (``inds``, and ``data`` with fx fy cx cy in
pixels from the corner of the image), ``depth/NAME.zip`` (an EXR file a frame, channel Z, metres)
and optionally ``mask/NAME.zip`` (a PNG file a frame, the number of an object a pixel) with
``mask/NAME.txt`` (a line ``number: phrase`` an object). Objects are dynamic; the object of the
phrase sky is the sky.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import io
from pathlib import Path
import zipfile

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np

from mirage_model.clip import Clip
from mirage_model.data.sources import Layout, Listing, Part, clip_of, cut


@dataclass(frozen=True, kw_only=True)
class Vipe:
    """Source of one video with its ViPE folder."""

    video: Path
    """Video in any format that OpenCV reads."""
    folder: Path
    """Folder of ViPE's results, at the size of the video."""
    layout: Layout

    def listing(self) -> Listing:
        name = self.video.stem
        with _opened(self.video) as video:
            rate = video.get(cv2.CAP_PROP_FPS)
        if not rate > 0:
            raise ValueError(f'{self.video}: it names no frame rate')
        frames = [set(_archive(self._path('depth', '.zip')))]
        frames += [set(_read(self._path(kind, '.npz'))) for kind in ('pose', 'intrinsics')]
        rows = sorted(set.intersection(*frames))
        listing = cut(name, name, np.array(rows) / rate, self.layout, rows)
        unposed = len(set.union(*frames)) - len(rows)
        if unposed:
            reason = f'{unposed} frames lack pose, intrinsics or depth'
            listing.left_out.append((f'{name} (frames)', name, reason))
        return listing

    def load(self, part: Part) -> Clip:
        rows = list(part.rows)
        with _opened(self.video) as video:
            rate = video.get(cv2.CAP_PROP_FPS)
            images = list(_frames(video, self.video, rows))
        K = np.tile(np.eye(3), (len(rows), 1, 1))
        intrinsics = _read(self._path('intrinsics', '.npz'))
        for matrix, row in zip(K, rows):
            if intrinsics[row].shape != (4,):
                raise ValueError(
                    f'{self._path("intrinsics", ".npz")}: {intrinsics[row].size} numbers a frame, '
                    'a pinhole camera has 4; run ViPE with camera_type=pinhole'
                )
            matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2] = intrinsics[row]
            matrix[:2, 2] -= 0.5  # the centre of the first pixel is (0, 0)
        poses = _read(self._path('pose', '.npz'))
        depth = [_depth(self._path('depth', '.zip'), row) for row in rows]
        if depth[0].shape != images[0].shape[:2]:
            raise ValueError(
                f'{self.folder}: depth of {depth[0].shape} for frames of {images[0].shape[:2]}, '
                'the sizes must be equal'
            )
        masks = self._masks(rows, images[0].shape[:2])
        return clip_of(
            part,
            self.layout,
            images=images,
            K=K,
            world_from_camera=np.stack([poses[row] for row in rows]),
            times=np.array(rows) / rate,
            depth=depth,
            sky=None if masks is None else masks[0],
            moving=None if masks is None else masks[1],
            metric=True,
        )

    def _path(self, kind: str, suffix: str) -> Path:
        return self.folder / kind / f'{self.video.stem}{suffix}'

    def _masks(
        self, rows: list[int], size: tuple[int, ...]
    ) -> tuple[list[Bool[np.ndarray, 'h w']], list[Bool[np.ndarray, 'h w']]] | None:
        """Return masks of sky and of dynamic objects, or None if ViPE made none."""
        path = self._path('mask', '.zip')
        if not path.exists():
            return None
        phrases = self._path('mask', '.txt')
        lines = phrases.read_text().splitlines() if phrases.exists() else []
        named = [line.partition(':') for line in lines]
        sky_numbers = [int(number) for number, _, phrase in named if phrase.strip() == 'sky']
        names = _archive(path)
        sky, moving = [], []
        with zipfile.ZipFile(path) as archive:
            for row in rows:
                objects: np.ndarray | None = np.zeros(size, np.uint8)
                if row in names:
                    content = np.frombuffer(archive.read(names[row]), np.uint8)
                    objects = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
                if objects is None or objects.shape != size:
                    raise ValueError(f'{path}: {names[row]} is not a PNG of {size}')
                sky.append(np.isin(objects, sky_numbers))
                moving.append((objects > 0) & ~sky[-1])
        return sky, moving


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ValueError(f'{path}: cannot be read as a video')
        yield video
    finally:
        video.release()


def _frames(
    video: cv2.VideoCapture, path: Path, rows: list[int]
) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
    """Yield frames by number; all before them are decoded, since seeking is not exact."""
    at = 0
    for row in rows:
        while at < row and video.grab():
            at += 1
        found, image = video.read()
        at += 1
        if not found:
            raise ValueError(f'{path}: it ends before frame {row}')
        yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _archive(path: Path) -> dict[int, str]:
    """Return the names in a zip file by the number of the frame."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path}: cannot be read as a zip file: {error}') from None
    return {int(Path(name).stem): name for name in names if Path(name).stem.isdecimal()}


def _read(path: Path) -> dict[int, Float[np.ndarray, '...']]:
    """Return the data of an npz file by the number of the frame."""
    try:
        with np.load(path) as content:
            return dict(zip(content['inds'].tolist(), content['data']))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f'{path}: lacks inds and data of frames: {error}') from None


def _depth(path: Path, row: int) -> Float32[np.ndarray, 'h w']:
    """Return depth [m], NaN where ViPE has none."""
    import OpenEXR

    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read(_archive(path)[row]))
    try:
        file = OpenEXR.InputFile(content)
        window, channels = file.header()['dataWindow'], file.header()['channels']
        half = str(channels['Z'].type) == 'HALF'
        pixels = np.frombuffer(file.channels(['Z'])[0], np.float16 if half else np.float32)
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f'{path}: frame {row} is not an EXR file of depth: {error}') from None
    height, width = window.max.y - window.min.y + 1, window.max.x - window.min.x + 1
    depth = pixels.reshape(height, width).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))
