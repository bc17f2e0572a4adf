"""Imagine moving into a picture, without ROS: imagine_from_picture.py PICTURE OUT [DEPTH]

DEPTH is a 16-bit PNG in millimetres, registered to the picture. Without it the embedded network
guesses the depth, and the metres of the path are a guess too.
"""

from __future__ import annotations

from pathlib import Path
import sys

import cv2
import numpy as np

from mirage_model.engine.engine import Engine
from mirage_model.interface import ImagineRequest, Observation

FIELD_OF_VIEW = 75.0
"""Horizontal field of view of the camera, in degrees."""
METRES = 1.0
"""Length of the path, straight ahead."""


def main(picture: Path, out: Path, depth_file: Path | None = None) -> None:
    image = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    depth = None
    if depth_file is not None:
        depth = cv2.imread(str(depth_file), cv2.IMREAD_UNCHANGED).astype(np.float32) / 1000
    height, width = image.shape[:2]
    focal = width / 2 / np.tan(np.radians(FIELD_OF_VIEW) / 2)
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])

    engine = Engine.from_folder(allow_unscaled_depth=True)
    info = engine.describe()
    engine.seed(Observation(image=image, K=K, world_from_camera=np.eye(4), time=0.0, depth=depth))
    frames = info.new_frames_per_chunk
    path = np.tile(np.eye(4), (frames, 1, 1))
    path[:, 2, 3] = np.linspace(0, METRES, frames + 1)[1:]  # z is forward in a camera's frame
    times = np.arange(1, frames + 1) / info.frame_rate
    request = ImagineRequest(request_id='picture', world_from_camera=path, times=times)
    for chunk in engine.imagine(request):
        shown = np.concatenate([chunk.frames[:: frames // 4], chunk.frames[-1:]])
        sheet = np.concatenate(list(shown), axis=1)
        cv2.imwrite(str(out), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        print(f'{frames} frames in {chunk.seconds:.1f} s, observed {chunk.observed.mean():.0%}')


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
