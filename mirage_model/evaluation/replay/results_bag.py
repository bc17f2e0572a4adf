"""A bag of results (MCAP): imagined frames, masks and metrics beside the recorded frames.

All messages have the recorded stamp of their frame, so that any viewer shows them in step.
Segments that overlap in time are in different tracks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mirage_model.evaluation.image_quality import QUALITY
from mirage_model.evaluation.replay.bag_writer import BagWriter
from mirage_model.evaluation.replay.replay import SegmentResult

METRICS = (*QUALITY, 'visible', 'observed', 'last_frame_psnr_all', 'warp_psnr_all')
CAMERA_FRAME = 'imagined/camera'


def track_numbers(spans: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each span, first and last nanosecond, the first track that is free then."""
    ends: list[int] = []
    chosen = []
    for first, last in spans:
        track = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[track : track + 1] = [last]
        chosen.append(track)
    return chosen


def topic(track: int, name: str) -> str:
    return f'/imagined/{name}' if track == 0 else f'/imagined/track_{track}/{name}'


def write_bag(
    path: Path, results: Iterable[tuple[int, SegmentResult]], *, world_frame: str
) -> None:
    """Write results with their tracks, in order of time; an existing bag is replaced.

    ``/recorded/image`` has the recorded frames, cropped and scaled as the model's. Each track has
    ``image``, ``visibility`` (0 nothing, 128 imagined, 255 observed), ``camera_info``, ``pose``
    and a Float64 topic under ``metrics`` for each of `METRICS`; an unknown value is not sent.
    """
    recorded: set[int] = set()
    with BagWriter(path) as bag:
        for track, result in results:
            height, width = result.visibility.shape[1:]
            for i, at in enumerate(result.nanoseconds.tolist()):
                if at not in recorded:
                    recorded.add(at)
                    header = bag.header(at, 'recorded/camera')
                    bag.send('/recorded/image', at, bag.image(header, result.recorded[i]))
                header = bag.header(at, CAMERA_FRAME)
                posed = bag.make(
                    'geometry_msgs/PoseStamped',
                    bag.header(at, world_frame),
                    bag.pose(result.world_from_camera[i]),
                )
                for name, message in (
                    ('image', bag.image(header, result.frames[i])),
                    ('visibility', bag.image(header, result.visibility[i])),
                    ('camera_info', bag.camera_info(header, result.K, height, width)),
                    ('pose', posed),
                ):
                    bag.send(topic(track, name), at, message)
                for name in METRICS:
                    value = result.rows[i][name]
                    if not np.isnan(value):
                        number = bag.make('std_msgs/Float64', float(value))
                        bag.send(topic(track, f'metrics/{name}'), at, number)
