from __future__ import annotations

import json
from pathlib import Path

import cv2
import drives  # noqa: F401
from models import save_small_model
import numpy as np
import pytest

from mirage_model.cli import main
from mirage_model.engine.engine import Engine
from mirage_model.evaluation.protocols.worldscore import (
    BLENDER_FROM_OPTICAL,
    DYNAMIC,
    STATIC,
    WorldScoreConfig,
    aggregate,
    along,
    generate,
    keyframes,
    to_blender,
)
from mirage_model.interface import InvalidRequest

CONFIG = WorldScoreConfig(frames=9, resolution=(96, 64), focal_length=50.0)


def from_blender(world_from_blender: np.ndarray) -> np.ndarray:
    """Return first_from_camera, in optical frames, from the matrices of camera_data.json."""
    world_from_camera = world_from_blender @ BLENDER_FROM_OPTICAL
    return np.linalg.inv(world_from_camera[0]) @ world_from_camera


def centre_and_forward(cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return cameras[-1, :3, 3], cameras[-1, :3, 2]


@pytest.mark.parametrize(
    ('path', 'centre', 'forward'),
    [
        # optical: x right, z forward
        (['push_in'], [0, 0, 1], [0, 0, 1]),
        (['pull_out'], [0, 0, -1], [0, 0, 1]),
        (['move_left'], [-0.5, 0, 0], [0, 0, 1]),
        (['move_right', 'push_in'], [0.5, 0, 1], [0, 0, 1]),
        (['pan_left'], [0, 0, 0], [-0.5, 0, 0.75**0.5]),
        (['pan_right', 'push_in'], [0.5, 0, 0.75**0.5], [0.5, 0, 0.75**0.5]),
        # to the left of a point one ahead, and still looking at it
        (['orbit_left'], [-0.5, 0, 1 - 0.75**0.5], [0.5, 0, 0.75**0.5]),
        (['orbit_right'], [0.5, 0, 1 - 0.75**0.5], [-0.5, 0, 0.75**0.5]),
        (['fixed'], [0, 0, 0], [0, 0, 1]),
    ],
)
def test_camera_paths_worked_by_hand(path, centre, forward):
    found = centre_and_forward(along(keyframes(path), 5))
    np.testing.assert_allclose(found, [centre, forward], atol=1e-9)


def test_the_toolkits_convention_worked_by_hand():
    """The toolkit's first camera is at the origin of x left, y up, z forward; Blender's looks
    along -z, y up."""
    blender = to_blender(along(keyframes(['move_left']), 3))
    np.testing.assert_allclose(blender[0], np.diag([-1.0, 1.0, -1.0, 1.0]), atol=1e-12)
    np.testing.assert_allclose(blender[2, :3, 3], [0.5, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(-blender[2, :3, 2], [0.0, 0.0, 1.0], atol=1e-12)
    cameras = along(keyframes(['pan_left', 'push_in', 'orbit_right']), 7)
    np.testing.assert_allclose(from_blender(to_blender(cameras)), cameras, atol=1e-12)
    assert len(cameras) == 3 * 6 + 1


def dataset(root: Path) -> list[dict]:
    picture = np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)
    (root / 'images' / 'rooms').mkdir(parents=True)
    cv2.imwrite(str(root / 'images' / 'rooms' / '001.png'), cv2.blur(picture, (9, 9)))
    static = {
        'visual_movement': 'static',
        'visual_style': 'photorealistic',
        'scene_type': 'indoor',
        'camera_path': ['push_in', 'pan_left'],
        'image': 'images/rooms/001.png',
        'prompt_list': ['a room', 'a door', 'a hall'],
        'content_list': ['room', 'door', 'hall'],
        'style': 'photo',
    }
    dynamic = {
        'visual_movement': 'dynamic',
        'visual_style': 'stylized',
        'motion_type': 'rigid',
        'camera_path': ['fixed'],
        'image': 'images/rooms/001.png',
        'prompt': 'a ball rolls',
        'objects': ['ball'],
        'masks': ['masks/001.png'],
        'style': 'drawing',
    }
    return [static, dynamic]


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('worldscore')
    engine = Engine.from_folder(save_small_model(root / 'model'), allow_unscaled_depth=True)
    for data in dataset(root):
        folder = generate(engine, data, root, root / 'out', CONFIG)
        marked = (folder / 'image_data.json').stat().st_mtime_ns
        assert generate(engine, data, root, root / 'out', CONFIG) == folder
        assert (folder / 'image_data.json').stat().st_mtime_ns == marked
    return root / 'out'


def test_folders_have_the_toolkits_layout(written):
    """The files and counts that its evaluator asks for, instance by instance."""
    static = written / 'static' / 'photorealistic' / 'indoor' / 'rooms' / '001'
    dynamic = written / 'dynamic' / 'stylized' / 'rigid' / '001'
    for folder, total in ((static, 17), (dynamic, 9)):
        told = json.loads((folder / 'image_data.json').read_text())
        names = sorted(path.name for path in (folder / 'frames').iterdir())
        assert names == [f'{i:03d}.png' for i in range(total)]
        assert told['total_frames'] == total
        assert cv2.imread(str(folder / 'input_image.png')).shape == (64, 96, 3)
        assert (folder / 'videos' / 'output.mp4').stat().st_size > 0
    told = json.loads((static / 'image_data.json').read_text())
    assert (told['num_scenes'], told['anchor_frame_idx']) == (2, [0, 8, 16])
    assert told['content_list'] == ['room', 'door', 'hall']
    cameras = json.loads((static / 'camera_data.json').read_text())
    assert len(cameras['cameras_interp']) == 17 and len(cameras['cameras']) == 3
    assert cameras['focal_length'] == 50.0 and cameras['scale'] == 1
    np.testing.assert_allclose(
        from_blender(np.array(cameras['cameras_interp'])),
        along(keyframes(['push_in', 'pan_left']), 9),
        atol=1e-12,
    )
    assert not (dynamic / 'camera_data.json').exists()


def test_instances_of_another_model_are_rejected(tmp_path, capsys):
    """Finished instances stay only for the same model and settings."""
    (tmp_path / 'data.json').write_text(json.dumps(dataset(tmp_path)))

    def made(model: str, *more: str) -> int:
        words = ['--dataset', str(tmp_path / 'data.json'), '--root', str(tmp_path), *more]
        words += ['--resolution', '96', '64', '--out', str(tmp_path / 'out')]
        return main(['evaluate', 'worldscore', *words, '--model', str(tmp_path / model)])

    save_small_model(tmp_path / 'one'), save_small_model(tmp_path / 'other', seed=1)
    assert made('one', '--frames', '9') == 0
    path = tmp_path / 'out' / 'dynamic' / 'stylized' / 'rigid' / '001' / 'frames' / '005.png'
    first = path.stat().st_mtime_ns
    assert made('one', '--frames', '9') == 0
    for model, frames, differs in (('other', '9', 'sha256'), ('one', '5', 'worldscore')):
        capsys.readouterr()
        assert made(model, '--frames', frames) == 1
        said = capsys.readouterr().err
        assert f'began with another {differs}' in said
    assert path.stat().st_mtime_ns == first


def test_wrong_instances_are_rejected(tmp_path):
    (data, _) = dataset(tmp_path)
    engine = Engine.from_folder(save_small_model(tmp_path / 'model'))
    with pytest.raises(InvalidRequest, match='estimated depth is unscaled'):
        generate(engine, data, tmp_path, tmp_path / 'out', CONFIG)
    for change, message in (
        ({'camera_path': ['loop']}, "camera_path: 'loop' is unknown"),
        ({'image': 'images/rooms/2.png'}, '2.png: cannot be read'),
    ):
        with pytest.raises(ValueError, match=message):
            generate(engine, {**data, **change}, tmp_path, tmp_path / 'out', CONFIG)
    del data['scene_type']
    with pytest.raises(ValueError, match="instance: 'scene_type' is missing"):
        generate(engine, data, tmp_path, tmp_path / 'out', CONFIG)


def score(out: Path, kind: str, name: str, raw: dict) -> None:
    folder = out / kind / 'style' / 'type' / name
    folder.mkdir(parents=True)
    evaluation = {
        aspect: {metric: {'score': value} for metric, value in metrics.items()}
        for aspect, metrics in raw.items()
    }
    (folder / 'evaluation.json').write_text(json.dumps(evaluation))


HALF = {
    'camera_control': {'camera_error': [7.5, 0.25]},  # both half way: geometric mean 0.5
    'object_control': {'object_detection': 0.8},
    'content_alignment': {'clip_score': 26.67},  # 0.25 + 0.5 * 1.5950 / 2.8691 = 0.52796
    '3d_consistency': {'reprojection_error': 0.0},
    'photometric_consistency': {'optical_flow_aepe': 1.1920},
    'style_consistency': {'gram_matrix': 0.0035},
    # 0.25 + 0.5 * 1.8342 / 3.7045 = 0.49756 and 0.25 + 0.5 * 2.9342 / 4.9083 = 0.54890
    'subjective_quality': {'clip_iqa+': 0.5842, 'clip_aesthetic': 5.5952},
}
MOVING = {
    'motion_accuracy': {'motion_accuracy': -0.1965},  # 0.25 + 0.5 * 1.6147 / 3.1327 = 0.50772
    'motion_magnitude': {'optical_flow': 3.2425},  # 0.25 + 0.5 * 0.8638 / 3.6136 = 0.36952
    'motion_smoothness': {'motion_smoothness': [41.2007, 0.9612, 0.0228]},  # (0.5 + 0.5 + 0) / 3
}


def test_a_small_table_worked_by_hand(tmp_path):
    score(tmp_path, 'static', 'a', HALF)
    score(tmp_path, 'static', 'b', {'object_control': {'object_detection': 0.4}})
    score(tmp_path, 'dynamic', 'c', MOVING)
    found = aggregate(tmp_path)
    assert found['aspects'] == {
        'camera_control': 50.0,
        'object_control': 60.0,
        'content_alignment': 52.8,
        '3d_consistency': 100.0,
        'photometric_consistency': 0.0,
        'style_consistency': 50.0,
        'subjective_quality': 52.32,
        'motion_accuracy': 50.77,
        'motion_magnitude': 36.95,
        'motion_smoothness': 33.33,
    }
    assert found['static'] == 52.16  # 365.12 / 7
    assert found['dynamic'] == 48.62  # 486.17 / 10
    assert found['average'] == 50.39
    assert (found['instances'], found['missing']) == (3, [])


def test_missing_scores_are_null(tmp_path, capsys):
    score(tmp_path, 'static', 'a', {**HALF, 'subjective_quality': {'clip_iqa+': 0.5842}})
    score(tmp_path, 'dynamic', 'c', MOVING)
    assert main(['evaluate', 'worldscore-scores', '--out', str(tmp_path)]) == 0
    found = json.loads((tmp_path / 'worldscore.json').read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (
        found['missing'] == ['subjective_quality']
        and found['aspects']['subjective_quality'] is None
    )
    assert found['static'] is found['dynamic'] is found['average'] is None
    assert found['aspects']['motion_smoothness'] == 33.33
    score(tmp_path, 'static', 'd', {'camera_control': {'camera_error': 3.0}})
    assert main(['evaluate', 'worldscore-scores', '--out', str(tmp_path)]) == 1
    assert 'camera_control, camera_error: cannot be read' in capsys.readouterr().err


def test_scores_are_clipped_and_aspects_are_the_published_ones():
    assert len(STATIC) == 7 and len(DYNAMIC) == 3
    clip = STATIC['content_alignment']['clip_score']
    assert clip.normalised(-100.0) == 0.0 and clip.normalised(100.0) == 1.0
    error = STATIC['camera_control']['camera_error']
    assert error.normalised([100.0, 100.0]) == 0.0 and error.normalised([0.0, 0.0]) == 1.0
    assert STATIC['3d_consistency']['reprojection_error'].normalised(100.0) == 0.0
