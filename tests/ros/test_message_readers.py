"""Node and bag read one table of inputs alike: frame, K, depth, pose, or the rejection's words."""

from __future__ import annotations

import importlib
import re
from typing import Any

from bag_messages import HEIGHT, STORE, WIDTH, write
from depth_cases import DEPTHS
from message_cases import CAMERAS, IMAGES, TIME, Case
import numpy as np
from pose_cases import POSES
import pytest

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.interface import Observation
from mirage_model.messages.camera_info import read_camera
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import read_pose, read_transform, seconds
from mirage_model.messages.transform_tree import TransformTree

CASES = [*CAMERAS, *IMAGES, *DEPTHS, *POSES]


def from_bag(case: Case, folder) -> tuple[Observation, list[str]]:
    more = {'/pose': [(time, case.pose(time)) for time in case.sent]}
    if case.static is not None:
        more['/tf_static'] = [(0.0, case.static)]
    topics = {'/image': [case.image], '/info': [case.info], '/depth': [case.depth]}
    options = {'base_frame': case.node.get('frames.base', 'camera')} | case.bag
    if case.depth_info is not None:
        topics['/depth_info'] = [case.depth_info]
        options['depth_camera_info'] = '/depth_info'
    config = BagConfig(
        image='/image',
        camera_info='/info',
        depth='/depth',
        pose='/pose',
        accept=case.accept,
        **options,
    )
    layout = Layout(height=HEIGHT, width=WIDTH, rate=10.0, least=1)
    path = write(folder / 'bag', topics, more=more, delay=case.delay)
    bag = Bag(path, config, layout)
    listing = bag.listing()
    if not listing.parts:
        raise ValueError('; '.join(reason for _, _, reason in listing.left_out))
    (part,) = listing.parts
    clip = bag.load(part)
    assert [reason for _, _, reason in bag.listing().left_out] == bag.doubts
    observation = Observation(
        image=clip.frames[0].numpy(),
        K=clip.cameras.K[0].numpy(),
        world_from_camera=clip.cameras.world_from_camera[0].numpy(),
        time=float(clip.cameras.times[0]),
        depth=clip.depth[0].numpy(),
    )
    return observation, bag.doubts


def in_node(case: Case) -> tuple[Observation, list[str]]:
    """Read rclpy's messages with the calls of the node's callbacks."""
    serialization = pytest.importorskip('rclpy.serialization')
    from mirage_ros.convert import observation_from_messages
    from mirage_ros.declaration import from_values
    from mirage_ros.parameters import NodeParameters
    from mirage_ros.trajectory import CameraFrames

    def received(message: Any) -> Any:
        kind = message.__msgtype__
        data = bytes(STORE.serialize_cdr(message, kind))
        package, folder, name = kind.split('/')
        rclpy_type = getattr(importlib.import_module(f'{package}.{folder}'), name)
        return serialization.deserialize_message(data, rclpy_type)

    values = {'observe.pose_source': 'pose', 'frames.base': 'camera', 'tf.wait': 0.0}
    parameters = from_values(NodeParameters, values | case.node)
    doubts = Doubts(case.accept, parameter='sensors.accept')
    tree = TransformTree(max_age=parameters.tf.history)
    for message in [] if case.static is None else received(case.static).transforms:
        tree.add(*read_transform(message), static=True)
    for message in (received(case.pose(time)) for time in case.sent):
        if parameters.observe.pose_source == 'tf':
            for transform in message.transforms:
                tree.add(*read_transform(transform), static=False)
        else:
            pose = read_pose(message, base_frame=parameters.frames.base, name='pose')
            tree.add(*pose, static=False)
    seed, info, depth = (received(m) for m in (case.image, case.info, case.depth))
    frames = CameraFrames(parameters, tree)
    camera = read_camera(info, doubts)
    frames.set_camera(camera)
    if case.depth_info is not None:
        frames.set_depth_camera(read_camera(received(case.depth_info), doubts))
    at = seconds(seed.header.stamp)
    observation = observation_from_messages(
        seed,
        info,
        depth,
        world_from_camera=frames.world_from_camera(info.header.frame_id, at),
        max_pixels=10**6,
        doubts=doubts,
        depth_camera=frames.depth_camera(depth, camera),
    )
    return observation, list(doubts.warnings.values())


def test_enough_inputs_with_names_of_their_own():
    assert len(CASES) == len({case.name for case in CASES}) >= 120


@pytest.mark.parametrize('reader', ['node', 'bag'])
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_input(case, reader, tmp_path):
    read = (lambda: from_bag(case, tmp_path)) if reader == 'bag' else (lambda: in_node(case))
    if case.rejection:
        with pytest.raises(ValueError, match=case.rejection):
            read()
        return
    observation, doubts = read()
    assert len(doubts) == bool(case.doubt) and re.search(case.doubt, ''.join(doubts))
    inner = observation.image[2:-2, 2:-2]  # a mosaic is blurred at its border
    assert inner.dtype == np.uint8 and inner.shape == (HEIGHT - 4, WIDTH - 4, 3)
    assert np.abs(inner.astype(int) - case.colour).max() <= case.error
    expected_K = [[case.f, 0, case.cx], [0, case.fy or case.f, 5.5], [0, 0, 1]]
    np.testing.assert_allclose(observation.K, expected_K, rtol=1e-6)
    assert observation.depth.dtype == np.float32
    np.testing.assert_allclose(observation.depth, case.metres, rtol=1e-6)
    expected = np.eye(4)
    expected[0, 3], expected[1, 3] = (
        case.x,
        2.0 if case.node.get('observe.pose_source', 'pose') != 'tf' else 0.0,
    )
    np.testing.assert_allclose(observation.world_from_camera, expected, atol=1e-6)
    assert observation.time == TIME
