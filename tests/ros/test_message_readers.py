"""Node and bag read one table of inputs alike: frame, K, depth, pose, or the rejection's words."""

from __future__ import annotations

import re

from bag_messages import HEIGHT, WIDTH, write
from depth_cases import DEPTHS
from message_cases import CAMERAS, IMAGES, TIME, Case
from node_reader import NodeReader, received
import numpy as np
from pose_cases import POSES
import pytest

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.interface import Observation

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
    values = {'observe.pose_source': 'pose', 'frames.base': 'camera'}
    reader = NodeReader({**values, 'sensors.accept': case.accept, **case.node})
    sent = [('/tf_static', case.static), *(('/pose', case.pose(time)) for time in case.sent)]
    sent += [('/depth_info', case.depth_info), ('/info', case.info), ('/depth', case.depth)]
    for topic, message in [*sent, ('/image', case.image)]:
        if message is not None:
            reader.receive(topic, received(message))
    found = reader.observe()
    if not found:
        raise ValueError('; '.join(reader.said))
    return found[TIME], list(reader.doubts.warnings.values())


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
    expected_K = [[case.f, 0, case.cx], [0, case.fy or case.f, case.cy], [0, 0, 1]]
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
