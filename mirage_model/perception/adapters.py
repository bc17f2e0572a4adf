"""Perception by published depth models; their libraries are imported on use.

They do not segment dynamic objects, so ``moving`` is False everywhere.
"""

from __future__ import annotations

from dataclasses import replace
import math
from pathlib import Path

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras, resized
from mirage_model.memory import Readout
from mirage_model.perception import Estimate
from mirage_model.perception.alignment import DEFAULT_ALIGNMENT, AlignmentConfig, align

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_SKY_SHARE = 0.98
"""Share of the largest depth from which on Depth Anything means sky."""


class DepthAnything:
    """Metric models of Depth Anything 1 and 2, through transformers.

    Pixels from 98% of the model's largest depth on are sky. Confidence is 1.
    """

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
        pixels = F.interpolate(frames, size, mode='bicubic', antialias=True)
        pixels = (pixels - pixels.new_tensor(_IMAGENET_MEAN)[:, None, None]) / pixels.new_tensor(
            _IMAGENET_STD
        )[:, None, None]
        depth = self.model(pixel_values=pixels).predicted_depth
        depth = F.interpolate(depth[:, None], (height, width), mode='nearest-exact')[:, 0]
        sky = depth >= _SKY_SHARE * self.model.config.max_depth
        estimate = Estimate(
            depth=depth.masked_fill(sky, torch.nan),
            cameras=cameras,
            confidence=torch.ones_like(depth),
            sky=sky,
            moving=torch.zeros_like(sky),
            moving_probability=torch.zeros_like(depth),
            scaled=torch.ones(len(frames), dtype=torch.bool, device=frames.device),
        )
        return align(estimate, readout, self.alignment)


class DepthAnything3:
    """Depth Anything 3, through the package depth_anything_3.

    The monocular metric model gives metres as focal length [px] * output / 300, the nested models
    give metres. Depth of the other models has no scale: `Estimate.scaled` is False unless the
    memory covers the view.
    """

    def __init__(self, folder: Path, *, alignment: AlignmentConfig = DEFAULT_ALIGNMENT) -> None:
        """Load a folder of the package's layout.

        Raises:
            ImportError: The package is missing.
        """
        try:
            from depth_anything_3.api import DepthAnything3 as Model
        except ImportError as error:
            raise ImportError(
                'depth_anything_3: the package is missing, pip install depth-anything-3 '
                '(it needs numpy below 2, torchvision and xformers)'
            ) from error
        self.model = Model.from_pretrained(str(folder), local_files_only=True).eval()
        self.alignment = alignment

    def to(self, device: torch.device | str) -> None:
        self.model.to(device)

    @torch.inference_mode()
    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        images = frames.clamp(0, 1).mul(255).round().byte().movedim(1, -1).cpu().numpy()
        prediction = self.model.inference(list(images))
        depth = torch.from_numpy(prediction.depth).to(frames)
        monocular = self.model.model_name.startswith('da3metric')
        metric = monocular or prediction.is_metric == 1
        if monocular:
            K = resized(cameras, *depth.shape[1:]).K
            depth = depth * (K[:, 0, 0] + K[:, 1, 1])[:, None, None] / 2 / 300
        sky = (
            torch.zeros_like(depth)
            if prediction.sky is None
            else torch.from_numpy(prediction.sky).to(depth)
        )
        confidence = torch.ones_like(depth)
        if prediction.conf is not None:  # from 1 to infinity
            confidence = 1 - 1 / torch.from_numpy(prediction.conf).to(depth).clamp(min=1)
        depth, sky, confidence = F.interpolate(
            torch.stack([depth, sky, confidence], dim=1), frames.shape[-2:], mode='nearest-exact'
        ).unbind(dim=1)
        estimate = Estimate(
            depth=depth.masked_fill((sky > 0.5) | (depth <= 0), torch.nan),
            cameras=cameras,
            confidence=confidence,
            sky=sky > 0.5,
            moving=torch.zeros_like(depth, dtype=torch.bool),
            moving_probability=torch.zeros_like(depth),
            scaled=torch.full((len(frames),), metric, device=frames.device),
        )
        bounded = self.alignment if metric else replace(self.alignment, max_scale=math.inf)
        return align(estimate, readout, bounded)
