"""Perception by published depth models; their libraries are imported on use.

They do not segment dynamic objects; `mirage_model.perception.labeller` adds that. K of Depth
Anything 3 and UniDepth counts pixels from the corner of the image, half a pixel before the centre
of the first; MapAnything counts as Mirage does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
import math
from pathlib import Path

from jaxtyping import Bool, Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, invert, resized
from mirage_model.memory import Readout
from mirage_model.perception import Estimate
from mirage_model.perception.alignment import (
    DEFAULT_ALIGNMENT,
    AlignmentConfig,
    align,
    align_cameras,
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SKY_SHARE = 0.98
"""Share of the largest depth from which on Depth Anything means sky."""


class DepthAnything:
    """Metric models of Depth Anything 1 and 2, through transformers.

    Pixels from 98% of the model's largest depth on are sky. Confidence is 1. The weights of the
    small models are Apache-2.0, those of the larger ones CC BY-NC.
    """

    segments_dynamic = False
    estimates_cameras = False

    def __init__(
        self,
        folder: Path,
        *,
        process_size: int = 518,
        alignment: AlignmentConfig = DEFAULT_ALIGNMENT,
    ) -> None:
        """Load a folder in transformers' layout with safetensors.

        Args:
            process_size: Shorter side that frames are resized to [px].

        Raises:
            ValueError: The model predicts relative depth.
        """
        from transformers import AutoModelForDepthEstimation

        self.model = AutoModelForDepthEstimation.from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        ).eval()
        kind = getattr(self.model.config, 'depth_estimation_type', None)
        if kind != 'metric':
            raise ValueError(f'{folder}: predicts {kind} depth, a metric model is needed')
        self.process_size = process_size
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        height, width = frames.shape[-2:]
        patch = self.model.config.patch_size
        scale = self.process_size / min(height, width)
        size = [max(1, round(side * scale / patch)) * patch for side in (height, width)]
        pixels = _normalised(F.interpolate(frames, size, mode='bicubic', antialias=True))
        depth = self.model(pixel_values=pixels).predicted_depth
        depth = F.interpolate(depth[:, None], (height, width), mode='nearest-exact')[:, 0]
        sky = depth >= _SKY_SHARE * self.model.config.max_depth
        estimate = _static(depth, cameras, torch.ones_like(depth), sky, metric=True)
        return align(estimate, readout, self.alignment)


class DepthAnything3:
    """Depth Anything 3, through the package depth_anything_3.

    The monocular metric model gives metres as focal length [px] * output / 300. The other models
    are given our cameras, two frames or more, and find their own; those bring depth to metres. A
    single frame of a model without metres has `Estimate.scaled` False unless the memory covers the
    view. The weights SMALL, BASE and METRIC-LARGE are Apache-2.0; LARGE, GIANT and NESTED are
    CC BY-NC.
    """

    segments_dynamic = False

    def __init__(
        self,
        folder: Path,
        *,
        process_size: int = 504,
        alignment: AlignmentConfig = DEFAULT_ALIGNMENT,
    ) -> None:
        """Load a folder of the package's layout.

        Args:
            process_size: Longer side that frames are resized to [px].

        Raises:
            ImportError: The package is missing.
        """
        with _optional(
            'depth_anything_3',
            'depth-anything-3 (it needs numpy below 2, torchvision and xformers)',
        ):
            from depth_anything_3.api import DepthAnything3 as Model
        self.model = Model.from_pretrained(str(folder), local_files_only=True).eval()
        self.process_size = process_size
        self.alignment = alignment
        self.monocular = self.model.model_name.startswith(('da3metric', 'da3mono'))
        self.estimates_cameras = not self.monocular

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        images = list(frames.clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu().numpy())
        given = not self.monocular and len(frames) > 1
        camera_from_world = invert(cameras.world_from_camera)
        pixels, extrinsics, K = self.model.input_processor(
            images,
            camera_from_world.cpu().numpy() if given else None,
            _from_corner(cameras.K).cpu().numpy() if given else None,
            self.process_size,
            'upper_bound_resize',
        )
        if extrinsics is not None:
            extrinsics = _normalised_cameras(extrinsics)[None].to(frames)
            K = K[None].to(frames)
        output = self.model.forward(pixels[None].to(frames), extrinsics, K if given else None)
        prediction = self.model.output_processor(output)
        depth = torch.from_numpy(prediction.depth).to(frames)
        metric, found = prediction.is_metric == 1, cameras
        if self.model.model_name.startswith('da3metric'):
            K = resized(cameras, *depth.shape[1:]).K
            depth = depth * (K[:, 0, 0] + K[:, 1, 1])[:, None, None] / 2 / 300
            metric = True
        if given:
            rigid = torch.eye(4).repeat(len(frames), 1, 1).to(frames)
            rigid[:, :3] = torch.from_numpy(prediction.extrinsics[:, :3]).to(frames)
            found, scale = align_cameras(invert(rigid), cameras)
            if scale is not None:
                depth, metric = depth * scale, True
        sky = (
            torch.zeros_like(depth)
            if prediction.sky is None
            else torch.from_numpy(prediction.sky).to(depth)
        )
        confidence = torch.ones_like(depth)
        if prediction.conf is not None:
            confidence = _probability(torch.from_numpy(prediction.conf).to(depth))
        depth, sky, confidence = _at_size(torch.stack([depth, sky, confidence], dim=1), frames)
        estimate = _static(depth, found, confidence, sky > 0.5, metric=metric)
        bounded = self.alignment if metric else replace(self.alignment, max_scale=math.inf)
        return align(estimate, readout, bounded)


class UniDepth:
    """UniDepth v2, through the package unidepth: metric depth of single frames, given K.

    Its own confidence is a ranking within one image and is not used: confidence is 1. Nothing is
    sky. Code and weights are CC BY-NC.
    """

    segments_dynamic = False
    estimates_cameras = False

    def __init__(
        self,
        folder: Path,
        *,
        resolution_level: int = 9,
        alignment: AlignmentConfig = DEFAULT_ALIGNMENT,
    ) -> None:
        """Load a folder of the package's layout with safetensors.

        Args:
            resolution_level: Size of the frames inside the model, from 0, fastest, to 9.

        Raises:
            ImportError: The package is missing.
        """
        with _optional(
            'unidepth',
            'git+https://github.com/lpiccinelli-eth/UniDepth (CC BY-NC; it needs torchvision)',
        ):
            from unidepth.models import UniDepthV2
        self.model = UniDepthV2.from_pretrained(str(folder), local_files_only=True).eval()
        self.model.resolution_level = resolution_level
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        images = frames.clamp(0, 1).mul(255).round().byte()
        depth = self.model.infer(images, camera=_from_corner(cameras.K))['depth'][:, 0].to(frames)
        estimate = _static(
            depth, cameras, torch.ones_like(depth), torch.zeros_like(depth).bool(), metric=True
        )
        return align(estimate, readout, self.alignment)


class MapAnything:
    """MapAnything, through the package mapanything: metric depth and cameras of all frames.

    It is given K and the planned cameras and finds its own. Depth is NaN where the model calls it
    ambiguous, as in the sky. Code is Apache-2.0; of the weights map-anything-apache is too, and
    map-anything is CC BY-NC.
    """

    segments_dynamic = False
    estimates_cameras = True

    def __init__(
        self,
        folder: Path,
        *,
        process_size: int = 518,
        alignment: AlignmentConfig = DEFAULT_ALIGNMENT,
    ) -> None:
        """Load a folder of the package's layout with safetensors.

        Args:
            process_size: Longer side that frames are resized to [px].

        Raises:
            ImportError: The package is missing.
        """
        with _optional(
            'mapanything',
            'git+https://github.com/facebookresearch/map-anything '
            '(it needs torchvision and uniception)',
        ):
            from mapanything.models import MapAnything as Model
        self.model = Model.from_pretrained(str(folder), local_files_only=True).eval()
        self.process_size = process_size
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        height, width = frames.shape[-2:]
        scale = self.process_size / max(height, width)
        size = [max(1, round(side * scale / 14)) * 14 for side in (height, width)]
        norm = self.model.encoder.data_norm_type
        if norm != 'dinov2':
            raise ValueError(f'{norm}: the normalisation of the encoder, only dinov2 is allowed')
        pixels = _normalised(F.interpolate(frames, size, mode='bicubic', antialias=True))
        small = resized(cameras, *size)
        views = [
            {
                'img': pixels[i : i + 1],
                'data_norm_type': [norm],
                'intrinsics': small.K[i : i + 1],
                'camera_poses': small.world_from_camera[i : i + 1],
                'is_metric_scale': torch.ones(1, dtype=torch.bool, device=frames.device),
            }
            for i in range(len(frames))
        ]
        predictions = self.model.infer(views, apply_mask=False, mask_edges=False)
        depth = torch.cat([prediction['depth_z'][..., 0] for prediction in predictions])
        confidence = _probability(torch.cat([prediction['conf'] for prediction in predictions]))
        clear = torch.cat([prediction['non_ambiguous_mask'] for prediction in predictions])
        world_from_camera = torch.cat([prediction['camera_poses'] for prediction in predictions])
        found, scale_to_plan = align_cameras(world_from_camera.to(frames), cameras)
        depth = depth.float() * (scale_to_plan or 1.0)
        depth, clear, confidence = _at_size(
            torch.stack([depth, clear.to(depth), confidence.to(depth)], dim=1).to(frames), frames
        )
        depth = depth.masked_fill(clear < 0.5, torch.nan)
        estimate = _static(depth, found, confidence, torch.zeros_like(depth).bool(), metric=True)
        return align(estimate, readout, self.alignment)


@contextmanager
def _optional(package: str, install: str) -> Iterator[None]:
    """Raise an ImportError that names what to install where an import of the block fails."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f'{package}: the package is missing, pip install {install}') from error


def _static(
    depth: Float[Tensor, 'n h w'],
    cameras: Cameras,
    confidence: Float[Tensor, 'n h w'],
    sky: Bool[Tensor, 'n h w'],
    *,
    metric: bool,
) -> Estimate:
    """Return an estimate without dynamic objects; depth is NaN in the sky and where it is not
    positive."""
    return Estimate(
        depth=depth.masked_fill(sky | ~(depth > 0), torch.nan),
        cameras=cameras,
        confidence=confidence,
        sky=sky,
        moving=torch.zeros_like(sky),
        moving_probability=torch.zeros_like(depth),
        scaled=torch.full((len(depth),), metric, device=depth.device),
    )


def _normalised(pixels: Float[Tensor, 'n 3 h w']) -> Float[Tensor, 'n 3 h w']:
    mean, std = (
        pixels.new_tensor(value)[:, None, None] for value in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    return (pixels - mean) / std


def _at_size(
    maps: Float[Tensor, 'n k h w'], frames: Float[Tensor, 'n 3 H W']
) -> tuple[Tensor, ...]:
    """Return maps at the size of frames, without blending across depth edges."""
    return F.interpolate(maps, frames.shape[-2:], mode='nearest-exact').unbind(dim=1)


def _probability(confidence: Float[Tensor, '...']) -> Float[Tensor, '...']:
    """Map a confidence from 1 to infinity to 0..1."""
    return 1 - 1 / confidence.clamp(min=1)


def _from_corner(K: Float[Tensor, 'n 3 3']) -> Float[Tensor, 'n 3 3']:
    """Return K with pixels counted from the corner of the image."""
    shifted = K.clone()
    shifted[:, :2, 2] += 0.5
    return shifted


def _normalised_cameras(camera_from_world: Float[Tensor, 'n 4 4']) -> Float[Tensor, 'n 4 4']:
    """Return cameras relative to the first, with a median distance of 1 from it, as Depth Anything
    3 takes them."""
    relative = camera_from_world @ invert(camera_from_world[:1])
    distance = invert(relative)[:, :3, 3].norm(dim=1).median().clamp(min=0.1)
    relative[:, :3, 3] /= distance
    return relative
