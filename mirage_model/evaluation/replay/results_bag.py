"""A bag of results (MCAP): what was imagined, its masks and its figures, beside what was recorded.

Everything carries the recorded stamp of its frame, so that any viewer shows it in step. Segments that
overlap in time lie in lanes of their own: `lanes`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mirage_model.evaluation.metrics import QUALITY
from mirage_model.evaluation.replay.bag_writer import BagWriter
from mirage_model.evaluation.replay.replay import Replayed

FIGURES = (*QUALITY, 'visible', 'observed', 'held_psnr_all')
CAMERA_FRAME = 'imagined/camera'


def lanes(spans: Iterable[tuple[int, int]]) -> list[int]:
    """For each span of time, first and last nanosecond, the first lane in which nothing is in its way."""
    ends: list[int] = []
    chosen = []
    for first, last in spans:
        lane = next((i for i, end in enumerate(ends) if end < first), len(ends))
        ends[lane : lane + 1] = [last]
        chosen.append(lane)
    return chosen


def topic(lane: int, name: str) -> str:
    return f'/imagined/{name}' if lane == 0 else f'/imagined/lane_{lane}/{name}'


def write_bag(path: Path, results: Iterable[tuple[int, Replayed]], *, world_frame: str) -> None:
    """Write results with their lanes, in order of time; a bag that is there is replaced.

    ``/recorded/image`` is what the camera saw, cropped and scaled as the model's. For every lane there are
    ``image``, ``visibility`` (0 nothing, 128 imagined, 255 observed), ``camera_info``, ``pose`` and one
    Float64 topic under ``figures`` for each of `FIGURES`; a figure that is not known is not sent.
    """
    recorded: set[int] = set()
    with BagWriter(path) as bag:
        for lane, replayed in results:
            height, width = replayed.visibility.shape[1:]
            for i, at in enumerate(replayed.nanoseconds.tolist()):
                if at not in recorded:
                    recorded.add(at)
                    header = bag.header(at, 'recorded/camera')
                    bag.send('/recorded/image', at, bag.image(header, replayed.recorded[i]))
                header = bag.header(at, CAMERA_FRAME)
                posed = bag.make(
                    'geometry_msgs/PoseStamped',
                    bag.header(at, world_frame),
                    bag.pose(replayed.world_from_camera[i]),
                )
                for name, message in (
                    ('image', bag.image(header, replayed.frames[i])),
                    ('visibility', bag.image(header, replayed.visibility[i])),
                    ('camera_info', bag.camera_info(header, replayed.K, height, width)),
                    ('pose', posed),
                ):
                    bag.send(topic(lane, name), at, message)
                for name in FIGURES:
                    value = replayed.rows[i][name]
                    if not np.isnan(value):
                        number = bag.make('std_msgs/Float64', float(value))
                        bag.send(topic(lane, f'figures/{name}'), at, number)
