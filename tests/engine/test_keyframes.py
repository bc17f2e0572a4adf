"""Keyframes by identities: what must not matter does not, and what must matter does."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mirage_model.engine.keyframes import KeyframeConfig, KeyframeSelector, motion

CONFIG = KeyframeConfig(distance=0.5, angle=0.3, gain=0.2, refresh=10.0)

small = st.floats(-2.0, 2.0)
transforms = st.builds(
    lambda turn, shift: rigid(turn, shift),
    st.tuples(small, small, small),
    st.tuples(small, small, small),
)


def rigid(turn=(0.0, 0.0, 0.0), shift=(0.0, 0.0, 0.0)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    result[:3, 3] = shift
    return result


def after(first: np.ndarray, second: np.ndarray, *, seconds=1.0, observed=0.0, config=CONFIG):
    keyframes = KeyframeSelector(config)
    keyframes.taken(first, 100.0)
    return keyframes.judge(second, 100.0 + seconds, lambda: observed)


def never() -> float:
    raise AssertionError('the memory was asked')


def test_the_first_frame_is_a_keyframe_and_so_is_the_first_after_a_reset():
    keyframes = KeyframeSelector(CONFIG)
    assert keyframes.judge(np.eye(4), 0.0, never).reason == 'first'
    keyframes.taken(np.eye(4), 0.0)
    assert keyframes.judge(np.eye(4), 0.0, never).reason == 'still'
    keyframes.reset()
    assert keyframes.judge(np.eye(4), 0.0, never).reason == 'first'


@given(transforms)
def test_a_camera_that_stands_still_is_no_keyframe_and_the_memory_is_not_asked(camera):
    keyframes = KeyframeSelector(CONFIG)
    keyframes.taken(camera, 0.0)
    verdict = keyframes.judge(camera, 1.0, never)
    assert not verdict.keyframe and verdict.reason == 'still'


@given(transforms, transforms, transforms)
def test_another_world_frame_and_the_way_back_give_the_same_verdict(world, first, second):
    here = after(first, second)
    assert after(world @ first, world @ second) == here
    assert after(second, first) == here


@given(transforms, transforms)
def test_a_jump_of_the_world_frame_moves_the_last_keyframe_along(jump, camera):
    keyframes = KeyframeSelector(CONFIG)
    keyframes.taken(camera, 0.0)
    keyframes.reanchor(jump)
    assert keyframes.judge(jump @ camera, 1.0, never).reason == 'still'


@pytest.mark.parametrize(
    ('turn', 'shift', 'reason'),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.3, 0.39), 'still'),
        ((0.0, 0.0, 0.0), (0.0, 0.3, 0.41), 'new'),
        ((0.0, 0.29, 0.0), (0.0, 0.0, 0.0), 'still'),
        ((0.31, 0.0, 0.0), (0.0, 0.0, 0.0), 'new'),
        ((0.0, 0.0, math.pi), (0.0, 0.0, 0.0), 'new'),
    ],
)
def test_the_thresholds_of_motion(turn, shift, reason):
    assert after(np.eye(4), rigid(turn, shift)).reason == reason


def test_what_is_known_is_dropped_until_it_is_old():
    moved = rigid(shift=(1.0, 0.0, 0.0))
    assert after(np.eye(4), moved, observed=0.79).reason == 'new'
    assert after(np.eye(4), moved, observed=0.81).reason == 'known'
    assert after(np.eye(4), moved, observed=1.0, seconds=10.0).reason == 'old'
    assert after(np.eye(4), np.eye(4), seconds=10.0).reason == 'old'


def test_after_time_was_set_back_the_next_frame_is_a_keyframe():
    assert after(np.eye(4), np.eye(4), seconds=-60.0, observed=1.0).keyframe


@given(st.tuples(small, small, small), st.tuples(small, small, small))
def test_motion_is_that_of_the_rotation_vector_and_the_same_the_other_way(turn, shift):
    transform = rigid(turn, shift)
    distance, angle = motion(transform)
    length = float(np.linalg.norm(turn))
    expected = min(length % (2 * math.pi), 2 * math.pi - length % (2 * math.pi))
    assert distance == pytest.approx(float(np.linalg.norm(shift)), abs=1e-9)
    assert angle == pytest.approx(expected, abs=1e-6)
    assert motion(np.linalg.inv(transform)) == pytest.approx((distance, angle), abs=1e-6)


def test_thresholds_below_nothing_are_refused():
    with pytest.raises(ValueError, match='gain'):
        KeyframeConfig(gain=-0.1)
