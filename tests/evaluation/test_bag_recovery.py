"""Bags that are damaged or break off."""

from __future__ import annotations

import io
from pathlib import Path
import shutil

from drives import by_name, command, copy_bag, options, split_bag
from mcap.reader import make_reader
from mcap.writer import Writer as McapWriter
import pytest
from rosbags.rosbag2 import StoragePlugin

from mirage_model.engine.engine import Engine
from mirage_model.evaluation.replay.bag_recovery import readable_copy
from mirage_model.evaluation.replay.command import open_bag


def in_small_chunks(file: Path) -> bytes:
    """Copy a file as a recorder writes it, with the drive in several chunks."""
    written, out = {}, io.BytesIO()
    writer = McapWriter(out, chunk_size=20_000)
    writer.start(profile='ros2')
    with file.open('rb') as stream:
        for schema, channel, message in make_reader(stream).iter_messages():
            if channel.id not in written:
                number = writer.register_schema(schema.name, schema.encoding, schema.data)
                written[channel.id] = writer.register_channel(
                    channel.topic, channel.message_encoding, number, channel.metadata
                )
            writer.add_message(
                written[channel.id], message.log_time, message.data, message.publish_time
            )
    writer.finish()
    return out.getvalue()


@pytest.mark.slow
def test_messages_before_the_end_of_a_truncated_file_are_replayed(recorded, tmp_path, capsys):
    shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = (tmp_path / 'drive').glob('*.mcap')
    whole = in_small_chunks(file)
    file.write_bytes(whole[: len(whole) * 3 // 4])
    assert command(recorded, tmp_path / 'drive', tmp_path / 'out') == 1
    said = capsys.readouterr()
    assert f'drive: is damaged or breaks off: {file.name}' in said.err
    assert ' on /camera/image' in said.err
    assert not (tmp_path / 'out' / 'intact').exists()
    assert 0 < len(by_name(tmp_path / 'out')) < 4
    file.write_bytes(whole[:100])
    assert command(recorded, tmp_path / 'drive', tmp_path / 'other') == 1
    assert 'drive: breaks off before its first message' in capsys.readouterr().err


def test_all_messages_of_a_killed_recorder_are_read(recorded, tmp_path):
    """The bag has no metadata.yaml; it is a file, a folder, or split with an empty last file."""
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    (file,) = (recorded / 'drive').glob('*.mcap')
    whole = in_small_chunks(file)
    cut = whole[: len(whole) * 3 // 4]
    folder = tmp_path / 'killed'
    folder.mkdir()
    (folder / 'killed_0.mcap').write_bytes(cut)
    for bag in (folder, folder / 'killed_0.mcap'):
        left, why = readable_copy(bag, tmp_path / 'intact')
        assert 'is damaged or breaks off: killed_0.mcap (it breaks off at byte' in why
        alone = len(open_bag(left, bag_config, engine).stamps)
        assert 16 < alone < 33
    for size in (0, 100):
        (folder / 'killed_1.mcap').write_bytes(cut[:size])
        (folder / 'killed_0.mcap').write_bytes(whole)
        left, why = readable_copy(folder, tmp_path / 'intact')
        assert 'killed_1.mcap' in why and why.endswith('messages read from there: none')
        assert len(open_bag(left, bag_config, engine).stamps) == 33


def test_bag_that_breaks_off_before_a_segment(recorded, tmp_path, capsys):
    bag = shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = bag.glob('*.mcap')
    whole = in_small_chunks(file)
    file.write_bytes(whole[: len(whole) // 6])
    assert command(recorded, bag, tmp_path / 'out') == 1
    said = capsys.readouterr().err
    assert 'no segment of 1 s' in said and 'is damaged or breaks off' in said


@pytest.mark.parametrize('byte', [0, 0x5A])
def test_damaged_chunk_is_left_out(recorded, tmp_path, byte):
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag = shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = bag.glob('*.mcap')
    whole = bytearray(in_small_chunks(file))
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes([byte]) * 64
    file.write_bytes(whole)
    left, why = readable_copy(bag, tmp_path / 'intact')
    assert 'chunk from 100' in why and ' on /camera/image' in why
    stamps = open_bag(left, bag_config, engine).stamps
    assert 25 < len(stamps) < 33 and stamps[0] == 1000.0 and stamps[-1] == 1004.0


def test_missing_file_and_broken_metadata(recorded, tmp_path):
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag = split_bag(recorded / 'drive', tmp_path / 'split', 1002 * 10**9)
    told = (bag / 'metadata.yaml').read_text()
    for broken in ('', told[: len(told) // 2], told[:60], 'rosbag2_bagfile_information: [1'):
        (bag / 'metadata.yaml').write_text(broken)
        left, why = readable_copy(bag, tmp_path / 'intact')
        assert 'metadata.yaml (' in why
        assert len(open_bag(left, bag_config, engine).stamps) == 33
    (bag / 'metadata.yaml').write_text(told)
    (bag / 'part-1.mcap').unlink()
    left, why = readable_copy(bag, tmp_path / 'intact')
    assert 'metadata.yaml (part-1.mcap: named but absent' in why
    assert len(open_bag(left, bag_config, engine).stamps) == 16


def in_sqlite(recorded: Path, target: Path) -> tuple[Path, Path]:
    """Return the drive in a database, and the database file."""
    bag = copy_bag(recorded / 'drive', target, plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob('*.db3')
    return bag, file


@pytest.mark.parametrize('share', [0.0, 0.1, 0.75])
def test_truncated_database_names_the_command_that_recovers_it(recorded, tmp_path, capsys, share):
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert command(recorded, bag, tmp_path / 'out') == 1
    error = capsys.readouterr().err
    assert f'{file}: damaged database (' in error
    assert f"recover it with: sqlite3 '{file}' .recover | sqlite3 recovered.db3" in error


def test_damaged_page_of_a_database_is_noticed(recorded, tmp_path):
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    damaged = bytearray(file.read_bytes())
    at = next(at for at in range(20 * 4096, len(damaged), 4096) if damaged[at] == 13)
    damaged[at : at + 4096] = bytes([0x5A]) * 4096
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match='recover it with: sqlite3'):
        readable_copy(bag, tmp_path / 'copy')


def test_write_ahead_log_names_the_command_that_merges_it(recorded, tmp_path):
    """A reader of the database file alone would miss the last messages of a killed recorder."""
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    log = file.with_name(f'{file.name}-wal')
    log.write_bytes(bytes(100))
    with pytest.raises(
        ValueError, match=r"still in .*-wal, .* 'PRAGMA wal_checkpoint\(TRUNCATE\)'"
    ):
        readable_copy(bag, tmp_path / 'copy')
    log.write_bytes(b'')
    assert readable_copy(bag, tmp_path / 'copy') == (bag, '')
