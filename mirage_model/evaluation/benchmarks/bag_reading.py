"""Measure what reading a bag costs a picture, for bags of several lengths: ``mirage bench bag``.

Each bag is written by the command itself and deleted at the end: JPEG images, compressedDepth of
16 bits, a camera_info for each image, and transforms of two links at 30 Hz. Pictures are read as
`mirage replay` reads them: the frames of a segment together, and those that the memory observes
one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
import json
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import TypeVar

import cv2
from jaxtyping import UInt8
import numpy as np

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.config import BagBenchConfig, ReplayConfig
from mirage_model.evaluation.replay.bag_writer import BagWriter
from mirage_model.evaluation.replay.replay import views
from mirage_model.evaluation.replay.segments import segments_of

T = TypeVar('T')
TRANSFORM_RATE = 30.0
"""Rate of the transforms [Hz]."""
PICTURES = 32
"""Different pictures of a bag, which repeat."""
TOPICS = BagConfig(
    image='/image/compressed',
    camera_info='/camera_info',
    pose='/tf',
    depth='/depth/compressedDepth',
)


def main(config: BagBenchConfig) -> int:
    """Measure each length in a process of its own; return the exit status."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    lengths = []
    for minutes in config.minutes:
        with tempfile.TemporaryDirectory(dir=config.out.parent) as folder:
            bag = Path(folder) / 'bag'
            write_recording(bag, minutes, config)
            words = [str(bag), str(config.height), str(config.width), str(config.rate)]
            words += [str(config.segments)]
            done = subprocess.run(
                [sys.executable, '-m', __name__, *words], stdout=subprocess.PIPE, check=True
            )
            measured = json.loads(done.stdout)
            lengths.append({'minutes': minutes, **measured})
            print(f'{minutes:g} min: {measured}', flush=True)
    first, last = lengths[0], lengths[-1]
    metrics = [
        Metric(
            name=f'{name}, {last["minutes"]:g} min over {first["minutes"]:g} min',
            value=last[key] / first[key],
            goal=1.5,
            seconds=(last[key], first[key]),
        )
        for key, name in (
            ('index_seconds', 'index, CPU time an image'),
            ('picture_seconds', 'reading, CPU time a picture'),
        )
    ]
    return report(metrics, config.out, {'lengths': lengths})


def write_recording(path: Path, minutes: float, config: BagBenchConfig) -> None:
    """Write a bag of a camera that moves along x at 0.1 m/s."""
    height, width = config.height, config.width
    K = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1.0]])
    colours, depths = _pictures(height, width)
    count = round(minutes * 60 * config.rate)
    with BagWriter(path) as bag:
        sent = 0
        for i in range(count):
            at = round(i / config.rate * 1e9) + 10**9
            while sent * 1e9 / TRANSFORM_RATE <= at:
                moment = round(sent * 1e9 / TRANSFORM_RATE)
                for parent, child in (('map', 'odom'), ('odom', 'camera')):
                    pose = np.eye(4)
                    pose[0, 3] = moment * 0.05e-9
                    message = bag.transforms(bag.header(moment, parent), child, pose)
                    bag.send('/tf', moment, message)
                sent += 1
            header = bag.header(at, 'camera')
            for topic, form, data in (
                (TOPICS.image, 'jpeg', colours[i % PICTURES]),
                (TOPICS.depth, '16UC1; compressedDepth png', depths[i % PICTURES]),
            ):
                message = bag.make('sensor_msgs/CompressedImage', header, form, data)
                bag.send(topic, at, message)
            bag.send(TOPICS.camera_info, at, bag.camera_info(header, K, height, width))


def _pictures(height: int, width: int) -> tuple[list[UInt8[np.ndarray, 'n']], list[np.ndarray]]:
    """Return smooth random pictures with some grain as JPEG, and depth as compressedDepth."""
    rng = np.random.default_rng(0)
    colours, depths = [], []
    for _ in range(PICTURES):
        coarse = rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        metres = 1000 + 8 * smooth[..., 0].astype(np.uint16)
        colours.append(
            cv2.imencode('.jpg', smooth // 2 + rng.integers(0, 8, smooth.shape))[1].reshape(-1)
        )
        png = cv2.imencode('.png', metres)[1].reshape(-1)
        depths.append(np.concatenate([np.zeros(12, np.uint8), png]))
    return colours, depths


def measure(path: Path, height: int, width: int, rate: float, most: int) -> dict[str, float]:
    """Return CPU times of indexing and reading a bag, at most ``most`` segments of it."""
    layout = Layout(height=height, width=width, rate=rate, least=1, frames=10**9)
    bag = Bag(path, TOPICS, layout)
    listing, index_seconds = _timed(bag.listing)
    images = len(bag.stamps)
    segments, _ = segments_of(listing, bag.stamps, rate, ReplayConfig(observe=4.0))
    every = max(1, len(segments) // most)
    rows = [
        part
        for segment in segments[::every]
        for part in ([segment.observed[-1], *segment.future], *([row] for row in segment.observed))
    ]
    _, seconds = _timed(lambda: deque((views(bag, part) for part in rows), maxlen=0))
    pictures = sum(len(part) for part in rows)
    return {
        'images': images,
        'mebibytes': sum(f.stat().st_size for f in path.iterdir()) / 2**20,
        'index_seconds': index_seconds / images,
        'pictures': pictures,
        'picture_seconds': seconds / pictures,
        'peak_mebibytes': _peak(),
    }


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    return call(), time.process_time() - began


def _peak() -> float:
    """Return the largest resident size of this process so far [MiB]."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == '__main__':
    path, height, width, rate, most = sys.argv[1:]
    print(json.dumps(measure(Path(path), int(height), int(width), float(rate), int(most))))
