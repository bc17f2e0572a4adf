"""The engine: memories and a model behind the verbs of `EngineProtocol`, in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
import time
from typing import get_args

import cv2
import numpy as np
import torch

from mirage_model.camera import Cameras, check_cameras, resized
from mirage_model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.interface import (
    IMAGINED,
    NOTHING,
    OBSERVED,
    Chunk,
    DepthSource,
    Description,
    Imagine,
    Refused,
    Score,
    View,
)
from mirage_model.memory import Memory, Readout
from mirage_model.memory.create import create_memory
from mirage_model.memory.file import attached
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.perception import Estimate
from mirage_model.remember import keep_mask, mean_in_cell, pixels_of
from mirage_model.rollout import ImaginedChunk, rollout

_SOURCES = get_args(DepthSource)


@dataclass(kw_only=True)
class _Place:
    """A memory and the view that imagination starts from, at the model's frame size."""

    memory: Memory
    frame: torch.Tensor
    camera: Cameras
    depth_source: DepthSource


class Engine:
    """`EngineProtocol` in the caller's own process and thread. Not thread-safe: one worker drives it."""

    def __init__(
        self, model: Model, *, allow_unscaled_depth: bool = False, refine_cameras: bool = False
    ):
        """``allow_unscaled_depth``: accept views whose metres are only the network's guess.

        ``refine_cameras``: as `rollout` says.
        """
        self.model = model
        self._refine_cameras = refine_cameras
        self._allow_unscaled_depth = allow_unscaled_depth
        self._places: dict[str, _Place] = {}

    @classmethod
    def from_folder(
        cls,
        folder: Path | None = None,
        *,
        device: str = 'cpu',
        allow_unscaled_depth: bool = False,
        refine_cameras: bool = False,
    ) -> Engine:
        """Load a model folder, None being the embedded mirage-tiny. Raises ValueError naming what is wrong."""
        dtype = torch.bfloat16 if device.startswith('cuda') else torch.float32
        model = load_model(EMBEDDED if folder is None else folder, device=device, dtype=dtype)
        return cls(model, allow_unscaled_depth=allow_unscaled_depth, refine_cameras=refine_cameras)

    def describe(self) -> Description:
        config = self.model.config
        return Description(
            model=config.name,
            sha256=self.model.sha256,
            height=config.height,
            width=config.width,
            frame_rate=config.frame_rate,
            new_frames_per_chunk=self.model.new_frames,
            steps=config.steps,
        )

    def seed(self, view: View, *, memory: str = 'default') -> DepthSource:
        """As `EngineProtocol.seed`. A refused view leaves the memory of that name as it was."""
        config = MemoryConfig(
            channels=self.model.codec.channels, footprint=self.model.config.footprint
        )
        place = self._write(
            view, create_memory(self.model.config.memory, config, self.model.codec)
        )
        self._places[memory] = place
        return place.depth_source

    def observe(self, view: View, *, memory: str = 'default') -> DepthSource:
        place = self._write(view, self._place(memory).memory)
        self._places[memory] = place
        return place.depth_source

    def imagine(
        self, request: Imagine, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        place = self._place(request.memory)
        cameras = self._cameras(place.camera, request.world_from_camera, request.times)
        count, rest = divmod(len(cameras), self.model.new_frames)
        if rest:
            raise Refused(
                f'{len(cameras)} poses do not fit: the count must be a multiple of {self.model.new_frames}'
            )
        if request.steps is not None and not 1 <= request.steps <= 1000:
            raise Refused(f'steps must be in 1..1000, got {request.steps}')
        memory = place.memory if request.keep else place.memory.fork()
        began = time.monotonic()
        chunks = rollout(
            self.model,
            memory,
            place.frame,
            place.camera,
            cameras,
            steps=request.steps or self.model.config.steps,
            generator=torch.Generator().manual_seed(request.seed),
            refine_cameras=self._refine_cameras,
            remember_last=request.keep,
            cancelled=cancelled,
        )
        for index, imagined in enumerate(chunks):
            now = time.monotonic()
            seconds, began = now - began, now
            memory_frames = (
                self._memory_frames(memory.readout(self._on_grid(imagined.cameras)))
                if request.memory_frames
                else None
            )
            yield self._chunk(request, place, imagined, memory_frames, index, count, seconds)
            began = time.monotonic()

    def score(
        self, world_from_camera: np.ndarray, times: np.ndarray, *, memory: str = 'default'
    ) -> Score:
        place = self._place(memory)
        cameras = self._cameras(place.camera, world_from_camera, times)
        readout = place.memory.readout(self._on_grid(cameras))
        visible = readout.visible.flatten(1).float()
        age = (readout.age.flatten(1) * visible).sum(dim=1) / visible.sum(dim=1)
        return Score(
            visible=visible.mean(dim=1).cpu().numpy(),
            observed=readout.observed.flatten(1).float().mean(dim=1).cpu().numpy(),
            age=age.cpu().numpy(),
        )

    def save(self, path: Path, *, memory: str = 'default') -> None:
        """Write a memory and the view that imagination starts from, as one safetensors file.

        A file that is there is replaced whole or not at all; OSError is the disk's.
        """
        place = self._place(memory)
        if not isinstance(place.memory, LatentMemory):
            raise Refused(f'a memory of the kind {self.model.config.memory!r} cannot be saved')
        place.memory.save(
            path,
            attached={
                'frame': (place.frame * 255).round().byte().cpu(),
                'K': place.camera.K.cpu(),
                'world_from_camera': place.camera.world_from_camera.cpu(),
                'times': place.camera.times.cpu(),
                'depth_source': torch.tensor(_SOURCES.index(place.depth_source)),
            },
        )

    def load(self, path: Path, *, memory: str = 'default') -> None:
        """Read what `save` wrote. A file that is refused leaves the memory of that name as it was."""
        config = self.model.config
        if config.memory != 'latent':
            raise Refused(f'{path}: the model {config.name} has {config.memory!r} for its memory')
        try:
            loaded = LatentMemory.load(path)
            view = attached(path)
            camera = Cameras(
                K=view['K'],
                world_from_camera=view['world_from_camera'],
                times=view['times'],
                height=config.height,
                width=config.width,
            )
            frame, source = view['frame'], _SOURCES[int(view['depth_source'])]
        except KeyError as error:
            raise Refused(f'{path}: holds no view to start from, {error} is missing') from None
        except (ValueError, IndexError) as error:
            raise Refused(str(error)) from None
        if loaded.config.channels != self.model.codec.channels:
            raise Refused(
                f'{path}: its cells have {loaded.config.channels} channels, '
                f'the model {config.name} has {self.model.codec.channels}'
            )
        if frame.dtype != torch.uint8 or frame.shape != (1, 3, config.height, config.width):
            raise Refused(
                f'{path}: its view is {tuple(frame.shape)}, not of the model {config.name}'
            )
        camera = self._checked(camera)
        self._places[memory] = _Place(
            memory=loaded,
            frame=frame.to(self.model.device).float() / 255,
            camera=camera.to(self.model.device),
            depth_source=source,
        )

    def drop(self, *, memory: str = 'default') -> None:
        """Forget a memory; dropping one that does not exist is no error."""
        self._places.pop(memory, None)

    def _place(self, memory: str) -> _Place:
        if memory not in self._places:
            raise Refused(f'memory {memory!r} has no seed yet')
        return self._places[memory]

    def _write(self, view: View, memory: Memory) -> _Place:
        frame, depth, camera = self._fit(view)
        on_grid = self._on_grid(camera)
        readout = memory.readout(on_grid) if len(memory) else None
        seen = self.model.perception.estimate(frame, camera, readout)
        source: DepthSource = 'perception' if bool(seen.scaled.all()) else 'perception_unscaled'
        if depth is not None:
            source = 'sensor'
            seen = Estimate(
                depth=depth,
                cameras=camera,
                confidence=(depth > 0).float(),
                sky=seen.sky,
                moving=seen.moving,
                scaled=torch.ones_like(seen.scaled),
            )
        if source == 'perception_unscaled' and not self._allow_unscaled_depth:
            raise Refused(
                'the view has no depth and its metres would be a guess: send depth, or allow unscaled depth'
            )
        grid_depth, keep = keep_mask(seen, height=on_grid.height, width=on_grid.width)
        memory.write(
            self.model.codec.encode_stills(frame) if memory.takes_latents else None,
            grid_depth,
            self._on_grid(seen.cameras),
            keep=keep,
            observed=True,
            confidence=mean_in_cell(seen.confidence, grid_depth),
            pixels=pixels_of(frame, seen),
        )
        return _Place(memory=memory, frame=frame, camera=seen.cameras, depth_source=source)

    def _fit(self, view: View) -> tuple[torch.Tensor, torch.Tensor | None, Cameras]:
        """The view cropped about its centre to the model's aspect and scaled to its size, K kept right."""
        image, depth = np.asarray(view.image), view.depth
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise Refused(
                f'the image must be (height, width, 3) uint8, got {image.shape} {image.dtype}'
            )
        if depth is not None and np.shape(depth) != image.shape[:2]:
            raise Refused(
                f'depth {np.shape(depth)} is not registered to the image {image.shape[:2]}'
            )
        config = self.model.config
        height, width = image.shape[:2]
        scale = min(height / config.height, width / config.width)
        crop_height, crop_width = round(config.height * scale), round(config.width * scale)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        image = image[top : top + crop_height, left : left + crop_width]
        size = (config.width, config.height)
        interpolation = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=interpolation)
        K = np.array(view.K, dtype=np.float64)
        if K.shape != (3, 3):
            raise Refused(f'K must be 3x3, got {K.shape}')
        K[:2, 2] -= left, top
        cropped = self._checked(
            Cameras(
                K=torch.from_numpy(K).float()[None],
                world_from_camera=torch.from_numpy(
                    np.asarray(view.world_from_camera, dtype=np.float32)
                )[None],
                times=torch.tensor([view.time], dtype=torch.float64),
                height=crop_height,
                width=crop_width,
            )
        )
        camera = resized(cropped, config.height, config.width)
        device = self.model.device
        frame = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
        if depth is None:
            return frame, None, camera.to(device)
        depth = np.asarray(depth, dtype=np.float32)[
            top : top + crop_height, left : left + crop_width
        ]
        if not (np.isfinite(depth) & (depth > 0)).any():
            raise Refused('the depth image has no valid pixel where the model looks')
        # a sample, never a blend of two surfaces
        depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
        return frame, torch.from_numpy(depth).to(device)[None], camera.to(device)

    def _cameras(self, like: Cameras, world_from_camera: np.ndarray, times: np.ndarray) -> Cameras:
        poses = np.asarray(world_from_camera, dtype=np.float32)
        times = np.asarray(times, dtype=np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or times.shape != poses.shape[:1]:
            raise Refused(
                f'need poses (n, 4, 4) and times (n,), got {poses.shape} and {times.shape}'
            )
        cameras = Cameras(
            K=like.K.cpu().expand(len(poses), 3, 3),
            world_from_camera=torch.from_numpy(poses),
            times=torch.from_numpy(times),
            height=like.height,
            width=like.width,
        )
        return self._checked(cameras).to(self.model.device)

    @staticmethod
    def _checked(cameras: Cameras) -> Cameras:
        try:
            return check_cameras(cameras)
        except ValueError as error:
            raise Refused(str(error)) from None

    def _on_grid(self, cameras: Cameras) -> Cameras:
        stride = self.model.codec.spatial_stride
        return resized(cameras, cameras.height // stride, cameras.width // stride)

    def _memory_frames(self, readout: Readout) -> np.ndarray:
        """The memory's latents decoded as they are, grey where it holds nothing."""
        frames = self.model.codec.decode_stills(readout.latents).clamp(0, 1)
        stride = self.model.codec.spatial_stride
        visible = readout.visible.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
        return _to_uint8(torch.where(visible[:, None], frames, 0.5))

    def _chunk(
        self,
        request: Imagine,
        place: _Place,
        imagined: ImaginedChunk,
        memory_frames: np.ndarray | None,
        index: int,
        count: int,
        seconds: float,
    ) -> Chunk:
        readout = imagined.remembered
        mask = torch.full(readout.visible.shape, NOTHING, dtype=torch.uint8)
        mask[readout.visible.cpu()] = IMAGINED
        mask[readout.observed.cpu()] = OBSERVED
        stride = self.model.codec.spatial_stride
        return Chunk(
            request_id=request.request_id,
            index=index,
            count=count,
            frames=_to_uint8(imagined.frames),
            visibility=mask.repeat_interleave(stride, 1).repeat_interleave(stride, 2).numpy(),
            visible=readout.visible.flatten(1).float().mean(dim=1).cpu().numpy(),
            observed=readout.observed.flatten(1).float().mean(dim=1).cpu().numpy(),
            K=place.camera.K[0].cpu().double().numpy(),
            world_from_camera=imagined.cameras.world_from_camera.cpu().double().numpy(),
            times=imagined.cameras.times.cpu().numpy(),
            memory_frames=memory_frames,
            depth_source=place.depth_source,
            model=self.model.config.name,
            seed=request.seed,
            seconds=seconds,
        )


def _to_uint8(frames: torch.Tensor) -> np.ndarray:
    """(n, 3, H, W) in 0..1 to (n, H, W, 3)."""
    return (frames * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
