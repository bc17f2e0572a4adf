"""Encoded clips: one safetensors file, a shard, for every clip, and an index that names them all.

A folder belongs to one split. Each line of its ``index.jsonl`` is a clip: what its shard holds, or why it was
left out. Any chunk is found by its number, whatever was added or read before.
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
from mirage_model.clip import Clip
from mirage_model.io import fingerprint, written_whole
from mirage_model.labels import labels
from mirage_model.model.codec import Codec
from mirage_model.write_filter import write_mask

INDEX = 'index.jsonl'
PREPARED = 'prepared.json'
"""What the clips of a folder were prepared with."""


def encode_clip(clip: Clip, codec: Codec, *, chunk_frames: int) -> dict[str, Tensor]:
    """Tensors of one clip's file. A clip of 16 j + 1 frames gives j overlapping chunks of 17.

    ``video`` (chunks, c, k, h, w) float16, ``stills`` (s, c, h, w) float16, and for every still ``depth`` and
    ``valid`` (s, h, w), ``world_from_camera`` and ``times``, with the latent grid's ``K``.
    Raises ValueError if the clip is shorter than a chunk, or its intrinsics change.
    """
    stride, new = codec.temporal_stride, chunk_frames - 1
    chunks = (len(clip.frames) - 1) // new
    if chunks < 1:
        raise ValueError(f'{clip.name}: {len(clip.frames)} frames are fewer than {chunk_frames}')
    if (clip.cameras.K != clip.cameras.K[0]).any():
        raise ValueError(f'{clip.name}: the intrinsics change within the clip')
    device = codec.device
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    video = [frames[j * new : j * new + chunk_frames] for j in range(chunks)]
    at = slice(0, chunks * new + 1, stride)
    stills = torch.cat([codec.encode_images(f.to(device)).cpu() for f in frames[at].split(4)])
    height, width = stills.shape[-2:]
    depth, valid = write_mask(labels(clip, at), height=height, width=width)
    cameras = resized(clip.cameras[at], height, width)
    return {
        'video': torch.cat([codec.encode(one[None].to(device)).cpu() for one in video]).half(),
        'stills': stills.half(),
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
    """One clip's tensors and the cameras of its stills on the latent grid."""
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
    """A line of the index. ``left_out`` is empty, or the reason why there is no shard.

    ``valid`` is the share of the stills' cells that may be remembered, ``frames`` counts those encoded.
    """

    name: str
    scene: str
    text: str = ''
    chunks: int = 0
    frames: int = 0
    valid: float = 0.0
    left_out: str = ''


@dataclass(frozen=True)
class Index:
    """The shards of a folder, by name, and their chunks, numbered in that order."""

    folder: Path
    shards: tuple[Shard, ...]
    left_out: tuple[Shard, ...]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([shard.chunks for shard in self.shards])

    def __len__(self) -> int:
        """The number of chunks."""
        return int(self._ends[-1]) if self.shards else 0

    def path(self, shard: Shard) -> Path:
        return self.folder / f'{shard.name}.safetensors'

    def chunk(self, number: int) -> tuple[Path, int]:
        """Which file holds chunk ``number`` of all, and as its how manieth."""
        if not 0 <= number < len(self):
            raise IndexError(f'{self.folder} has {len(self)} chunks, not a number {number}')
        at = int(np.searchsorted(self._ends, number, side='right'))
        return self.path(self.shards[at]), number - int(self._ends[at] - self.shards[at].chunks)


def read_index(folder: Path) -> Index:
    """Raises ValueError where there is no index, a line is damaged, or a shard is missing."""
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f'{path} is missing: prepare the clips first')
    index = _index(folder, path.read_text().splitlines())
    for shard in index.shards:
        if not index.path(shard).is_file():
            raise ValueError(
                f'{index.path(shard)} is in the index but not there: prepare it again'
            )
    return index


def _index(folder: Path, lines: list[str]) -> Index:
    """Later lines of one name replace earlier ones."""
    found: dict[str, Shard] = {}
    for number, line in enumerate(lines, start=1):
        try:
            shard = Shard(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f'{folder / INDEX}:{number}: damaged: {error}') from None
        found[shard.name] = shard
    ordered = [found[name] for name in sorted(found)]
    return Index(
        folder,
        tuple(shard for shard in ordered if not shard.left_out),
        tuple(shard for shard in ordered if shard.left_out),
    )


class Journal:
    """The index while it is written, a line as soon as a clip is done, so that an interrupted run goes on."""

    def __init__(self, folder: Path):
        """Drops a last line that was cut short. Raises ValueError for other damage."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / INDEX
        content = path.read_bytes() if path.exists() else b''
        whole = content.rfind(b'\n') + 1
        self._index = _index(folder, content[:whole].decode().splitlines())
        self._file = path.open('ab')
        self._file.truncate(whole)

    def done(self, clips: Path | None = None) -> set[str]:
        """Names of clips whose shard is there, their clip too where ``clips`` keeps them, or that were left out."""
        folders = [self._index.folder, *([] if clips is None else [clips])]
        shards = [
            shard
            for shard in self._index.shards
            if all((folder / f'{shard.name}.safetensors').is_file() for folder in folders)
        ]
        return {shard.name for shard in (*shards, *self._index.left_out)}

    def add(self, shard: Shard) -> None:
        """After the shard's file is in place."""
        self._file.write(json.dumps(asdict(shard)).encode() + b'\n')
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def describe_latents(latents: Path, codec: Path) -> dict[str, str]:
    """Return the digests that training samples depend on: of the index files and of the codec.

    Raises:
        ValueError: The clips were not prepared, or were encoded by another codec.
    """
    found, prepared = fingerprint(codec), latents / PREPARED
    indices = [latents / split / INDEX for split in ('train', 'validation')]
    for path in (prepared, *indices):
        if not path.is_file():
            raise ValueError(f'{path} is missing: prepare the clips first')
    if json.loads(prepared.read_text())['codec'] != found:
        raise ValueError(
            f'{latents}: encoded by another codec than {codec}, prepare the clips with this one'
        )
    digest = hashlib.sha256(b''.join(path.read_bytes() for path in indices))
    return {'latents': digest.hexdigest(), 'codec': found}
