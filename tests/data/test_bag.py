from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
import multiprocessing

from bag_messages import (
    HEIGHT,
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
from rosbags.rosbag2 import StoragePlugin
import torch

from mirage_model.data.bag import Bag
from mirage_model.data.bag_index import nearest_rows
from mirage_model.data.config import BagConfig
from mirage_model.data.sources import Layout

CONFIG = BagConfig(
    image='/image',
    camera_info='/info',
    pose='/odometry',
    depth='/depth',
    base_frame='camera',
    accept=('body_frame',),
)
LAYOUT = Layout(height=6, width=8, rate=10.0, least=5, frames=20)


def picture(i: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), (i, 100, 200), np.uint8)


def messages(count: int = 20) -> dict[str, list]:
    """Return messages by topic: images at 10 Hz from 100 s on, at 1 m/s along x.

    Odometry comes at 4 Hz and depth 5 ms after its image.
    """
    times = [100 + i / 10 for i in range(count)]
    millimetres = [np.full((HEIGHT, WIDTH), 1000 + i, np.uint16) for i in range(count)]
    millimetres[3][:, :8] = 0
    return {
        '/image': [image(t, picture(i), 'rgb8') for i, t in enumerate(times)],
        '/info': [camera_info(times[0]), camera_info(times[-1])],
        '/odometry': [odometry(99.9 + k / 4, k / 4 - 0.1) for k in range(9)],
        '/depth': [image(t + 0.005, z, '16UC1') for t, z in zip(times, millimetres)],
    }


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_a_clip_equals_hand_computed_values(tmp_path, plugin):
    """The camera sits a metre ahead of the base and looks along its x."""
    mount = (1.0, 0.0, 0.0, -0.5, 0.5, -0.5, 0.5)
    config = replace(CONFIG, base_frame='base_link', base_from_camera=mount)
    bag = Bag(write(tmp_path / 'recording', messages(), plugin), config, LAYOUT)
    listing = bag.listing()
    assert not listing.left_out
    (part,) = listing.parts
    assert (part.name, part.scene, part.rows) == ('recording-00000', 'recording', tuple(range(20)))
    spawn = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:  # as `prepare` loads it
        clip = pool.submit(bag.load, part).result()
    assert clip.frames.shape == (20, 6, 8, 3) and clip.metric and not clip.labelled
    assert clip.frames[:, 3, 4].tolist() == [[i, 100, 200] for i in range(20)]
    # halved: c becomes (c + 0.5) / 2 - 0.5
    K = [[10.0, 0.0, 3.5], [0.0, 10.0, 2.5], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(clip.cameras.K[0], torch.tensor(K))
    assert clip.cameras.times.tolist() == pytest.approx([100 + i / 10 for i in range(20)])
    for i, matrix in enumerate(clip.cameras.world_from_camera):
        # optical z is world x, optical x is world -y, optical y is world -z
        expected = [[0, 0, 1, 1 + i / 10], [-1, 0, 0, 2], [0, -1, 0, 0], [0, 0, 0, 1]]
        torch.testing.assert_close(matrix, torch.tensor(expected), atol=1e-5, rtol=0)
    assert clip.depth[7].unique().tolist() == pytest.approx([1.007])
    assert clip.depth[3, :, :4].isnan().all() and not clip.depth[3, :, 4:].isnan().any()


@pytest.mark.parametrize(
    ('make', 'expected'),
    [
        (lambda t, p: image(t, p[..., ::-1], 'bgr8', padding=5), [3, 100, 200]),
        (lambda t, p: image(t, np.dstack([p, p[..., :1]]), 'rgba8'), [3, 100, 200]),
        (lambda t, p: image(t, np.dstack([p[..., ::-1], p[..., :1]]), 'bgra8'), [3, 100, 200]),
        (lambda t, p: image(t, p[..., :1], 'mono8', padding=1), [3, 3, 3]),
        (compressed, [3, 100, 200]),
    ],
)
def test_all_encodings_are_converted_to_rgb(tmp_path, make, expected):
    topics = messages(8)
    topics['/image'] = [make(100 + i / 10, picture(i)) for i in range(8)]
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT)
    clip = bag.load(bag.listing().parts[0])
    assert clip.frames[3, 0, 0].tolist() == clip.frames[3, 5, 7].tolist() == expected


@pytest.mark.parametrize('big', [False, True])
def test_float_depth_of_either_byte_order(tmp_path, big):
    topics = messages(8)
    metres = np.full((HEIGHT, WIDTH), 2.5, np.float32)
    metres[0], metres[-1] = np.inf, -1.0
    topics['/depth'] = [image(100 + i / 10, metres, '32FC1', big=big) for i in range(8)]
    layout = Layout(height=HEIGHT, width=WIDTH, rate=10.0, least=5)
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, layout)
    depth = bag.load(bag.listing().parts[0]).depth
    assert depth[:, [0, -1]].isnan().all() and (depth[:, 1:-1] == 2.5).all()


def test_doubts_about_depth_are_logged_once(tmp_path, caplog):
    topics = messages(12)
    empty = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    topics['/depth'] = [image(100 + i / 10, empty, '32FC1') for i in range(12)]
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, replace(LAYOUT, frames=6))
    for part in bag.listing().parts:
        bag.load(part)
    (told,) = caplog.messages
    assert told.startswith(f'{bag.path}: /depth: depth: none of 12x16 pixels has a measurement')
    assert bag.doubts == [told.removeprefix(f'{bag.path}: /depth: ')]


def test_camera_poses_without_depth(tmp_path):
    topics = messages(8)
    del topics['/depth'], topics['/odometry']
    topics['/pose'] = [pose_message(100 + i / 10, float(i)) for i in range(8)]
    config = replace(CONFIG, pose='/pose', depth='')
    bag = Bag(write(tmp_path / 'b', topics), config, LAYOUT)
    clip = bag.load(bag.listing().parts[0])
    assert clip.depth.isnan().all()
    assert clip.cameras.world_from_camera[5, :3, 3].tolist() == [5.0, 2.0, 0.0]


def test_poses_from_transforms(tmp_path):
    """The base moves at 1 m/s, the camera is mounted 0.5 m ahead of it."""
    topics = messages(8)
    del topics['/depth'], topics['/odometry']
    config = replace(CONFIG, pose='/tf', depth='', pose_gap=1.0)
    path = write(
        tmp_path / 'c',
        topics,
        more={
            '/tf': [(t, transforms(t, ('map', 'base', t - 99))) for t in (99.0, 100.0, 101.0)],
            '/tf_static': [(99.0, transforms(0.0, ('base', 'camera', 0.5)))],
        },
    )
    bag = Bag(path, config, LAYOUT)
    np.testing.assert_allclose(bag.world_from_camera[:, 0, 3], 1.5 + np.arange(8) / 10)
    assert (bag.camera_frame, bag.world_frame) == ('camera', 'map')
    with pytest.raises(ValueError, match="join 'camera' to 'earth'; .* known: base, camera, map"):
        Bag(path, replace(config, world_frame='earth'), LAYOUT).listing()
    recorded = bag.recorded.load(bag.listing().parts[0])
    assert recorded.frames.shape == (8, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(recorded.cameras.K[0], bag.K)


def test_images_before_the_first_transform_are_left_out(tmp_path):
    """Localisation starts after four images, the static transform comes at the end."""
    topics = messages(20)
    del topics['/depth'], topics['/odometry']
    moves = [
        (t, transforms(t, (parent, child, x)))
        for i in range(20)
        for t in [100 + i / 10]
        for parent, child, x, since in (('map', 'odom', 0.0, 4), ('odom', 'base', i / 10, 0))
        if i >= since
    ]
    static = [(101.9, transforms(101.9, ('base', 'camera', 0.5)))]
    path = write(tmp_path / 'c', topics, more={'/tf': moves, '/tf_static': static})
    config = replace(CONFIG, pose='/tf', depth='')
    bag = Bag(path, config, LAYOUT)
    listing = bag.listing()
    assert [len(part.rows) for part in listing.parts] == [16] and not bag.broken
    assert listing.left_out[0][2].startswith(
        '4 of 20 images have no pose on /tf: there are poses from 100.400000 to 101.9'
    )
    np.testing.assert_allclose(bag.world_from_camera[:, 0, 3], 0.5 + np.arange(4, 20) / 10)
    assert bag.load(listing.parts[0]).frames[0, 0, 0, 0] == 4
    never = [(200.0, transforms(200.0, ('map', 'odom', 0.0)))]
    others = [(t, m) for t, m in moves if m.transforms[0].child_frame_id == 'base']
    path = write(tmp_path / 'd', topics, more={'/tf': others + never, '/tf_static': static})
    with pytest.raises(
        ValueError, match="/tf: transforms are never known at one time: 'base' from"
    ):
        Bag(path, config, LAYOUT).listing()


def test_messages_after_a_clock_reset_are_left_out(tmp_path):
    """Stamps after the reset can repeat earlier stamps."""
    topics = messages(8)
    topics['/image'] += [image(90 + 5 * i, picture(i), 'rgb8') for i in range(4)]
    topics['/odometry'] += [odometry(90 + 5 * i, 50.0) for i in range(4)]
    bag = Bag(write(tmp_path / 'b', topics, in_order=True), CONFIG, LAYOUT)
    listing = bag.listing()
    assert [part.rows for part in listing.parts] == [tuple(range(8))]
    np.testing.assert_allclose(bag.world_from_camera[:, 0, 3], np.arange(8) / 10, atol=1e-9)
    assert len(bag.broken) == 2 and '4 messages on /odometry' in bag.broken[1]
    assert bag.broken[0].startswith(
        '4 messages on /image are left out since time goes backwards, the first: 90.000000 comes '
        'after 100.7'
    )
    assert [reason for _, _, reason in listing.left_out] == bag.broken


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('topic', ['/image', '/depth', '/odometry', '/info'])
def test_unreadable_messages_are_left_out_and_reported(tmp_path, topic, plugin):
    path = write(tmp_path / 'b', messages(), plugin, spoil={topic: 1})
    bag = Bag(path, CONFIG, LAYOUT)
    listing = bag.listing()
    (reason,) = bag.broken
    assert reason.startswith(f'1 messages on {topic} cannot be read, the first: ')
    assert reason in [reason for _, _, reason in listing.left_out]
    # without the second image or depth, the first is isolated; two poses suffice for all images
    lost = 2 if topic in ('/image', '/depth') else 0
    assert [len(part.rows) for part in listing.parts] == [20 - lost]
    frames = bag.load(listing.parts[0]).frames
    assert frames[:, 0, 0, 0].tolist() == list(range(lost, 20))


def test_a_topic_without_readable_messages_is_rejected(tmp_path):
    topics = {**messages(8), '/odometry': [odometry(100.0, 0.0)]}
    path = write(tmp_path / 'b', topics, spoil={'/odometry': 0})
    with pytest.raises(ValueError, match='/odometry has no poses; 1 messages on /odometry cannot'):
        Bag(path, CONFIG, LAYOUT).listing()


def test_invalid_and_repeated_poses_are_skipped(tmp_path):
    topics = messages()
    wrong = odometry(101.0, 7.0)
    wrong.pose.pose.orientation.w = 0.0
    topics['/odometry'] = [topics['/odometry'][0], *topics['/odometry'], wrong]
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT)
    assert [len(part.rows) for part in bag.listing().parts] == [20]
    np.testing.assert_allclose(bag.world_from_camera[:, 0, 3], np.arange(20) / 10, atol=1e-9)
    (reason,) = bag.broken
    assert reason.startswith('1 messages on /odometry hold no pose, the first: 101.000000')


def test_compressed_depth_is_decoded(tmp_path):
    stored = np.full((HEIGHT, WIDTH), 2500, np.uint16)
    stored[0] = 0
    layout = Layout(height=HEIGHT, width=WIDTH, rate=10.0, least=5)
    for name, form, a, b in (
        ('millimetres', '16UC1; compressedDepth png', 0.0, 0.0),
        ('inverse', '32FC1; compressedDepth', 6200.0, 20.0),
    ):
        topics = messages(8)
        topics['/depth'] = [compressed_depth(100 + i / 10, stored, form, a, b) for i in range(8)]
        bag = Bag(write(tmp_path / name, topics), CONFIG, layout)
        depth = bag.load(bag.listing().parts[0]).depth
        assert depth[:, 0].isnan().all()
        np.testing.assert_allclose(depth[:, 1:], 2.5, rtol=1e-6)
    topics['/depth'] = [compressed_depth(100 + i / 10, stored, 'png') for i in range(8)]
    bag = Bag(write(tmp_path / 'other', topics), CONFIG, layout)
    with pytest.raises(ValueError, match="/depth at 100.0*: depth: format 'png' is not one of"):
        bag.load(bag.listing().parts[0])


def test_images_without_pose_or_depth_are_reported(tmp_path):
    topics = messages()
    topics['/odometry'] = topics['/odometry'][2:]  # from 100.4 s on
    del topics['/depth'][15]
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT)
    listing = bag.listing()
    reasons = [reason for _, _, reason in listing.left_out]
    assert reasons[0].startswith(
        '4 of 20 images have no pose on /odometry: there are poses from 100.4'
    )
    assert reasons[1] == '1 of 20 images have no depth on /depth'
    assert '4 frames without a gap at 10 Hz' in reasons[2]
    assert [len(part.rows) for part in listing.parts] == [11]
    clip = bag.load(listing.parts[0])
    assert clip.frames[0, 0, 0, 0] == 4 and clip.depth[0, 0, 0] == pytest.approx(1.004)


def change(topic: str, sent: list) -> dict[str, list]:
    return {**messages(8), topic: sent}


@pytest.mark.parametrize(
    ('topics', 'message'),
    [
        (change('/image', messages(8)['/info']), '/image is of type sensor_msgs/msg/CameraInfo'),
        (
            change('/info', [camera_info(100.0), camera_info(101.0, frame='left')]),
            "/info changes within the bag, from 'camera' 12x16 to 'left' 12x16 at 101.0",
        ),
        (change('/info', [camera_info(100.0, p=0.0, d=0.1)]), 'rectified images are needed'),
        (change('/info', [camera_info(100.0, f=0.0)]), 'calibrated'),
        (
            change('/odometry', [pose_message(99.0, 0.0), pose_message(102.0, 0.0, frame='odom')]),
            'poses are in the frames map, odom',
        ),
        (
            change('/odometry', [pose_message(99.0, 0.0, w=0.5)]),
            'the first: 99.0*: pose: the quaternion has length 0.5',
        ),
    ],
)
def test_unusable_bags_are_rejected(tmp_path, topics, message):
    with pytest.raises(ValueError, match=message):
        Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT).listing()


@pytest.mark.parametrize(
    ('topic', 'sent', 'message'),
    [
        ('/image', lambda t: image(t, picture(0), '8UC3'), "encoding '8UC3' is not"),
        (
            '/image',
            lambda t: image(t, picture(0)[:6], 'rgb8'),
            'image: 6x16, its camera_info is of 12x16',
        ),
        ('/image', lambda t: image(t, picture(0)[..., :2], 'rgb8'), 'bytes in rows of 32 are not'),
        ('/depth', lambda t: image(t, picture(0), 'rgb8'), "depth: encoding 'rgb8' is not one of"),
    ],
)
def test_errors_of_images_contain_topic_and_time(tmp_path, topic, sent, message):
    topics = change(topic, [sent(100 + i / 10) for i in range(8)])
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT)
    with pytest.raises(ValueError, match=f'{topic}.*{message}'):
        bag.load(bag.listing().parts[0])


def test_missing_bags_topics_and_settings_are_rejected(tmp_path):
    (tmp_path / 'none').mkdir()
    for path in (tmp_path / 'none', tmp_path / 'missing'):
        with pytest.raises(ValueError, match='cannot be read as a bag'):
            Bag(path, CONFIG, LAYOUT).listing()
    topics = messages(8)
    del topics['/odometry']
    bag = Bag(write(tmp_path / 'b', topics), CONFIG, LAYOUT)
    with pytest.raises(ValueError, match="no topic '/odometry', there are /depth .*Image"):
        bag.listing()
    with pytest.raises(ValueError, match='base_from_camera: 1.0 2.0, must have 7 numbers'):
        BagConfig(**{**vars(CONFIG), 'base_from_camera': (1.0, 2.0)})


def test_poses_of_the_base_need_base_from_camera(tmp_path):
    """Without base_from_camera the optical axis would be the z axis of the base."""
    topics = messages()
    topics['/odometry'] = [odometry(99.9 + k / 4, k / 4 - 0.1, 'base_link') for k in range(9)]
    path = write(tmp_path / 'recording', topics)
    with pytest.raises(
        ValueError, match="join 'camera' to 'map'.*poses are of 'base_link': set base_from_camera"
    ):
        Bag(path, CONFIG, LAYOUT).listing()
    mount = (1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    config = replace(CONFIG, base_frame='base_link', base_from_camera=mount)
    assert Bag(path, config, LAYOUT).listing().parts


@pytest.mark.parametrize('plugin', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_without_metadata_are_read(tmp_path, plugin):
    complete = Bag(write(tmp_path / 'recording', messages(), plugin), CONFIG, LAYOUT)
    stamps = complete.stamps
    (tmp_path / 'recording' / 'metadata.yaml').unlink()
    (file,) = (tmp_path / 'recording').iterdir()
    for path in (tmp_path / 'recording', file):
        bag = Bag(path, CONFIG, LAYOUT)
        np.testing.assert_array_equal(bag.stamps, stamps)
        assert len(bag.load(bag.listing().parts[0]).frames) == 20


def test_nearest_equals_brute_force_in_linear_memory():
    """All pairs of eleven hours at 5 Hz would take 320 GB."""
    generator = np.random.default_rng(0)
    times, at = np.sort(generator.uniform(0, 9, 40)), np.sort(generator.uniform(-1, 10, 60))
    at[:2] = times[3], (times[4] + times[5]) / 2
    expected = np.abs(times[None] - at[:, None]).argmin(axis=1)
    np.testing.assert_array_equal(nearest_rows(times, at), expected)
    np.testing.assert_array_equal(nearest_rows(times[:1], at), 0)
    hours = np.arange(200_000) / 5
    np.testing.assert_array_equal(nearest_rows(hours, hours + 0.01), np.arange(200_000))


def test_undecodable_images_are_rejected_with_their_time(tmp_path):
    topics = messages()
    topics['/image'] = [compressed(100 + i / 10, picture(i)) for i in range(20)]
    topics['/image'][7].data = np.zeros(0, np.uint8)
    bag = Bag(write(tmp_path / 'recording', topics), CONFIG, LAYOUT)
    with pytest.raises(ValueError, match="/image at 100.7.*not 'png' data"):
        bag.load(bag.listing().parts[0])
