"""RealEstate10K in its published text format, with frames as image files.

A sequence is a text file. Its first line is the URL of the video. Each other line is a frame: a
stamp in microseconds, fx fy cx cy as shares of the image's width and height, two zeros, and the
3x4 matrix camera_from_world row by row, for a camera that looks along +z with y down. The unit of
length is arbitrary and differs between sequences.

Frames lie in ``FRAMES/SEQUENCE/STAMP.png`` or ``.jpg``, as the usual downloaders write them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from jaxtyping import Float, Int
import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras
from mirage_model.clip import Clip
from mirage_model.data.sources import Layout, Listing, Part, clip_of, cut, read_image

_COLUMNS = 19
_SUFFIXES = ('.png', '.jpg', '.jpeg')


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Cameras of one text file."""

    scene: str
    """Identifier of the video; several sequences can come from one video."""
    stamps: Int[np.ndarray, 'n']
    """Times of the frames [us], increasing."""
    intrinsics: Float[np.ndarray, 'n 4']
    """fx fy cx cy, as shares of the image's width and height."""
    camera_from_world: Float[np.ndarray, 'n 3 4']
    """World to camera, in the sequence's unit of length."""

    def cameras(self, rows: list[int], height: int, width: int) -> Cameras:
        """Return the cameras of some rows for frames of a size [px].

        The shares cx and cy count from the image's corner, half a pixel before pixel (0, 0).
        """
        fx, fy, cx, cy = self.intrinsics[rows].T * [[width], [height], [width], [height]]
        K = np.tile(np.eye(3), (len(rows), 1, 1))
        K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = fx, fy, cx - 0.5, cy - 0.5
        camera_from_world = np.tile(np.eye(4), (len(rows), 1, 1))
        camera_from_world[:, :3] = self.camera_from_world[rows]
        return Cameras(
            K=torch.from_numpy(K).float(),
            world_from_camera=torch.from_numpy(np.linalg.inv(camera_from_world)).float(),
            times=torch.from_numpy(self.stamps[rows] * 1e-6),
            height=height,
            width=width,
        )


def read_sequence(path: Path) -> Sequence:
    """Read the cameras of a text file.

    Raises:
        ValueError: If the file does not have the format; the message names the file and the line.
    """
    lines = path.read_text(errors='replace').splitlines()
    if len(lines) < 2:
        raise ValueError(f'{path}: no frames, a URL and at least one frame are needed')
    if '://' not in lines[0]:
        raise ValueError(f'{path}:1: {lines[0][:60]!r} is not a URL, that of the video is needed')
    address = urlparse(lines[0].strip())
    scene = parse_qs(address.query).get('v', [address.path.rsplit('/', 1)[-1]])[0]
    rows: list[list[float]] = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != _COLUMNS:
            raise ValueError(f'{path}:{number}: {len(fields)} columns, {_COLUMNS} are needed')
        try:
            values = [int(fields[0]), *map(float, fields[1:])]
        except ValueError:
            raise ValueError(f'{path}:{number}: not all numbers: {line[:60]!r}') from None
        fx, fy = values[1:3]
        if not np.isfinite(values).all() or fx <= 0 or fy <= 0:
            raise ValueError(f'{path}:{number}: fx and fy must be positive and all values finite')
        if any(values[5:7]):
            raise ValueError(f'{path}:{number}: distortion is {values[5:7]}, must be zero')
        if rows and values[0] <= rows[-1][0]:
            raise ValueError(f'{path}:{number}: stamp is {values[0]}, must be after {rows[-1][0]}')
        rows.append(values)
    if not rows:
        raise ValueError(f'{path}: no frames, a URL and at least one frame are needed')
    table = np.array(rows, dtype=np.float64)
    sequence = Sequence(
        scene=scene,
        stamps=np.array([row[0] for row in rows], dtype=np.int64),
        intrinsics=table[:, 1:5],
        camera_from_world=table[:, 7:].reshape(-1, 3, 4),
    )
    try:
        check_cameras(sequence.cameras(list(range(len(rows))), 1, 1))
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    return sequence


@dataclass(frozen=True, kw_only=True)
class RealEstate10K:
    """Source of the clips of RealEstate10K."""

    text: Path
    """Folder of text files."""
    frames: Path
    """Folder with a folder of frames for each text file."""
    layout: Layout

    def listing(self) -> Listing:
        files = sorted(self.text.glob('*.txt'))
        if not files:
            raise ValueError(f'{self.text}: no text files (.txt) in this folder')
        if not self.frames.is_dir():
            raise ValueError(f'{self.frames}: the folder of frames is missing')
        parts, left_out = [], []
        for path in files:
            try:
                sequence = read_sequence(path)
            except ValueError as error:
                left_out.append((path.stem, '', str(error)))
                continue
            existing = self._frames(path.stem)
            rows = [i for i, stamp in enumerate(sequence.stamps.tolist()) if stamp in existing]
            missing = len(sequence.stamps) - len(rows)
            if missing:
                folder = self.frames / path.stem
                reason = f'{missing} of {len(sequence.stamps)} frames are not in {folder}'
                left_out.append((f'{path.stem} (frames)', sequence.scene, reason))
            times = sequence.stamps[rows] * 1e-6
            listing = cut(path.stem, sequence.scene, times, self.layout, rows)
            parts += listing.parts
            left_out += listing.left_out
        return Listing(parts=parts, left_out=left_out)

    def load(self, part: Part) -> Clip:
        sequence = read_sequence(self.text / f'{part.sequence}.txt')
        paths, rows = self._frames(part.sequence), list(part.rows)
        frames = [read_image(paths[int(sequence.stamps[row])]) for row in rows]
        cameras = sequence.cameras(rows, *frames[0].shape[:2])
        return clip_of(
            part,
            self.layout,
            images=frames,
            K=cameras.K.numpy(),
            world_from_camera=cameras.world_from_camera.numpy(),
            times=cameras.times.numpy(),
            metric=False,
        )

    def _frames(self, sequence: str) -> dict[int, Path]:
        """Return the paths of the existing frames of a sequence by stamp [us]."""
        folder = self.frames / sequence
        if not folder.is_dir():
            return {}
        return {
            int(path.stem): path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in _SUFFIXES and path.stem.isdecimal()
        }
