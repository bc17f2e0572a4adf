"""What the node itself costs: conversion, compression, copies and DDS, at 704x1280 with an engine that returns at once.

The time from a goal to its last chunk, less what the engine took, for every frame. Prints it, and writes out/bench/node.json;
ends with 1 where the goal is missed.
"""

from __future__ import annotations

import json
from pathlib import Path
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).parent))
import conftest  # noqa: F401, I001  the environment of the tests
from mirage.action import Imagine
import numpy as np
from processes import Client, NodeProcess, trajectory
import rclpy

HEIGHT, WIDTH, FRAMES, CHUNKS, REPEATS = 704, 1280, 32, 2, 5
GOAL_MS = 10.0


def main() -> int:
    out = Path('out/bench/node.json')
    rclpy.init()
    with tempfile.TemporaryDirectory() as logs:
        node = NodeProcess(
            Path(logs) / 'node.log',
            instant={'height': HEIGHT, 'width': WIDTH, 'new_frames': FRAMES},
        )
        with Client() as client:
            client.connect()
            client.send_seed(height=HEIGHT, width=WIDTH)
            milliseconds = [_frame_cost(client) * 1000 for _ in range(REPEATS)]
        node.stop()
    rclpy.try_shutdown()
    result = {
        'milliseconds_a_frame': [round(value, 2) for value in milliseconds],
        'median': round(float(np.median(milliseconds)), 2),
        'goal': GOAL_MS,
        'frames': f'{FRAMES * CHUNKS} of {HEIGHT}x{WIDTH}',
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps(result, indent=2))
    return int(result['median'] > GOAL_MS)


def _frame_cost(client: Client) -> float:
    client.chunks.clear()
    began = time.monotonic()
    goal = client.goal(Imagine.Goal(trajectory=trajectory(FRAMES * CHUNKS)))
    client.until(lambda: len(client.chunks) == CHUNKS)
    seconds = time.monotonic() - began
    goal.result()
    return (seconds - sum(chunk.seconds for chunk in client.chunks)) / (FRAMES * CHUNKS)


if __name__ == '__main__':
    sys.exit(main())
