"""Encoded clips of one split: a safetensors file (shard) per clip, and an index of all.

Each line of ``index.jsonl`` is a clip: the content of its shard, or the reason why it was left
out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
import hashlib
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from mirage_model.camera import Cameras, resized
from mirage_model.clip import Clip, labels
from mirage_model.io import fingerprint, written_whole
from mirage_model.model.codec import Codec
from mirage_model.write_filter import write_mask

INDEX = 'index.jsonl'
PREPARED = 'prepared.json'
"""Description of the preparation, in the folder above the splits."""


def encode_clip(clip: Clip, codec: Codec, *, chunk_frames: int) -> dict[str, Tensor]:
    """Return the tensors of a clip's shard. Chunks of 17 frames overlap by one frame.

    Returns:
        ``video``: latents of the chunks, (chunks, c, k, h, w) float16.
        ``stills``: single-frame latents, one per latent frame, (s, c, h, w) float16.
        ``depth``, ``valid``: depth [m] and write mask of these frames, (s, h, w).
        ``world_from_camera``, ``times``: their cameras, with ``K`` of the latent grid.

    Raises:
        ValueError: The clip is shorter than a chunk, or its intrinsics change.
    """
    stride, new = codec.temporal_stride, chunk_frames - 1
    chunks = (len(clip.frames) - 1) // new
    if chunks < 1:
        raise ValueError(f'{clip.name}: {len(clip.frames)} frames, a chunk needs {chunk_frames}')
    if (clip.cameras.K != clip.cameras.K[0]).any():
        raise ValueError(f'{clip.name}: the intrinsics change, they must be constant')
    device = codec.device
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    video = [frames[j * new : j * new + chunk_frames] for j in range(chunks)]
    at = slice(0, chunks * new + 1, stride)
    singles = torch.cat([codec.encode_images(f.to(device)).cpu() for f in frames[at].split(4)])
    height, width = singles.shape[-2:]
    depth, valid = write_mask(labels(clip, at), height=height, width=width)
    cameras = resized(clip.cameras[at], height, width)
    return {
        'video': torch.cat([codec.encode(chunk[None].to(device)).cpu() for chunk in video]).half(),
        'stills': singles.half(),
        'depth': depth,
        'valid': valid,
        'K': cameras.K[0].clone(),
        'world_from_camera': cameras.world_from_camera.clone(),
        'times': cameras.times.clone(),
    }


def save_latents(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a shard; the file is whole or absent."""
    with written_whole(path) as part:
        save_file({name: value.contiguous() for name, value in tensors.items()}, part)


def load_latents(path: Path) -> tuple[dict[str, Tensor], Cameras]:
    """Return the tensors of a shard, and the cameras of its single-frame latents on the latent
    grid."""
    tensors = load_file(path)
    height, width = tensors['stills'].shape[-2:]
    cameras = Cameras(
        K=tensors['K'].expand(len(tensors['times']), 3, 3),
        world_from_camera=tensors['world_from_camera'],
        times=tensors['times'],
        height=height,
        width=width,
    )
    return tensors, cameras


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Line of the index."""

    name: str
    scene: str
    text: str = ''
    chunks: int = 0
    frames: int = 0
    """Number of encoded frames."""
    valid: float = 0.0
    """Share of latent cells that may enter a memory."""
    left_out: str = ''
    """Reason why there is no shard; empty if there is one."""


@dataclass(frozen=True)
class Index:
    """Shards of a folder by name; chunks are numbered in that order."""

    folder: Path
    shards: tuple[Shard, ...]
    left_out: tuple[Shard, ...]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.chunks for shard in self.shards])

    def __len__(self) -> int:
        """Return the number of chunks."""
        return int(self._ends[-1]) if self.shards else 0

    def path(self, shard: Shard) -> Path:
        return self.folder / f'{shard.name}.safetensors'

    def chunk(self, number: int) -> tuple[Path, int]:
        """Return the shard's path and the chunk's index within that shard."""
        if not 0 <= number < len(self):
            raise IndexError(
                f'{self.folder}: chunk {number} does not exist, there are {len(self)}'
            )
        at = int(np.searchsorted(self._ends, number, side='right'))
        return self.path(self.shards[at]), number - int(self._ends[at] - self.shards[at].chunks)


def read_index(folder: Path) -> Index:
    """Read the index of a folder.

    Raises:
        ValueError: There is no index, a line is damaged, or a shard is missing.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f'{path}: missing, prepare the clips first')
    index = _index(folder, path.read_text().splitlines())
    for shard in index.shards:
        if not index.path(shard).is_file():
            raise ValueError(
                f'{index.path(shard)}: missing, though it is in the index: prepare it again'
            )
    return index


def _index(folder: Path, lines: list[str]) -> Index:
    """Return the index of lines; a later line replaces earlier ones of its name."""
    named: dict[str, Shard] = {}
    for number, line in enumerate(lines, start=1):
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f'{folder / INDEX}:{number}: damaged: {error}') from None
        named[shard.name] = shard
    ordered = [named[name] for name in sorted(named)]
    return Index(
        folder,
        tuple(shard for shard in ordered if not shard.left_out),
        tuple(shard for shard in ordered if shard.left_out),
    )


class IndexWriter:
    """Append lines to an index as clips are prepared, so that an interrupted preparation
    continues."""

    def __init__(self, folder: Path):
        """Open the index, and drop an incomplete last line. Raises ValueError for other damage."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / INDEX
        content = path.read_bytes() if path.exists() else b''
        whole = content.rfind(b'\n') + 1
        self._index = _index(folder, content[:whole].decode().splitlines())
        self._file = path.open('ab')
        self._file.truncate(whole)

    def done(self, clips: Path | None = None) -> set[str]:
        """Return the names of clips that were left out, or whose files exist: shards, and clips in
        ``clips``."""
        folders = [self._index.folder, *([] if clips is None else [clips])]
        shards = [
            shard
            for shard in self._index.shards
            if all((folder / f'{shard.name}.safetensors').is_file() for folder in folders)
        ]
        return {shard.name for shard in (*shards, *self._index.left_out)}

    def add(self, shard: Shard) -> None:
        """Append a line; the shard's file must exist."""
        self._file.write(json.dumps(asdict(shard)).encode() + b'\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def describe_latents(latents: Path, codec: Path) -> dict[str, str]:
    """Return the digests that training samples depend on: of the index files and of the codec.

    Raises:
        ValueError: The clips were not prepared, or were encoded by another codec.
    """
    codec_digest, prepared = fingerprint(codec), latents / PREPARED
    indices = [latents / split / INDEX for split in ('train', 'validation')]
    for path in (prepared, *indices):
        if not path.is_file():
            raise ValueError(f'{path}: missing, prepare the clips first')
    if json.loads(prepared.read_text())['codec'] != codec_digest:
        raise ValueError(
            f'{latents}: encoded by another codec than {codec}, prepare the clips with this one'
        )
    digest = hashlib.sha256(b''.join(path.read_bytes() for path in indices))
    return {'latents': digest.hexdigest(), 'codec': codec_digest}
