"""Where imagination starts: a memory and the view that was written to it last; scaled, saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras, resized
from mirage_model.engine.inputs import checked
from mirage_model.interface import DepthSource, InvalidRequest
from mirage_model.memory import Memory
from mirage_model.memory.eviction import Limits
from mirage_model.memory.latent import LatentMemory
from mirage_model.model.checkpoint import Model
from mirage_model.model.rollout import RolloutInput

SCALES = {'full': 1.0, 'half': 0.5}
"""Of the model's height and width, by resolution."""

_SOURCES = get_args(DepthSource)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A memory and the view that imagination starts from, at the size of the frames to imagine."""

    memory: Memory
    frame: torch.Tensor
    camera: Cameras
    depth_source: DepthSource

    def to(self, device: torch.device) -> Session:
        return replace(self, frame=self.frame.to(device), camera=self.camera.to(device))

    def save(self, path: Path) -> None:
        """Write the memory, a latent one, and the view as one safetensors file, whole or not at all."""
        assert isinstance(self.memory, LatentMemory)
        self.memory.save(
            path,
            attached={
                'frame': (self.frame * 255).round().byte().cpu(),
                'K': self.camera.K.cpu(),
                'world_from_camera': self.camera.world_from_camera.cpu(),
                'times': self.camera.times.cpu(),
                'depth_source': torch.tensor(_SOURCES.index(self.depth_source)),
            },
        )


def load_session(path: Path, model: Model, limits: Limits) -> Session:
    """What `Session.save` wrote, within ``limits``. Raises InvalidRequest for a file that is damaged or of another model."""
    config = model.config
    if config.memory != 'latent':
        raise InvalidRequest(
            f'{path}: the model {config.name} has {config.memory!r} for its memory'
        )
    try:
        loaded, view = LatentMemory.load_attached(path, limits)
        camera = Cameras(
            K=view['K'],
            world_from_camera=view['world_from_camera'],
            times=view['times'],
            height=config.height,
            width=config.width,
        )
        frame, source = view['frame'], _SOURCES[int(view['depth_source'])]
    except KeyError as error:
        raise InvalidRequest(f'{path}: holds no view to start from, {error} is missing') from None
    except (ValueError, IndexError) as error:
        raise InvalidRequest(str(error)) from None
    if loaded.config.channels != model.codec.channels:
        raise InvalidRequest(
            f'{path}: its cells have {loaded.config.channels} channels, '
            f'the model {config.name} has {model.codec.channels}'
        )
    if frame.dtype != torch.uint8 or frame.shape != (1, 3, config.height, config.width):
        raise InvalidRequest(
            f'{path}: its view is {tuple(frame.shape)}, not of the model {config.name}'
        )
    camera = checked(camera)
    return Session(
        memory=loaded,
        frame=frame.to(model.device).float() / 255,
        camera=camera.to(model.device),
        depth_source=source,
    )


def scaled(place: Session, model: Model, resolution: str) -> Session:
    """The place with its view at the resolution that is to be imagined at."""
    if resolution not in SCALES:
        raise InvalidRequest(f'resolution must be one of {sorted(SCALES)}, got {resolution!r}')
    if resolution == 'full':
        return place
    config, patch = model.config, model.backbone.wan.config.patch_size
    size = []
    for name, step in (('height', patch[1]), ('width', patch[2])):
        step *= model.codec.spatial_stride
        size.append(round(getattr(config, name) * SCALES[resolution]))
        if getattr(config, name) * SCALES[resolution] % step:
            raise InvalidRequest(
                f'{config.name} cannot imagine at half its size: {name} '
                f'{getattr(config, name)} is no multiple of {2 * step}'
            )
    frame = F.interpolate(place.frame, tuple(size), mode='area')
    return replace(place, frame=frame, camera=resized(place.camera, *size))


def branch(place: Session, memory: Memory, cameras: Cameras, seed: int) -> RolloutInput:
    return RolloutInput(
        memory=memory,
        frame=place.frame,
        camera=place.camera,
        cameras=cameras,
        generator=torch.Generator().manual_seed(seed),
    )
