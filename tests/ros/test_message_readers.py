"""One table of inputs, read by the node and from a bag: frame, K, depth, pose, or the words of the
rejection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
import importlib
from typing import Any

from bag_messages import (
    HEIGHT,
    STORE,
    WIDTH,
    camera_info,
    compressed,
    compressed_depth,
    image,
    odometry,
    pose_message,
    transforms,
    write,
)
import numpy as np
import pytest

from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout
from mirage_model.interface import Observation
from mirage_model.messages.poses import read_pose, read_transform, seconds
from mirage_model.messages.transform_tree import TransformTree

TIME = 100.0
RGB = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
BGR = RGB[..., ::-1]
GREY = RGB[..., :1]
ALPHA = np.full((HEIGHT, WIDTH, 1), 7, np.uint8)
METRES = np.full((HEIGHT, WIDTH), 2.5, np.float32)
MILLIMETRES = np.full((HEIGHT, WIDTH), 2500, np.uint16)
MOUNT = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def wide(pixels: np.ndarray) -> np.ndarray:
    """The same values in 16 bits."""
    return pixels.astype(np.uint16) * 257


def mosaic(pattern: str) -> np.ndarray:
    values = [RGB[0, 0, 'rgb'.index(letter)] for letter in pattern]
    return np.tile(np.array(values, np.uint8).reshape(2, 2), (HEIGHT // 2, WIDTH // 2))


def yuv(first: int, second: int) -> np.ndarray:
    return np.tile(np.array([first, second], np.uint8), (HEIGHT, WIDTH, 1))


@dataclass(frozen=True)
class Case:
    """Messages of one observation at `TIME`, and what both readers make of them.

    ``rejection`` are words of the error; ``bag`` are options of `BagConfig`, ``node`` parameters
    of the node.
    """

    name: str
    image: Any = field(default_factory=lambda: image(TIME, RGB, 'rgb8'))
    info: Any = field(default_factory=lambda: camera_info(TIME))
    depth: Any = field(default_factory=lambda: image(TIME, METRES, '32FC1'))
    pose: Callable[[float], Any] = lambda time: pose_message(time, time - 90)
    static: Any = None
    colour: tuple[int, int, int] = (200, 100, 50)
    error: int = 0
    f: float = 20.0
    metres: float = 2.5
    x: float = 10.0
    rejection: str = ''
    bag: dict = field(default_factory=dict)
    node: dict = field(default_factory=dict)


CASES = [
    # colours
    *(
        Case(name, image=image(TIME, pixels, name, padding=5))
        for name, pixels in {
            'rgb8': RGB,
            'bgr8': BGR,
            'rgba8': np.dstack([RGB, ALPHA]),
            'bgra8': np.dstack([BGR, ALPHA]),
        }.items()
    ),
    *(
        Case(f'{name} {order}', image=image(TIME, wide(pixels), name, big=order == 'big'))
        for order in ('little', 'big')
        for name, pixels in {
            'rgb16': RGB,
            'bgr16': BGR,
            'rgba16': np.dstack([RGB, ALPHA]),
            'bgra16': np.dstack([BGR, ALPHA]),
        }.items()
    ),
    *(
        Case(name, image=image(TIME, pixels, name), colour=(200, 200, 200))
        for name, pixels in {'mono8': GREY, '8UC1': GREY, 'mono16': wide(GREY)}.items()
    ),
    *(
        Case(f'bayer_{pattern}{bits}', image=image(TIME, pixels, f'bayer_{pattern}{bits}'))
        for pattern in ('rggb', 'bggr', 'gbrg', 'grbg')
        for bits, pixels in ((8, mosaic(pattern)), (16, wide(mosaic(pattern))))
    ),
    # grey of brightness 120 has (120 - 16) * 255 / 219 = 121 in RGB
    *(
        Case(name, image=image(TIME, yuv(*pair), name), colour=(121, 121, 121), error=1)
        for name, pair in {
            'uyvy': (128, 120),
            'yuv422': (128, 120),
            'yuyv': (120, 128),
            'yuv422_yuy2': (120, 128),
        }.items()
    ),
    *(
        Case(
            f'{name} of height {height}',
            image=image(
                TIME,
                np.repeat(np.uint8([120] * HEIGHT + [128] * (HEIGHT // 2))[:, None], WIDTH, 1),
                name,
                height=height,
            ),
            colour=(121, 121, 121),
            error=1,
        )
        for name in ('nv12', 'nv21')
        for height in (HEIGHT, HEIGHT * 3 // 2)
    ),
    Case('PNG', image=compressed(TIME, RGB)),
    Case('JPEG', image=compressed(TIME, RGB, ending='.jpg', form='jpeg'), error=4),
    Case('8UC3', image=image(TIME, RGB, '8UC3'), rejection="image: encoding '8UC3' is not one of"),
    Case('TIFF', image=compressed(TIME, RGB, ending='.tiff', form='tiff'), rejection="not 'tiff'"),
    Case('rows too short', image=image(TIME, RGB[..., :2], 'rgb8'), rejection='in rows of 32'),
    Case('image of another size', image=image(TIME, RGB[:6], 'rgb8'), rejection='image: 6x16'),
    Case(
        'image of another frame',
        image=image(TIME, RGB, 'rgb8', frame='left'),
        rejection="image: in frame 'left', its camera_info in 'camera'",
    ),
    Case('leading slash', image=image(TIME, RGB, 'rgb8', frame='/camera')),
    # depth
    *(
        Case(f'{name} {order}', depth=image(TIME, stored, name, padding=6, big=order == 'big'))
        for order in ('little', 'big')
        for name, stored in {'16UC1': MILLIMETRES, 'mono16': MILLIMETRES, '32FC1': METRES}.items()
    ),
    *(
        Case(f'depth of {value}', depth=image(TIME, METRES * value, '32FC1'), metres=np.nan)
        for value in (np.nan, np.inf, 0.0, -1.0)
    ),
    Case('zero 16UC1', depth=image(TIME, MILLIMETRES * 0, '16UC1'), metres=np.nan),
    *(
        Case(form, depth=compressed_depth(TIME, MILLIMETRES, form))
        for form in ('16UC1; compressedDepth png', '16UC1; compressedDepth')
    ),
    *(
        Case(form, depth=compressed_depth(TIME, MILLIMETRES, form, 6200.0, 20.0))
        for form in ('32FC1; compressedDepth png', '32FC1; compressedDepth')
    ),
    Case(
        'depth as plain PNG',
        depth=compressed_depth(TIME, MILLIMETRES, 'png'),
        rejection="depth: format 'png' is not one of",
    ),
    Case(
        'depth as colours',
        depth=image(TIME, RGB, 'rgb8'),
        rejection="depth: encoding 'rgb8' is not one of",
    ),
    Case(
        'depth of another size',
        depth=image(TIME, METRES[:6], '32FC1'),
        rejection='depth: 6x16, the image is 12x16: it must be registered',
    ),
    # camera_info
    Case('P before K', info=camera_info(TIME, d=0.1)),
    Case('K without P', info=camera_info(TIME, p=0.0, f=21.0), f=21.0),
    Case(
        'distorted', info=camera_info(TIME, p=0.0, d=0.1), rejection='rectified images are needed'
    ),
    Case('uncalibrated', info=camera_info(TIME, f=0.0), rejection='a calibrated camera'),
    Case(
        'binning', info=camera_info(TIME, binning=2), rejection='binning and regions of interest'
    ),
    Case(
        'region', info=camera_info(TIME, x_offset=4), rejection='binning and regions of interest'
    ),
    # poses
    Case(
        'odometry of the camera',
        pose=lambda time: odometry(time, time - 90, 'camera'),
        node={'observe.pose_source': 'odometry'},
    ),
    Case(
        'odometry of a mounted base',
        pose=lambda time: odometry(time, time - 90, '/base_link'),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'odometry',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'odometry without a child frame',
        pose=lambda time: odometry(time, time - 90),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'odometry',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'odometry and a static mount',
        pose=lambda time: odometry(time, time - 90, 'base_link'),
        static=transforms(0.0, ('base_link', 'camera', 0.5)),
        x=10.5,
        node={'observe.pose_source': 'odometry', 'frames.base': 'base_link'},
    ),
    Case(
        'odometry of an unknown base',
        pose=lambda time: odometry(time, time - 90, 'wheels'),
        rejection="no transforms join 'camera' to",
        node={'observe.pose_source': 'odometry', 'frames.base': 'base_link'},
    ),
    Case(
        'transforms',
        pose=lambda time: transforms(time, ('/map', 'odom', 3.0), ('odom', '/base', time - 90)),
        static=transforms(0.0, ('base', 'camera', 0.5)),
        x=13.5,
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'transforms and a mount',
        pose=lambda time: transforms(time, ('map', 'base_link', time - 90)),
        x=11.0,
        bag={'base_from_camera': MOUNT},
        node={
            'observe.pose_source': 'tf',
            'frames.base': 'base_link',
            'frames.base_from_camera': MOUNT,
        },
    ),
    Case(
        'transforms to an ancestor that is not the world',
        pose=lambda time: transforms(time, ('odom', 'map', -1.0), ('odom', 'camera', time - 90)),
        x=11.0,
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'transforms that lead elsewhere',
        pose=lambda time: transforms(time, ('earth', 'camera', 0.0)),
        rejection="no transforms join 'camera' to 'map'; the frames that are known: camera, earth",
        node={'observe.pose_source': 'tf'},
    ),
    Case(
        'quaternion of length 0.5',
        pose=lambda time: pose_message(time, 0.0, w=0.5),
        rejection='pose: the quaternion has length 0.5, not 1',
    ),
    Case(
        'position that is not finite',
        pose=lambda time: pose_message(time, np.nan),
        rejection='is not finite',
    ),
    Case(
        'position beyond 10 km',
        pose=lambda time: pose_message(time, 10_001.0),
        rejection='is further than 10 km from the origin of its frame',
    ),
    Case(
        'pose in its own frame',
        pose=lambda time: pose_message(time, 0.0, frame='camera'),
        rejection="pose of 'camera' in 'camera': two different frames are needed",
    ),
]
SENT = (TIME - 0.25, TIME + 0.25)
"""Times of the poses, around that of the image."""


def from_bag(case: Case, folder) -> Observation:
    later = [] if case.static is None else [(0.0, case.static)]
    poses = [(time, case.pose(time)) for time in SENT]
    more = {'/pose': poses} | ({'/tf_static': later} if later else {})
    topics = {'/image': [case.image], '/info': [case.info], '/depth': [case.depth]}
    config = BagConfig(
        image='/image', camera_info='/info', depth='/depth', pose='/pose', **case.bag
    )
    layout = Layout(height=HEIGHT, width=WIDTH, rate=10.0, least=1)
    bag = Bag(write(folder / 'bag', topics, more=more), config, layout)
    (part,) = bag.listing().parts
    clip = bag.load(part)
    return Observation(
        image=clip.frames[0].numpy(),
        K=clip.cameras.K[0].numpy(),
        world_from_camera=clip.cameras.world_from_camera[0].numpy(),
        time=float(clip.cameras.times[0]),
        depth=clip.depth[0].numpy(),
    )


def in_node(case: Case) -> Observation:
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
    tree = TransformTree(max_age=parameters.tf.history)
    for message in [] if case.static is None else received(case.static).transforms:
        tree.add(*read_transform(message), static=True)
    for message in (received(case.pose(time)) for time in SENT):
        if parameters.observe.pose_source == 'tf':
            for transform in message.transforms:
                tree.add(*read_transform(transform), static=False)
        else:
            pose = read_pose(message, base_frame=parameters.frames.base, name='pose')
            tree.add(*pose, static=False)
    seed, info, depth = (received(m) for m in (case.image, case.info, case.depth))
    camera = info.header.frame_id
    at = seconds(seed.header.stamp)
    return observation_from_messages(
        seed,
        info,
        depth,
        world_from_camera=CameraFrames(parameters, tree).world_from_camera(camera, at),
        max_pixels=10**6,
        doubts=doubts,
    )


@pytest.mark.parametrize('reader', ['node', 'bag'])
@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_input(case, reader, tmp_path):
    read = (lambda: from_bag(case, tmp_path)) if reader == 'bag' else (lambda: in_node(case))
    if case.rejection:
        with pytest.raises(ValueError) as raised:
            read()
        assert case.rejection in str(raised.value)
        return
    observation = read()
    inner = observation.image[2:-2, 2:-2]  # a mosaic is blurred at its border
    assert inner.dtype == np.uint8 and inner.shape == (HEIGHT - 4, WIDTH - 4, 3)
    assert np.abs(inner.astype(int) - case.colour).max() <= case.error
    assert observation.K.tolist() == [[case.f, 0, 7.5], [0, case.f, 5.5], [0, 0, 1]]
    assert observation.depth.dtype == np.float32
    np.testing.assert_allclose(observation.depth, case.metres, rtol=1e-6)
    expected = np.eye(4)
    expected[0, 3], expected[1, 3] = case.x, observation.world_from_camera[1, 3]
    np.testing.assert_allclose(observation.world_from_camera, expected, atol=1e-6)
    assert observation.time == TIME
