"""Make clips of a wall and their latents by a small random codec, as training reads them."""

from __future__ import annotations

from pathlib import Path

from models import small_backbone, small_vae
import torch

from mirage_model.camera import Cameras
from mirage_model.clip import Clip, save_clip
from mirage_model.data.latents import IndexWriter, Shard, encode_clip, save_latents
from mirage_model.model.codec import Codec
from mirage_model.training.config import WorldModelConfig
from mirage_model.training.stages import WorldModel
from mirage_model.training.world_model import WorldModelObjective


def clip_of(name: str, seed: int, frames: int = 33, *, height: int = 32, width: int = 48) -> Clip:
    """Return a clip of noise on a wall 3 m away, with the camera moving sideways."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(
        0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator
    )
    world_from_camera = torch.eye(4).repeat(frames, 1, 1)
    world_from_camera[:, 0, 3] = 0.2 * torch.arange(frames)
    focal, x, y = width / 2, (width - 1) / 2, (height - 1) / 2
    K = torch.tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]])
    cameras = Cameras(
        K=K.expand(frames, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(frames, dtype=torch.float64) / 8,
        height=height,
        width=width,
    )
    nothing = torch.zeros(frames, height, width, dtype=torch.bool)
    depth = torch.full((frames, height, width), 3.0)
    return Clip(
        name=name, frames=pictures, cameras=cameras, depth=depth, sky=nothing, moving=nothing
    )


def save_data(
    root: Path,
    clips: dict[str, list[Clip]],
    *,
    codec: Codec | None = None,
    chunk_frames: int = 17,
) -> Path:
    """``root``/clips and ``root``/latents, each with the splits that are the keys."""
    codec = codec or Codec(small_vae())
    for split, of_split in clips.items():
        for kind in ('clips', 'latents'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        writer = IndexWriter(root / 'latents' / split)
        for clip in of_split:
            save_clip(root / 'clips' / split / f'{clip.name}.safetensors', clip)
            tensors = encode_clip(clip, codec, chunk_frames=chunk_frames)
            save_latents(root / 'latents' / split / f'{clip.name}.safetensors', tensors)
            writer.add(Shard(name=clip.name, scene='wall', chunks=len(tensors['video'])))
        writer.close()
    return root


def small_objective(root: Path, config: WorldModelConfig) -> WorldModelObjective:
    torch.manual_seed(0)
    model = WorldModel(small_backbone(side_input=config.side_input), torch.randn(1, 8))
    model.backbone.gradient_checkpointing = config.gradient_checkpointing
    model.backbone.side_branch.gradient_checkpointing = config.gradient_checkpointing
    return WorldModelObjective(model, config, root / 'latents', root / 'clips', Codec(small_vae()))
