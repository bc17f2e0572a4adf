"""Keyframe decisions, tested by invariances and thresholds."""

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
    keyframes.accept(first, 100.0)
    return keyframes.decide(second, 100.0 + seconds, lambda: observed)


def never() -> float:
    raise AssertionError('the memory was asked')


def test_first_frame_is_a_keyframe_also_after_reset():
    keyframes = KeyframeSelector(CONFIG)
    assert keyframes.decide(np.eye(4), 0.0, never).reason == 'first'
    keyframes.accept(np.eye(4), 0.0)
    assert keyframes.decide(np.eye(4), 0.0, never).reason == 'stationary'
    keyframes.reset()
    assert keyframes.decide(np.eye(4), 0.0, never).reason == 'first'


@given(transforms)
def test_stationary_camera_skips_without_reading_the_memory(camera):
    keyframes = KeyframeSelector(CONFIG)
    keyframes.accept(camera, 0.0)
    decision = keyframes.decide(camera, 1.0, never)
    assert not decision.keyframe and decision.reason == 'stationary'


@given(transforms, transforms, transforms)
def test_decision_is_invariant_to_world_frame_and_direction(world, first, second):
    here = after(first, second)
    assert after(world @ first, world @ second) == here
    assert after(second, first) == here


@given(transforms, transforms)
def test_reanchor_transforms_the_last_keyframe(jump, camera):
    keyframes = KeyframeSelector(CONFIG)
    keyframes.accept(camera, 0.0)
    keyframes.reanchor(jump)
    assert keyframes.decide(jump @ camera, 1.0, never).reason == 'stationary'


@pytest.mark.parametrize(
    ('turn', 'shift', 'reason'),
    [
        ((0.0, 0.0, 0.0), (0.0, 0.3, 0.39), 'stationary'),
        ((0.0, 0.0, 0.0), (0.0, 0.3, 0.41), 'uncovered'),
        ((0.0, 0.29, 0.0), (0.0, 0.0, 0.0), 'stationary'),
        ((0.31, 0.0, 0.0), (0.0, 0.0, 0.0), 'uncovered'),
        ((0.0, 0.0, math.pi), (0.0, 0.0, 0.0), 'uncovered'),
    ],
)
def test_motion_thresholds(turn, shift, reason):
    assert after(np.eye(4), rigid(turn, shift)).reason == reason


def test_covered_view_is_skipped_until_refresh():
    moved = rigid(shift=(1.0, 0.0, 0.0))
    assert after(np.eye(4), moved, observed=0.79).reason == 'uncovered'
    assert after(np.eye(4), moved, observed=0.81).reason == 'covered'
    assert after(np.eye(4), moved, observed=1.0, seconds=10.0).reason == 'refresh'
    assert after(np.eye(4), np.eye(4), seconds=10.0).reason == 'refresh'


def test_time_set_back_makes_a_keyframe():
    assert after(np.eye(4), np.eye(4), seconds=-60.0, observed=1.0).keyframe


@given(st.tuples(small, small, small), st.tuples(small, small, small))
def test_motion_equals_rotation_vector_and_is_symmetric(turn, shift):
    transform = rigid(turn, shift)
    distance, angle = motion(transform)
    length = float(np.linalg.norm(turn))
    expected = min(length % (2 * math.pi), 2 * math.pi - length % (2 * math.pi))
    assert distance == pytest.approx(float(np.linalg.norm(shift)), abs=1e-9)
    assert angle == pytest.approx(expected, abs=1e-6)
    assert motion(np.linalg.inv(transform)) == pytest.approx((distance, angle), abs=1e-6)


def test_negative_thresholds_are_rejected():
    with pytest.raises(ValueError, match='gain'):
        KeyframeConfig(gain=-0.1)
