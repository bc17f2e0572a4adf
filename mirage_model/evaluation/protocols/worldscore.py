"""The WorldScore protocol: camera paths, the layout of its toolkit, and averages of its scores.

``mirage evaluate worldscore`` imagines the instances of its data set; ``mirage evaluate
worldscore-scores`` averages what its toolkit left in each instance's ``evaluation.json``.
Constants and formulas are those of the toolkit's `aspect_info` and evaluator. Its prompts go
to models with a text encoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
import json
import math
from pathlib import Path
import sys

import cv2
from jaxtyping import Float64, UInt8
import numpy as np
from scipy.spatial.transform import Rotation, Slerp
from tqdm import tqdm

from mirage_model.evaluation.config import (
    WorldScoreAggregateConfig,
    WorldScoreCommand,
    WorldScoreConfig,
)
from mirage_model.evaluation.replay.video import mp4
from mirage_model.image_fit import fit_image
from mirage_model.interface import (
    EngineProtocol,
    ImagineRequest,
    InvalidRequest,
    Observation,
    Trajectory,
)
from mirage_model.io import as_json, begin_run, write_json

BLENDER_FROM_OPTICAL = np.diag([1.0, -1.0, -1.0, 1.0])
"""Blender's cameras look along -z with y up."""
_MEMORY = 'worldscore'


# camera paths


def _turned(degrees: float) -> Float64[np.ndarray, '4 4']:
    """Return camera_from_camera of a turn to the right."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('y', degrees, degrees=True).as_matrix()
    return matrix


def _shifted(x: float, z: float) -> Float64[np.ndarray, '4 4']:
    matrix = np.eye(4)
    matrix[0, 3], matrix[2, 3] = x, z
    return matrix


ORBIT_DEGREES = PAN_DEGREES = 30.0
MOVES = {
    'push_in': _shifted(0.0, 1.0),
    'pull_out': _shifted(0.0, -1.0),
    'move_left': _shifted(-0.5, 0.0),
    'move_right': _shifted(0.5, 0.0),
    # about a point one unit ahead, which stays in the middle of the picture
    'orbit_left': _shifted(0.0, 1.0) @ _turned(ORBIT_DEGREES) @ _shifted(0.0, -1.0),
    'orbit_right': _shifted(0.0, 1.0) @ _turned(-ORBIT_DEGREES) @ _shifted(0.0, -1.0),
    'pan_left': _turned(-PAN_DEGREES),
    'pan_right': _turned(PAN_DEGREES),
    'fixed': np.eye(4),
}
"""first_from_last of each layout, in optical frames, with lengths in WorldScore's unit."""


def keyframes(camera_path: Sequence[str]) -> Float64[np.ndarray, 'k 4 4']:
    """Return first_from_camera at the start and after each layout.

    Raises ValueError for an unknown layout.
    """
    cameras = [np.eye(4)]
    for layout in camera_path:
        if layout not in MOVES:
            raise ValueError(
                f'camera_path: {layout!r} is unknown, must be one of {", ".join(MOVES)}'
            )
        cameras.append(cameras[-1] @ MOVES[layout])
    return np.stack(cameras)


def along(cameras: Float64[np.ndarray, 'k 4 4'], frames: int) -> Float64[np.ndarray, 'n 4 4']:
    """Interpolate ``frames`` cameras from each keyframe to the next, both included.

    The toolkit interpolates camera_from_first: rotations by slerp, translations linearly.

    Returns:
        (k - 1) (frames - 1) + 1 cameras.
    """
    camera_from_first = np.linalg.inv(cameras)
    at = np.linspace(0, len(cameras) - 1, (len(cameras) - 1) * (frames - 1) + 1)
    result = np.tile(np.eye(4), (len(at), 1, 1))
    keys = np.arange(len(cameras))
    result[:, :3, :3] = Slerp(keys, Rotation.from_matrix(camera_from_first[:, :3, :3]))(
        at
    ).as_matrix()
    for axis in range(3):
        result[:, axis, 3] = np.interp(at, keys, camera_from_first[:, axis, 3])
    return np.linalg.inv(result)


_TOOLKIT_FROM_FIRST = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The toolkit's world: x left, y up, z forward, as the axes of its first camera."""


def to_blender(first_from_camera: Float64[np.ndarray, 'n 4 4']) -> Float64[np.ndarray, 'n 4 4']:
    """Return world_from_camera of ``camera_data.json``: the toolkit's world, Blender's camera
    axes."""
    return _TOOLKIT_FROM_FIRST @ first_from_camera @ np.linalg.inv(BLENDER_FROM_OPTICAL)


# the toolkit's layout


def folder_of(image_data: dict) -> Path:
    """Return an instance's folder below the output folder.

    Raises ValueError for a missing field.
    """
    try:
        image = Path(image_data['image'])
        kind, style = image_data['visual_movement'], image_data['visual_style']
        if kind == 'static':
            return Path(kind, style, image_data['scene_type'], image.parent.name, image.stem)
        return Path(kind, style, image_data['motion_type'], image.stem)
    except KeyError as error:
        raise ValueError(f'instance: {error} is missing in {str(image_data)[:200]}') from None


def is_complete(folder: Path) -> bool:
    """Return whether the toolkit takes the folder as finished."""
    path = folder / 'image_data.json'
    if not path.exists() or not (folder / 'input_image.png').exists():
        return False
    wanted = json.loads(path.read_text())['total_frames']
    return len(list((folder / 'frames').glob('*.png'))) == wanted


def generate(
    engine: EngineProtocol, image_data: dict, root: Path, out: Path, config: WorldScoreConfig
) -> Path:
    """Imagine one instance and write it as the toolkit reads it.

    Raises ValueError for an instance that cannot be imagined.
    """
    folder = out / folder_of(image_data)
    if is_complete(folder):
        return folder
    picture = cv2.imread(str(root / image_data['image']), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f'{root / image_data["image"]}: cannot be read as an image')
    width, height = config.resolution
    picture = fit_image(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), height, width)
    cameras = along(keyframes(image_data['camera_path']), config.frames)
    frames = _imagined(engine, picture, cameras, config, image_data)
    (folder / 'frames').mkdir(parents=True, exist_ok=True)
    (folder / 'videos').mkdir(exist_ok=True)
    _write(folder / 'input_image.png', picture)
    scenes = len(image_data['camera_path'])
    description = {**image_data, 'num_scenes': scenes, 'total_frames': len(frames)}
    if image_data['visual_movement'] == 'static':
        description['anchor_frame_idx'] = [i * (config.frames - 1) for i in range(scenes + 1)]
        camera_data = {
            'focal_length': config.focal_length,
            'scale': 1,
            'cameras': to_blender(cameras[:: config.frames - 1]).tolist(),
            'cameras_interp': to_blender(cameras).tolist(),
        }
        write_json(folder / 'camera_data.json', camera_data)
    for i, frame in enumerate(frames):
        _write(folder / 'frames' / f'{i:03d}.png', frame)
    (folder / 'videos' / 'output.mp4').write_bytes(
        mp4(frames, frame_rate=engine.describe().frame_rate)
    )
    write_json(folder / 'image_data.json', description)  # last: it marks the folder as complete
    return folder


def _imagined(
    engine: EngineProtocol,
    picture: UInt8[np.ndarray, 'h w 3'],
    cameras: Float64[np.ndarray, 'n 4 4'],
    config: WorldScoreConfig,
    image_data: dict,
) -> UInt8[np.ndarray, 'n H W 3']:
    """Return the picture at the model's size, then a frame for each other camera."""
    about = engine.describe()
    height, width = picture.shape[:2]
    focal = config.focal_length
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    world_from_camera = cameras.copy()
    world_from_camera[:, :3, 3] *= config.metres_per_unit
    view = Observation(image=picture, K=K, world_from_camera=world_from_camera[0], time=0.0)
    engine.seed(view, memory=_MEMORY)
    times = np.arange(1, len(cameras)) / about.frame_rate
    path = Trajectory(world_from_camera=world_from_camera[1:], times=times).padded(about)
    request = ImagineRequest(
        request_id=str(folder_of(image_data)),
        world_from_camera=path.world_from_camera,
        times=path.times,
        memory=_MEMORY,
        seed=config.seed,
        prompt=prompt_of(image_data) if about.prompts else '',
    )
    chunks = [chunk.frames for chunk in engine.imagine(request)]
    first = fit_image(picture, about.height, about.width)
    return np.concatenate([first[None], *chunks])[: len(cameras)]


def prompt_of(image_data: dict) -> str:
    """Return the text of an instance: its prompt, or those of the scenes along its path."""
    scenes = image_data.get('prompt_list', [image_data.get('prompt', '')])
    return ', then '.join(scenes)


def _write(path: Path, picture: UInt8[np.ndarray, 'h w 3']) -> None:
    if not cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)):
        raise OSError(f'{path}: cannot be written')


# scores


@dataclass(frozen=True, kw_only=True)
class Standard:
    """A standard score, mapped from ``z_min`` .. ``z_max`` to ``low`` .. ``high``."""

    average: float
    deviation: float
    z_min: float
    z_max: float
    low: float = 0.25
    high: float = 0.75

    def normalised(self, score: float) -> float:
        share = ((score - self.average) / self.deviation - self.z_min) / (self.z_max - self.z_min)
        return min(1.0, max(0.0, self.low + (self.high - self.low) * share))


@dataclass(frozen=True, kw_only=True)
class Range:
    """Share of the way from ``worst`` to ``best``, clipped."""

    worst: float
    best: float

    def normalised(self, score: float) -> float:
        return min(1.0, max(0.0, (score - self.worst) / (self.best - self.worst)))


@dataclass(frozen=True, kw_only=True)
class Several:
    """The arithmetic or geometric mean of several values of a metric."""

    ranges: tuple[Range, ...]
    geometric: bool

    def normalised(self, score: Sequence[float]) -> float:
        if len(score) != len(self.ranges):
            raise ValueError(f'score: {len(score)} values, {len(self.ranges)} are needed')
        parts = [each.normalised(value) for each, value in zip(self.ranges, score)]
        if self.geometric:
            return math.prod(parts) ** (1 / len(parts))
        return sum(parts) / len(parts)


STATIC: dict[str, dict[str, Standard | Range | Several]] = {
    'camera_control': {
        # degrees, and translation error
        'camera_error': Several(
            ranges=(Range(worst=15.0, best=0.0), Range(worst=0.5, best=0.0)), geometric=True
        )
    },
    'object_control': {'object_detection': Range(worst=0.0, best=1.0)},
    'content_alignment': {
        'clip_score': Standard(average=26.67, deviation=0.8875, z_min=-1.5950, z_max=1.2741)
    },
    '3d_consistency': {'reprojection_error': Range(worst=1.0719, best=0.0)},
    'photometric_consistency': {'optical_flow_aepe': Range(worst=1.1920, best=0.0)},
    'style_consistency': {'gram_matrix': Range(worst=0.0070, best=0.0)},
    'subjective_quality': {
        'clip_iqa+': Standard(average=0.5842, deviation=0.0441, z_min=-1.8342, z_max=1.8703),
        'clip_aesthetic': Standard(average=5.5952, deviation=0.2561, z_min=-2.9342, z_max=1.9741),
    },
}
DYNAMIC: dict[str, dict[str, Standard | Range | Several]] = {
    'motion_accuracy': {
        'motion_accuracy': Standard(average=-0.1965, deviation=2.3687, z_min=-1.6147, z_max=1.5180)
    },
    'motion_magnitude': {
        'optical_flow': Standard(average=3.2425, deviation=3.4505, z_min=-0.8638, z_max=2.7498)
    },
    'motion_smoothness': {
        # MSE, SSIM, LPIPS
        'motion_smoothness': Several(
            ranges=(
                Range(worst=82.4014, best=0.0),
                Range(worst=0.9224, best=1.0),
                Range(worst=0.0228, best=0.0),
            ),
            geometric=False,
        )
    },
}
"""Aspects with their metrics and how raw scores become 0..1."""


def aggregate(out: Path) -> dict[str, object]:
    """Average the scores of all instances below ``out`` by aspect, static, dynamic and in all
    [percent].

    An aspect is the mean of its metrics, each the mean over the instances that have it. Static is
    the mean of 7 aspects, dynamic of all 10, the average that of both. Aspects of which a metric
    is nowhere scored are listed as missing, and so is every mean that needs them: None, never
    zero. Raises ValueError for a file that is not the toolkit's.
    """
    scores: dict[str, float | None] = {}
    for kind, aspects in (('static', STATIC), ('dynamic', DYNAMIC)):
        found = [(path, _read(path)) for path in sorted((out / kind).rglob('evaluation.json'))]
        for aspect, metrics in aspects.items():
            means = [_metric_mean(found, aspect, name, how) for name, how in metrics.items()]
            known = [mean for mean in means if mean is not None]
            whole = len(known) == len(metrics)
            scores[aspect] = round(100 * sum(known) / len(known), 2) if whole else None
    static = _mean([scores[aspect] for aspect in STATIC])
    dynamic = _mean([scores[aspect] for aspect in (*STATIC, *DYNAMIC)])
    return {
        'instances': len(list(out.rglob('evaluation.json'))),
        'aspects': scores,
        'missing': [aspect for aspect, score in scores.items() if score is None],
        'static': static,
        'dynamic': dynamic,
        'average': _mean([static, dynamic]),
    }


def _metric_mean(
    found: list[tuple[Path, dict]], aspect: str, metric: str, how: Standard | Range | Several
) -> float | None:
    values = []
    for path, evaluation in found:
        scored = evaluation.get(aspect, {}).get(metric)
        if scored is None:
            continue
        try:
            score = scored['score']
            if isinstance(how, Several):
                values.append(how.normalised([float(value) for value in score]))
            else:
                values.append(how.normalised(float(score)))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f'{path}: {aspect}, {metric}: cannot be read: {error}') from None
    return sum(values) / len(values) if values else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known) / len(known), 2) if len(known) == len(values) else None


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path}: not valid JSON: {error}') from None
    if not isinstance(found, dict):
        raise ValueError(f'{path}: holds a {type(found).__name__}, a JSON object is needed')
    return found


def instances(path: Path) -> Iterator[dict]:
    """Yield the instances of a data set's JSON file.

    Raises ValueError for a file that is not a list.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path}: cannot be read as a data set: {error}') from None
    if not isinstance(found, list):
        raise ValueError(f'{path}: holds a {type(found).__name__}, a list of instances is needed')
    yield from found


def main(command: WorldScoreCommand) -> int:
    """Imagine the instances of the data set; return 1 where one failed.

    Raises ValueError where the output folder holds instances of another model.
    """
    from mirage_model.engine.engine import Engine

    config = command.worldscore
    engine = Engine.from_folder(command.model, device=command.device, allow_unscaled_depth=True)
    about = engine.describe()
    settings = {'model': about.model, 'sha256': about.sha256, 'worldscore': asdict(config)}
    begin_run(command.out / 'config.json', settings)
    failed = {}
    wanted = [data for path in command.dataset for data in instances(path)]
    for data in tqdm(wanted, unit='instance'):
        try:
            generate(engine, data, command.root, command.out, config)
        except (ValueError, InvalidRequest) as error:
            failed[str(data.get('image'))] = str(error)
    for name, reason in failed.items():
        print(f'failed: {name}: {reason}', file=sys.stderr)
    return 1 if failed else 0


def aggregate_main(config: WorldScoreAggregateConfig) -> int:
    """Write and print the averages; return the exit status."""
    result = aggregate(config.out)
    write_json(config.out / 'worldscore.json', result)
    print(as_json(result))
    return 0
