"""Matching of images, camera_info and depth by stamps."""

from __future__ import annotations

from builtin_interfaces.msg import Time
from processes import seed_messages
import pytest
from std_msgs.msg import Header

from mirage_ros.sensor_sync import BUFFER, SensorSync


def sensor_sync(warnings: list[str] | None = None, **values) -> SensorSync:
    defaults = {'use_depth': True, 'tolerance': 0.02, 'max_pixels': 10**6}
    warn = (lambda text: None) if warnings is None else warnings.append
    return SensorSync(**{**defaults, **values}, warn=warn)


def messages_of(seeds: SensorSync) -> tuple:
    newest = seeds.newest()
    return newest.image, newest.camera_info, newest.depth


def test_newest_complete_set_in_any_order():
    seeds = sensor_sync()
    with pytest.raises(ValueError, match='image: none was received'):
        seeds.newest()
    first, second = seed_messages(stamp=1), seed_messages(stamp=2)
    seeds.add_depth(first[2])
    seeds.add_image(first[0])
    with pytest.raises(ValueError, match='camera_info: none was received for the image at 1.000'):
        seeds.newest()
    seeds.add_camera_info(first[1])
    assert messages_of(seeds) == first
    seeds.add_image(second[0])
    seeds.add_camera_info(second[1])
    assert messages_of(seeds) == first
    seeds.add_depth(second[2])
    assert messages_of(seeds) == second


def test_stamps_within_the_tolerance():
    image, info, depth = seed_messages()
    info.header = Header(frame_id='camera', stamp=Time(sec=1, nanosec=15_000_000))
    depth.header = Header(frame_id='camera', stamp=Time(sec=1, nanosec=30_000_000))
    strict, loose = (sensor_sync(tolerance=t) for t in (0.02, 0.05))
    for seeds in (strict, loose):
        seeds.add_image(image)
        seeds.add_camera_info(info)
        seeds.add_depth(depth)
    reason = 'depth: none belongs to the image at 1.000, the nearest is at 1.030, 0.030 s away; '
    with pytest.raises(ValueError, match=f'{reason}sensors.stamp_tolerance is 0.02 s'):
        strict.newest()
    assert loose.newest().depth is depth


def test_depth_is_not_required_without_use_depth():
    seeds = sensor_sync(use_depth=False, tolerance=0.0)
    image, info, _ = seed_messages()
    seeds.add_image(image)
    seeds.add_camera_info(info)
    assert messages_of(seeds) == (image, info, None)


def test_unreadable_messages_leave_the_good_ones():
    seeds = sensor_sync(use_depth=False, tolerance=0.0)
    image, info, depth = seed_messages()
    seeds.add_image(image)
    seeds.add_camera_info(info)
    for add, message in ((seeds.add_image, depth), (seeds.add_depth, image)):
        with pytest.raises(ValueError, match='encoding'):
            add(message)
    assert seeds.newest().image is image


def test_buffers_are_bounded():
    seeds = sensor_sync(tolerance=0.0)
    seeds.add_camera_info(seed_messages(stamp=1)[1])
    seeds.add_depth(seed_messages(stamp=1)[2])
    for stamp in range(1, BUFFER + 2):
        seeds.add_image(seed_messages(stamp=stamp)[0])
    with pytest.raises(ValueError, match='image at 17.000, the nearest is at 1.000, 16.000 s'):
        seeds.newest()


def test_camera_info_needs_the_stamp_only_where_intrinsics_vary():
    """It may be latched, or stamped zero; a camera that zooms is matched by the stamp."""
    seeds = sensor_sync(use_depth=False)
    image, info, _ = seed_messages(stamp=50)
    seeds.add_image(image)
    for stamp in (0, 3):
        message = seed_messages(stamp=stamp)[1]
        message.k[0] *= 1 + 1e-9
        seeds.add_camera_info(message)
    assert seeds.newest().camera_info is message
    zoomed = seed_messages(stamp=4)[1]
    zoomed.k[0] *= 2
    seeds.add_camera_info(zoomed)
    with pytest.raises(ValueError, match='camera_info: none belongs to the image at 50.000'):
        seeds.newest()
    seeds.add_camera_info(info)
    assert seeds.newest().camera_info is info


def test_images_that_are_too_large_are_not_kept():
    image, info, depth = seed_messages()
    pixels = image.height * image.width
    seeds = sensor_sync(max_pixels=pixels - 1)
    seeds.add_camera_info(info)
    for add, message in ((seeds.add_image, image), (seeds.add_depth, depth)):
        with pytest.raises(ValueError, match=f'more than limits.max_pixels, {pixels - 1}'):
            add(message)
    with pytest.raises(ValueError, match='image: none was received'):
        seeds.newest()


def test_one_stamp_for_all_pairs_the_newest():
    """All stamps are equal, so the newest messages go together, with a warning."""
    warnings: list[str] = []
    seeds = sensor_sync(warnings)
    for value in (10, 20):
        image, info, depth = seed_messages(value=value, distance=float(value), stamp=0)
        for add, message in (
            (seeds.add_depth, depth),
            (seeds.add_image, image),
            (seeds.add_camera_info, info),
        ):
            add(message)
    assert messages_of(seeds) == (image, info, depth)
    assert [text.split(':')[0] for text in warnings] == ['depth', 'image']
    assert all('the same stamp, 0.000' in text for text in warnings)


def test_messages_that_are_sent_again_are_no_doubt():
    warnings: list[str] = []
    seeds = sensor_sync(warnings)
    for _ in range(3):
        seeds.add_image(seed_messages()[0])
    assert warnings == []


def test_stamps_that_are_set_back_begin_anew():
    """When a bag loops, images of its end do not go with depth of its beginning."""
    warnings: list[str] = []
    seeds = sensor_sync(warnings, tolerance=1000.0)
    first, last = seed_messages(stamp=100), seed_messages(stamp=190)
    for image, info, depth in (last, first):
        seeds.add_camera_info(info)
        seeds.add_depth(depth)
        seeds.add_image(image)
    assert messages_of(seeds) == first
    assert len(warnings) == 3
    assert all('stamp 100.000 comes after 190.000' in text for text in warnings)
