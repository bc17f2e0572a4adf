"""Encode clips once: ``python -m mirage_model.data.latents --clips DIR --codec DIR --out DIR``.

One safetensors file for every clip, so that a training step reads just what it needs. Files that exist are
skipped. A clip of 16 j + 1 frames gives j overlapping chunks of 17 and a still at every fourth frame.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache
import json
import multiprocessing
import os
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_model.camera import Cameras, resized
from mirage_model.codec import Codec
from mirage_model.data.clip import Clip, load_clip
from mirage_model.perception import Estimate
from mirage_model.remember import keep_mask


def encode_clip(clip: Clip, codec: Codec, *, chunk_frames: int) -> dict[str, Tensor]:
    """Tensors of one clip's file.

    ``video`` (chunks, c, k, h, w) float16, ``stills`` (s, c, h, w) float16, and for every still ``depth`` and
    ``keep`` (s, h, w), ``world_from_camera`` and ``times``, with the latent grid's ``K``.
    Raises ValueError if the clip is shorter than a chunk.
    """
    stride, new = codec.temporal_stride, chunk_frames - 1
    chunks = (len(clip.frames) - 1) // new
    if chunks < 1:
        raise ValueError(f'{clip.name}: {len(clip.frames)} frames are fewer than {chunk_frames}')
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    video = torch.stack([frames[j * new : j * new + chunk_frames] for j in range(chunks)])
    at = slice(0, chunks * new + 1, stride)
    stills = codec.encode_stills(frames[at])
    height, width = stills.shape[-2:]
    known = Estimate(
        depth=clip.depth[at],
        cameras=clip.cameras[at],
        confidence=(~clip.depth[at].isnan()).float(),
        sky=clip.sky[at],
        moving=clip.moving[at],
        scaled=torch.ones(len(stills), dtype=torch.bool),
    )
    depth, keep = keep_mask(known, height=height, width=width)
    cameras = resized(clip.cameras[at], height, width)
    return {
        'video': torch.cat([codec.encode(one[None]) for one in video]).half(),
        'stills': stills.half(),
        'depth': depth,
        'keep': keep,
        'K': cameras.K[0].clone(),
        'world_from_camera': cameras.world_from_camera.clone(),
        'times': cameras.times.clone(),
    }


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


@cache
def _codec(folder: Path) -> Codec:
    torch.set_num_threads(1)
    return Codec.from_folder(folder)


def _encode_file(path: Path, target: Path, codec_folder: Path, chunk_frames: int) -> str | None:
    """Encode one file unless it is there; a reason where it is left out."""
    if target.exists():
        return None
    with safe_open(path, framework='pt') as file:
        count = file.get_slice('frames').get_shape()[0]
    if count < chunk_frames:
        return f'{path.stem}: {count} frames are fewer than a chunk'
    tensors = encode_clip(load_clip(path), _codec(codec_folder), chunk_frames=chunk_frames)
    aside = target.with_suffix('.part')
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside)
    os.replace(aside, target)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--clips', required=True, type=Path, help='folder of one split')
    parser.add_argument('--codec', required=True, type=Path)
    parser.add_argument('--out', required=True, type=Path)
    parser.add_argument('--chunk-frames', type=int, default=17)
    parser.add_argument('--workers', type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    left_out = []
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        jobs = [
            pool.submit(
                _encode_file,
                path,
                arguments.out / path.name,
                arguments.codec,
                arguments.chunk_frames,
            )
            for path in sorted(arguments.clips.glob('*.safetensors'))
        ]
        for job in tqdm(jobs, unit='clip'):
            if job.result() is not None:
                left_out.append(job.result())
    (arguments.out / 'left_out.json').write_text(json.dumps(left_out, indent=1))
    print(f'{len(list(arguments.out.glob("*.safetensors")))} clips, {len(left_out)} left out')


if __name__ == '__main__':
    main()
