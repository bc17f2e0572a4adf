"""The whole replay of a small bag runs from the file with a small real model."""

from __future__ import annotations

import csv
from dataclasses import replace
import json
import math
from pathlib import Path

from drives import STORE, by_name, command, copy_bag, options, split_bag, wall_drive
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
import numpy as np
import pyarrow.parquet as parquet
import pytest
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin
from safetensors import safe_open

from mirage_model.cli import main, parse
from mirage_model.engine.engine import Engine
from mirage_model.evaluation.config import ReplayCommand
from mirage_model.evaluation.replay.command import load_engine, open_bag, run
from mirage_model.evaluation.replay.replay import (
    WARP_METRICS,
    ObservedMemory,
    load,
    request_for,
    save,
    views,
)
from mirage_model.evaluation.replay.results_bag import METRICS, track_numbers
from mirage_model.evaluation.replay.segments import segments_of
from mirage_model.evaluation.replay.tables import segment_row
from mirage_model.image_fit import fit_image
from mirage_model.interface import NOTHING

AT = STORE.types['builtin_interfaces/msg/Time'](sec=1002, nanosec=500_000_000)


@pytest.fixture(scope='module')
def done(recorded) -> Path:
    bag_config, config = options(recorded)
    outcome = run(load_engine(config), recorded / 'drive', bag_config, config, recorded / 'out')
    assert (outcome.results, outcome.failures, outcome.left_out) == (4, [], [])
    return outcome.out


def test_segment_equals_direct_use_of_the_engine(recorded, done):
    bag_config, config = options(recorded)
    engine = Engine.from_folder(recorded / 'model')
    about = engine.describe()
    bag = open_bag(recorded / 'drive', bag_config, about)
    clip = wall_drive()
    rows = [0, 4, 8, 12, 16]
    for number, view in enumerate(views(bag, rows)):
        np.testing.assert_array_equal(view.image, clip.frames[rows[number]].numpy())
        np.testing.assert_allclose(view.world_from_camera[0, 3], 0.1 * rows[number], atol=1e-6)
        (engine.observe if number else engine.seed)(view, memory='replay')
    segment = segments_of(bag.listing(), bag.stamps, about.frame_rate, config)[0][2]
    assert segment.observed == tuple(rows) and segment.future == tuple(range(17, 25))
    request = request_for(bag, segment, about, config, 0)
    np.testing.assert_allclose(request.times, 1002 + np.arange(1, 9) / 8)
    chunks = list(engine.imagine(request))
    found = load(done / 'segments' / '00002-0.safetensors')
    np.testing.assert_array_equal(found.frames, np.concatenate([c.frames for c in chunks]))
    np.testing.assert_array_equal(found.visibility, np.concatenate([c.visibility for c in chunks]))
    truth = np.stack(
        [fit_image(frame, about.height, about.width) for frame in clip.frames[17:25].numpy()]
    )
    np.testing.assert_array_equal(found.recorded, truth)
    error = np.square(found.frames[3] / 255 - truth[3] / 255)
    assert found.rows[3]['psnr_all'] == pytest.approx(-10 * math.log10(error.mean()), abs=1e-4)
    covered = found.visibility[3] != NOTHING
    assert found.rows[3]['psnr_covered'] == pytest.approx(
        -10 * math.log10(error[covered].mean()), abs=1e-4
    )
    assert found.rows[3]['horizon_s'] == pytest.approx(0.5)
    assert found.nanoseconds.tolist() == [int((1000 + row / 8) * 1e9) for row in range(17, 25)]


def test_warp_of_a_wall_follows_its_texture(done):
    """The wall is flat and its depth is known: what stays in view is warped exactly."""
    result = load(done / 'segments' / '00002-0.safetensors')
    assert result.warp is not None and result.warp.shape == result.frames.shape
    for number, row in enumerate(result.rows):
        error = np.square(result.warp[number] / 255 - result.recorded[number] / 255)
        assert row['warp_psnr_all'] == pytest.approx(-10 * math.log10(error.mean()), abs=1e-4)
        assert row['better_than_warp'] == float(row['psnr_all'] > row['warp_psnr_all'])
    assert result.rows[0]['warp_psnr_all'] > result.rows[0]['last_frame_psnr_all']


def test_no_depth_leaves_out_the_warp(done):
    result = replace(load(done / 'segments' / '00002-0.safetensors'), warp=None)
    rows = tuple(row | dict.fromkeys(WARP_METRICS, math.nan) for row in result.rows)
    save(done.parent / 'without.safetensors', replace(result, rows=rows))
    again = load(done.parent / 'without.safetensors')
    assert again.warp is None
    assert segment_row(again)['warp_psnr_all'] is segment_row(again)['better_than_warp'] is None


def test_horizons_are_padded_to_whole_chunks(recorded):
    bag_config, config = options(recorded, horizon=1.25)
    engine = load_engine(config)
    bag = open_bag(recorded / 'drive', bag_config, engine.describe())
    segment = segments_of(bag.listing(), bag.stamps, 8.0, config)[0][0]
    request = request_for(bag, segment, engine.describe(), config, 3)
    assert len(request.times) == 16 and request.seed == 3
    np.testing.assert_array_equal(
        request.world_from_camera[9:], np.tile(request.world_from_camera[9], (7, 1, 1))
    )


def test_interrupted_replay_resumes(recorded, done):
    before = by_name(done)
    lost = done / 'segments' / '00003-0.safetensors'
    kept = (done / 'segments' / '00000-0.safetensors').stat().st_mtime_ns
    lost.unlink()
    (done / 'segments' / '00001-0.part').write_bytes(b'half')
    bag_config, config = options(recorded)
    run(load_engine(config), recorded / 'drive', bag_config, config, done)
    (done / 'segments' / '00001-0.part').unlink()
    assert (done / 'segments' / '00000-0.safetensors').stat().st_mtime_ns == kept
    again = load(lost)
    assert set(by_name(done)) == set(before)
    first = done.parent / 'first.safetensors'
    first.write_bytes(before[lost.name])
    for name in ('frames', 'visibility', 'recorded', 'nanoseconds'):
        np.testing.assert_array_equal(getattr(again, name), getattr(load(first), name))
    assert again.rows == load(first).rows


def test_results_of_other_options_are_rejected(recorded, done):
    bag_config, config = options(recorded, stride=2.0)
    with pytest.raises(ValueError, match='began with another replay'):
        run(load_engine(config), recorded / 'drive', bag_config, config, done)


def test_window_resets_the_memory(recorded):
    bag_config, config = options(recorded, observe=0.0)
    engine = load_engine(config)
    bag = open_bag(recorded / 'drive', bag_config, engine.describe())
    segments, _ = segments_of(bag.listing(), bag.stamps, 8.0, config)
    walk = ObservedMemory(engine, bag)
    for segment in segments[:2]:
        walk.advance_to(segment)
    alone = load_engine(config)
    alone.seed(views(bag, [8])[0], memory='replay')
    request = request_for(bag, segments[1], engine.describe(), config, 0)
    for found, expected in zip(engine.imagine(request), alone.imagine(request)):
        np.testing.assert_array_equal(found.frames, expected.frames)


def test_tables_agree_and_means_are_right(done):
    for name, rows in (('frames', 32), ('segments', 4), ('horizons', 8)):
        with (done / f'{name}.csv').open() as file:
            table = list(csv.DictReader(file))
        stored = parquet.read_table(done / f'{name}.parquet').to_pylist()
        assert len(table) == len(stored) == rows
        for text, row in zip(table, stored):
            for key, value in row.items():
                if isinstance(value, str) or value is None:
                    assert text[key] == (value or '')
                else:
                    assert float(text[key]) == value
    frames = parquet.read_table(done / 'frames.parquet').to_pylist()
    horizons = parquet.read_table(done / 'horizons.parquet').to_pylist()
    third = [row['psnr_all'] for row in frames if row['frame'] == 3]
    assert horizons[2]['psnr_all'] == pytest.approx(np.mean(third))
    assert horizons[2]['psnr_all_low'] <= horizons[2]['psnr_all'] <= horizons[2]['psnr_all_high']
    summary = json.loads((done / 'summary.json').read_text())
    assert summary['psnr_all'] == pytest.approx(np.mean([row['psnr_all'] for row in frames]))


def test_results_bag_opens_in_both_readers(done):
    """Imagined topics carry the recorded stamps, in the header and in the log."""
    expected = [int((1000 + row / 8) * 1e9) for row in range(1, 33)]
    with AnyReader([done / 'results'], default_typestore=STORE) as reader:
        topics = {c.topic: c for c in reader.connections}
        assert set(topics) >= {'/recorded/image', '/imagined/image', '/imagined/visibility'}
        assert set(topics) >= {f'/imagined/metrics/{name}' for name in ('psnr_all', 'visible')}
        assert not [topic for topic in topics if 'track' in topic]
        for topic in ('/recorded/image', '/imagined/image', '/imagined/camera_info'):
            found = []
            for connection, logged, data in reader.messages([topics[topic]]):
                stamp = reader.deserialize(data, connection.msgtype).header.stamp
                assert logged == stamp.sec * 10**9 + stamp.nanosec
                found.append(logged)
            assert found == expected
    with next((done / 'results').glob('*.mcap')).open('rb') as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        pictures = {
            message.log_time: image
            for _, _, message, image in reader.iter_decoded_messages(topics=['/imagined/image'])
        }
    assert sorted(pictures) == expected
    replayed = load(done / 'segments' / '00001-0.safetensors')
    image = np.frombuffer(pictures[int(replayed.nanoseconds[2])].data, np.uint8)
    np.testing.assert_array_equal(image, replayed.frames[2].reshape(-1))
    assert len(METRICS) == 10


def test_lanes_keep_overlapping_segments_apart():
    assert track_numbers([(0, 9), (5, 14), (10, 19), (10, 19)]) == [0, 1, 0, 2]


def test_split_bag_gives_equal_results(recorded, done, tmp_path):
    bag_config, config = options(recorded)
    bag = split_bag(recorded / 'drive', tmp_path / 'split', 1002 * 10**9)
    assert len(list(bag.glob('*.mcap'))) == 2
    outcome = run(load_engine(config), bag, bag_config, config, tmp_path / 'out')
    assert outcome.results == 4
    for name in by_name(done):
        found, expected = load(outcome.out / 'segments' / name), load(done / 'segments' / name)
        np.testing.assert_array_equal(found.frames, expected.frames)
        assert found.rows == expected.rows


@pytest.mark.slow
def test_several_devices_share_the_segments(recorded, done):
    bag_config, config = options(recorded, devices=('cpu', 'cpu:0'))
    out = recorded / 'shared'
    outcome = run(load_engine(config), recorded / 'drive', bag_config, config, out)
    assert outcome.results == 4
    for name in by_name(done):
        found, expected = load(out / 'segments' / name), load(done / 'segments' / name)
        np.testing.assert_array_equal(found.frames, expected.frames)
        assert found.rows == expected.rows


def test_unusable_image_fails_its_segment_only(recorded, tmp_path, capsys):
    """One image is of another size: its segment fails by name; those that only lack it before do
    not."""

    def change(topic, message):
        if topic == '/camera/image' and message.header.stamp == AT:
            message = replace(message, height=20, data=message.data[: 20 * message.step])
        return message

    copy_bag(recorded / 'drive', tmp_path / 'drive', change)
    assert command(recorded, tmp_path / 'drive', tmp_path / 'out') == 1
    said = capsys.readouterr()
    assert '/camera/image at 1002.500000' in said.err and '20x64' in said.err
    assert '3 results' in said.out
    (unread,) = load(tmp_path / 'out' / 'segments' / '00003-0.safetensors').unreadable
    assert 'at 1002.500000: image: 20x64' in unread
    assert (tmp_path / 'out' / 'report.html').exists()


def test_unusable_observed_image_is_reported(recorded, tmp_path, capsys):
    """The image is in no segment; later segments lack it in their memory, at the second start
    too."""

    def change(topic, message):
        if topic == '/camera/image' and message.header.stamp == AT:
            message = replace(message, encoding='nonsense')
        return message

    copy_bag(recorded / 'drive', tmp_path / 'drive', change)
    for _ in range(2):
        assert command(recorded, tmp_path / 'drive', tmp_path / 'out', '--stride', '3') == 1
        said = capsys.readouterr()
        assert (
            'not observed: ' in said.err and "1002.500000: image: encoding 'nonsense'" in said.err
        )
        assert '2 results' in said.out


@pytest.mark.slow
def test_corrupt_message_fails_its_segment_only(recorded, tmp_path, capsys):
    """The segments around it are replayed, and the exit status is 1."""

    def spoil(topic, logged, data):
        return data[:40] if topic == '/camera/image' and logged == 1002_500_000_000 else data

    for plugin in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
        bag = copy_bag(recorded / 'drive', tmp_path / plugin.name, plugin=plugin, spoil=spoil)
        out = tmp_path / f'out-{plugin.name}'
        assert command(recorded, bag, out) == 1
        said = capsys.readouterr()
        assert 'failed: 1 messages on /camera/image cannot be read, the first: 1002.5' in said.err
        assert '3 results' in said.out
        (failure,) = json.loads((out / 'summary.json').read_text())['failures']
        assert '/camera/image' in failure


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (('--image', '/no'), "no topic '/no', there are /camera/camera_info"),
        (('--pose', '/odom'), "no topic '/odom'"),
        (
            ('--world-frame', 'earth'),
            "no transforms join 'camera_optical' to 'earth'; the frames that are known: base_link",
        ),
        (('--horizon', '10'), 'no segment of 10 s'),
        (('--pose', '/camera/image'), '/camera/image is of type sensor_msgs/msg/Image'),
    ],
)
def test_wrong_topics_and_frames_are_named(recorded, tmp_path, capsys, more, message):
    assert command(recorded, recorded / 'drive', tmp_path / 'out', *more) == 1
    assert message in capsys.readouterr().err


def test_options_come_from_a_file_and_are_overridden(tmp_path, capsys):
    path = tmp_path / 'config.yaml'
    path.write_text(
        'image: /a\ncamera_info: /b\npose: /c\nhorizon: 2\nseeds: [1, 2]\nobserve: .inf\n'
    )
    words = ['bag', '--config', str(path)]
    given = parse(ReplayCommand, [*words, '--pose', '/d'], prog='mirage replay')
    assert (given.topics.image, given.topics.pose) == ('/a', '/d')
    config = given.replay
    assert (config.horizon, config.seeds, config.observe) == (2.0, (1, 2), math.inf)
    for text, message in (
        ('imag: /a', 'config.yaml: imag: not among accept, allow_unscaled_depth'),
        ('- a', 'config.yaml: is list, must be names with values'),
    ):
        path.write_text(text)
        assert main(['replay', *words]) == 1
        assert message in capsys.readouterr().err
    for text, message in (
        ('image: /a', '--camera-info STR'),
        ('image: /a\ncamera_info: /b\npose: /c\nhorizon: far', 'Error parsing --horizon'),
    ):
        path.write_text(text)
        with pytest.raises(SystemExit, match='2'):
            main(['replay', *words])
        assert message in capsys.readouterr().err


def test_images_before_the_first_pose_are_left_out(recorded, tmp_path, capsys):
    """/tf begins after 1.2 s, and three segments fit into the rest."""

    def change(topic, message):
        if topic == '/tf':
            stamp = message.transforms[0].header.stamp
            return None if stamp.sec + stamp.nanosec * 1e-9 < 1001.2 else message
        return message

    bag = copy_bag(recorded / 'drive', tmp_path / 'drive', change)
    assert command(recorded, bag, tmp_path / 'out', '--stride', '0.875') == 0
    said = capsys.readouterr()
    assert '10 of 33 images have no pose on /tf: there are poses from 1001.25' in said.out
    assert '3 results' in said.out


def test_results_are_strict_json(done):
    """Unknown values are null, not NaN, at a horizon where all is covered, or nothing."""

    def refuse(name: str):
        raise AssertionError(f'{name} is no JSON')

    for name in ('summary.json', 'config.json'):
        content = json.loads((done / name).read_text(), parse_constant=refuse)
    assert content['replay']['observe'] == 'inf'
    with safe_open(done / 'segments' / '00000-0.safetensors', framework='np') as file:
        json.loads(file.metadata()['replayed'], parse_constant=refuse)
    row = load(done / 'segments' / '00000-0.safetensors').rows[-1]
    assert math.isnan(row['consistency_db'])
