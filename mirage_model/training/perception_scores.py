"""Scores of a perception network on held-out clips, with counts and standard errors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mirage_model.clip import Clip, load_clip
from mirage_model.perception import Estimate
from mirage_model.perception.embedded import EmbeddedPerception, Network
from mirage_model.training.simulated_memory import readout_of

_TOLERANCE = 1.25
(
    _FRAMES,
    _PIXELS,
    _ABS_REL,
    _ABS_REL_SCALED,
    _DELTA1,
    _SKY_TRUE,
    _SKY_BOTH,
    _SKY_EITHER,
    _MOVING_TRUE,
    _MOVING_BOTH,
    _MOVING_EITHER,
) = range(11)
_BINS = 11
_CELL = 8
"""Side of a latent cell [px]."""


def evaluate(network: Network, clips: list[Path], *, every: int = 4) -> dict[str, float | int]:
    """Return the scores of each ``every``-th frame of the clips.

    Depth is scored at pixels of known depth that are neither sky, in truth or estimate, nor on a
    dynamic object. Names with ``_seeded`` are the scores with a memory of the clip's first frame
    and its true depth, the others those without a memory.

    Returns:
        ``depth_abs_rel``: mean over clips of |estimate / truth - 1|.
        ``depth_abs_rel_scaled``: the same with each frame scaled to the truth's median.
        ``depth_delta1``: mean over clips of the share within a factor of 1.25.
        ``confidence_error``: mean distance between confidence and that share, in ten bins.
        ``sky_iou``, ``mover_iou``: intersection over union, over the pixels of all clips.
        ``*_se``: standard error over clips, by jackknife.

    Raises:
        ValueError: There are no clips.
    """
    if not clips:
        raise ValueError('clips: none to evaluate on')
    perception = EmbeddedPerception(network)
    pairs = [_count(perception, path, every) for path in tqdm(clips, desc='validation')]
    alone, seeded = (torch.stack(counts) for counts in zip(*pairs))
    result: dict[str, float | int] = {'clips': len(clips), 'frames': int(alone[:, _FRAMES].sum())}
    result['depth_pixels'] = int(alone[:, _PIXELS].sum())
    result['sky_pixels'] = int(alone[:, _SKY_TRUE].sum())
    result['moving_pixels'] = int(alone[:, _MOVING_TRUE].sum())
    for counts, suffix in ((alone, ''), (seeded, '_seeded')):
        for name, value in _scores(counts).items():
            others = torch.stack(
                [
                    _scores(torch.cat([counts[:i], counts[i + 1 :]]))[name]
                    for i in range(len(clips))
                ]
            )
            spread = (len(clips) - 1) / len(clips) * (others - others.mean()).square().sum()
            result[f'{name}{suffix}'] = float(value)
            result[f'{name}{suffix}_se'] = float(spread.sqrt())
    return result


def _scores(counts: Tensor) -> dict[str, Tensor]:
    scored = counts[counts[:, _PIXELS] > 0]
    means = scored / scored[:, _PIXELS : _PIXELS + 1]
    pooled = counts.sum(dim=0)
    bins = pooled[_BINS:].reshape(3, 10)
    gap = (bins[1] - bins[2]).abs().sum() / bins[0].sum()
    return {
        'depth_abs_rel': means[:, _ABS_REL].mean(),
        'depth_abs_rel_scaled': means[:, _ABS_REL_SCALED].mean(),
        'depth_delta1': means[:, _DELTA1].mean(),
        'confidence_error': gap,
        'sky_iou': pooled[_SKY_BOTH] / pooled[_SKY_EITHER],
        'mover_iou': pooled[_MOVING_BOTH] / pooled[_MOVING_EITHER],
    }


def _count(perception: EmbeddedPerception, path: Path, every: int) -> tuple[Tensor, Tensor]:
    """Return the sums of one clip, without a memory and with a memory of its first frame."""
    clip = load_clip(path)
    cameras = clip.cameras[slice(None, None, every)]
    frames = clip.frames[::every].movedim(-1, 1).float() / 255
    readout = readout_of(clip, 0, cell=_CELL)[::every]
    return (
        _sums(perception.estimate(frames, cameras), clip, every),
        _sums(perception.estimate(frames, cameras, readout), clip, every),
    )


def _sums(estimate: Estimate, clip: Clip, every: int) -> Tensor:
    """Return sums over the pixels of one clip.

    They are the scores' numerators and, per bin of confidence, the number of pixels, the sum of
    confidence and the number within the tolerance.
    """
    truth, sky, moving = clip.depth[::every], clip.sky[::every], clip.moving[::every]
    known = torch.isfinite(truth) & (truth > 0) & ~sky & ~moving & torch.isfinite(estimate.depth)
    ratio = torch.where(known, estimate.depth / truth, torch.nan)
    scaled = ratio / ratio.flatten(1).nanmedian(dim=1).values[:, None, None]
    within = torch.maximum(ratio, 1 / ratio)[known] < _TOLERANCE
    confidence = estimate.confidence[known]
    index = (confidence * 10).long().clamp(0, 9)
    bins = [
        torch.zeros(10).index_add_(0, index, values.float())
        for values in (torch.ones_like(confidence), confidence, within)
    ]
    sums = [
        torch.tensor(len(truth)),
        known.sum(),
        (ratio - 1).abs()[known].sum(),
        (scaled - 1).abs()[known].sum(),
        within.sum(),
        sky.sum(),
        (sky & estimate.sky).sum(),
        (sky | estimate.sky).sum(),
        moving.sum(),
        (moving & estimate.moving).sum(),
        (moving | estimate.moving).sum(),
    ]
    return torch.cat(
        [torch.stack([value.double() for value in sums]), *[b.double() for b in bins]]
    )
