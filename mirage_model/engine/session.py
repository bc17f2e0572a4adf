"""A memory with the observation that its paths start from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, resized
from mirage_model.engine.inputs import cameras_along, checked
from mirage_model.interface import (
    DepthSource,
    GenerationRequest,
    InvalidRequest,
)
from mirage_model.memory import Memory
from mirage_model.memory.eviction import MemoryLimits
from mirage_model.memory.latent import LatentMemory
from mirage_model.model.checkpoint import Model
from mirage_model.model.rollout import RolloutInput
from mirage_model.model.text import TextCondition

SCALES = {'full': 1.0, 'half': 0.5}
"""Scale of the frames relative to the model's, by name of the resolution."""

_SOURCES = get_args(DepthSource)


@dataclass(frozen=True, kw_only=True)
class Session:
    """A memory and the start of its paths, at the size of the frames to generate."""

    memory: Memory
    frame: Float[Tensor, '1 3 H W']
    """The last observation, in 0..1."""
    depth: Float[Tensor, '1 H W']
    """Depth of ``frame`` [m]; infinite in the sky, NaN where it is unknown."""
    camera: Cameras
    """The camera of ``frame``."""
    depth_source: DepthSource
    """Source of the memory's depth."""

    def to(self, device: torch.device) -> Session:
        return replace(
            self,
            frame=self.frame.to(device),
            depth=self.depth.to(device),
            camera=self.camera.to(device),
        )

    def rollout_input(self, memory: Memory, cameras: Cameras, seed: int) -> RolloutInput:
        """Return the input of a rollout from this session that reads and writes ``memory``."""
        return RolloutInput(
            memory=memory,
            frame=self.frame,
            depth=self.depth,
            camera=self.camera,
            cameras=cameras,
            generator=torch.Generator().manual_seed(seed),
        )

    def save(self, path: Path) -> None:
        """Write a session with a latent memory to a safetensors file, whole or not at all."""
        assert isinstance(self.memory, LatentMemory)
        self.memory.save(
            path,
            attached={
                'frame': (self.frame * 255).round().byte().cpu(),
                'frame_depth': self.depth.cpu(),
                'K': self.camera.K.cpu(),
                'world_from_camera': self.camera.world_from_camera.cpu(),
                'times': self.camera.times.cpu(),
                'depth_source': torch.tensor(_SOURCES.index(self.depth_source)),
            },
        )


def load_session(path: Path, model: Model, limits: MemoryLimits) -> Session:
    """Read a file of `Session.save` into a memory with ``limits``.

    Raises:
        InvalidRequest: The file is missing, damaged or of another model.
    """
    config = model.config
    if config.memory != 'latent':
        raise InvalidRequest(
            f'{path}: {config.name} uses a {config.memory!r} memory, only a latent one can be '
            'loaded'
        )
    try:
        memory, start = LatentMemory.load_attached(path, limits)
        camera = Cameras(
            K=start['K'],
            world_from_camera=start['world_from_camera'],
            times=start['times'],
            height=config.height,
            width=config.width,
        )
        frame, source = start['frame'], _SOURCES[int(start['depth_source'])]
        unknown = torch.full((1, config.height, config.width), torch.nan)
        depth = start.get('frame_depth', unknown)
    except KeyError as error:
        raise InvalidRequest(f'{path}: not a saved memory, {error} is missing') from None
    except (ValueError, IndexError) as error:
        raise InvalidRequest(str(error)) from None
    if memory.config.channels != model.codec.channels:
        raise InvalidRequest(
            f'{path}: its latents have {memory.config.channels} channels, '
            f'{config.name} needs {model.codec.channels}'
        )
    if frame.dtype != torch.uint8 or frame.shape != (1, 3, config.height, config.width):
        raise InvalidRequest(
            f'{path}: its frame is {frame.dtype} {tuple(frame.shape)}, '
            f'{config.name} needs torch.uint8 {(1, 3, config.height, config.width)}'
        )
    if depth.dtype != torch.float32 or depth.shape != (1, config.height, config.width):
        raise InvalidRequest(
            f'{path}: its frame_depth is {depth.dtype} {tuple(depth.shape)}, '
            f'{config.name} needs torch.float32 {(1, config.height, config.width)}'
        )
    camera = checked(camera)
    return Session(
        memory=memory,
        frame=frame.to(model.device).float() / 255,
        depth=depth.to(model.device),
        camera=camera.to(model.device),
        depth_source=source,
    )


def at_resolution(session: Session, model: Model, resolution: str) -> Session:
    """Return the session with its frame and camera at a resolution of `SCALES`.

    Raises:
        InvalidRequest: The resolution is unknown, or half the frame does not fit codec and
        backbone.
    """
    if resolution not in SCALES:
        raise InvalidRequest(
            f'resolution: {resolution!r} is unknown, allowed are {sorted(SCALES)}'
        )
    if resolution == 'full':
        return session
    config = model.config
    size = []
    for name, step in zip(('height', 'width'), model.size_step, strict=True):
        size.append(round(getattr(config, name) * SCALES[resolution]))
        if getattr(config, name) * SCALES[resolution] % step:
            raise InvalidRequest(
                f'resolution: {config.name} has no half resolution, its {name} '
                f'{getattr(config, name)} is not a multiple of {2 * step}'
            )
    height, width = size
    frame = F.interpolate(session.frame, (height, width), mode='area')
    depth = F.interpolate(session.depth[None], (height, width), mode='nearest-exact')[0]
    camera = resized(session.camera, height, width)
    return replace(session, frame=frame, depth=depth, camera=camera)


def target_cameras(
    session: Session,
    model: Model,
    world_from_camera: np.ndarray,
    times: np.ndarray,
    K: np.ndarray | None,
) -> Cameras:
    """Return the cameras of a path on the model's device.

    Args:
        K: Intrinsics at the model's size; None takes those of the session.

    Raises:
        InvalidRequest: The path is malformed or does not fill whole chunks, or K is not one of a
            pinhole.
    """
    like = session.camera
    if K is not None:
        if np.shape(K) != (3, 3):
            raise InvalidRequest(f'K: shape {np.shape(K)} is not allowed, (3, 3) is needed')
        full = replace(
            like,
            K=torch.from_numpy(np.asarray(K, np.float32))[None],
            height=model.config.height,
            width=model.config.width,
        )
        like = resized(full, like.height, like.width)
    cameras = cameras_along(like, world_from_camera, times)
    if len(cameras) % model.new_frames:
        raise InvalidRequest(
            f'world_from_camera: {len(cameras)} poses do not fill whole chunks, '
            f'the count must be a multiple of {model.new_frames}'
        )
    return cameras.to(model.device)


def denoising_steps(steps: int | None, model: Model) -> int:
    """Return the steps of a request, or the model's default for None.

    Raises:
        InvalidRequest: The number is not in 1..1000.
    """
    if steps is None:
        return model.config.steps
    if not 1 <= steps <= 1000:
        raise InvalidRequest(f'steps: {steps} is not allowed, the range is 1 to 1000')
    return steps


def text_condition(request: GenerationRequest, model: Model) -> TextCondition:
    """Return the text of a request.

    Raises:
        InvalidRequest: The model takes no text, a prompt cannot be embedded, or the guidance is
            not allowed.
    """
    if not 1 <= request.guidance <= 100:
        raise InvalidRequest(f'guidance: {request.guidance} is not allowed, the range is 1 to 100')
    if request.negative_prompt and request.guidance == 1:
        raise InvalidRequest(
            'negative_prompt: it has no effect at guidance 1, set guidance above 1'
        )
    prompts = model.prompts
    if prompts is None:
        if request.prompt or request.guidance != 1:
            raise InvalidRequest(
                f'prompt: {model.config.name} takes no text, leave prompt empty and guidance at 1'
            )
        return TextCondition(text=model.text)
    try:
        text = prompts.embed(request.prompt) if request.prompt else model.text
        if request.guidance == 1:
            return TextCondition(text=text)
        negative = prompts.embed(request.negative_prompt)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return TextCondition(text=text, negative=negative, guidance=request.guidance)
