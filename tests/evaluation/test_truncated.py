"""Bags that are damaged or break off: what is left of them is replayed."""

from __future__ import annotations

from contextlib import closing
import io
from pathlib import Path
import shutil
import sqlite3

from drives import by_name, command, copy_bag, options, split_bag, wall_bag
from mcap.reader import make_reader
from mcap.writer import Writer as McapWriter
import pytest
from rosbags.rosbag2 import StoragePlugin

from mirage_model.engine.engine import Engine
from mirage_model.evaluation.replay.command import open_bag
from mirage_model.evaluation.replay.truncated import intact


def in_small_chunks(file: Path) -> bytes:
    """The file as a recorder writes it, which does not hold all of a drive in one chunk."""
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


def test_of_a_truncated_file_what_is_left_is_replayed(recorded, tmp_path, capsys):
    shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = (tmp_path / 'drive').glob('*.mcap')
    whole = in_small_chunks(file)
    file.write_bytes(whole[: len(whole) * 3 // 4])
    assert command(recorded, tmp_path / 'drive', tmp_path / 'out') == 1
    said = capsys.readouterr()
    assert f'drive is damaged or breaks off: {file.name}' in said.err
    assert ' on /camera/image' in said.err
    assert not (tmp_path / 'out' / 'intact').exists()
    assert 0 < len(by_name(tmp_path / 'out')) < 4
    file.write_bytes(whole[:100])
    assert command(recorded, tmp_path / 'drive', tmp_path / 'other') == 1
    assert 'drive breaks off before its first message' in capsys.readouterr().err


def test_of_a_recorder_that_was_killed_all_that_it_wrote_is_read(recorded, tmp_path):
    """No metadata.yaml, in one file, in a folder, or split with an end that holds nothing."""
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    (file,) = (recorded / 'drive').glob('*.mcap')
    whole = in_small_chunks(file)
    cut = whole[: len(whole) * 3 // 4]
    folder = tmp_path / 'killed'
    folder.mkdir()
    (folder / 'killed_0.mcap').write_bytes(cut)
    for bag in (folder, folder / 'killed_0.mcap'):
        left, why = intact(bag, tmp_path / 'intact')
        assert 'is damaged or breaks off: killed_0.mcap (it breaks off at byte' in why
        alone = len(open_bag(left, bag_config, engine).stamps)
        assert 16 < alone < 33
    for size in (0, 100):
        (folder / 'killed_1.mcap').write_bytes(cut[:size])
        (folder / 'killed_0.mcap').write_bytes(whole)
        left, why = intact(folder, tmp_path / 'intact')
        assert 'killed_1.mcap' in why and why.endswith('messages found there: none')
        assert len(open_bag(left, bag_config, engine).stamps) == 33


def test_a_bag_that_breaks_off_too_early_says_so(recorded, tmp_path, capsys):
    bag = shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = bag.glob('*.mcap')
    whole = in_small_chunks(file)
    file.write_bytes(whole[: len(whole) // 6])
    assert command(recorded, bag, tmp_path / 'out') == 1
    said = capsys.readouterr().err
    assert 'no segment of 1 s' in said and 'is damaged or breaks off' in said


@pytest.mark.parametrize('byte', [0, 0x5A])
def test_a_damaged_chunk_costs_what_is_in_it(recorded, tmp_path, byte):
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag = shutil.copytree(recorded / 'drive', tmp_path / 'drive')
    (file,) = bag.glob('*.mcap')
    whole = bytearray(in_small_chunks(file))
    middle = len(whole) // 2
    whole[middle : middle + 64] = bytes([byte]) * 64
    file.write_bytes(whole)
    left, why = intact(bag, tmp_path / 'intact')
    assert 'chunk from 100' in why and ' on /camera/image' in why
    stamps = open_bag(left, bag_config, engine).stamps
    assert 25 < len(stamps) < 33 and stamps[0] == 1000.0 and stamps[-1] == 1004.0


def test_a_file_that_is_missing_or_metadata_that_is_broken_costs_no_more_than_that(
    recorded, tmp_path
):
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag = split_bag(recorded / 'drive', tmp_path / 'split', 1002 * 10**9)
    told = (bag / 'metadata.yaml').read_text()
    for broken in ('', told[: len(told) // 2], told[:60], 'rosbag2_bagfile_information: [1'):
        (bag / 'metadata.yaml').write_text(broken)
        left, why = intact(bag, tmp_path / 'intact')
        assert 'metadata.yaml (' in why
        assert len(open_bag(left, bag_config, engine).stamps) == 33
    (bag / 'metadata.yaml').write_text(told)
    (bag / 'part-1.mcap').unlink()
    left, why = intact(bag, tmp_path / 'intact')
    assert 'metadata.yaml (part-1.mcap: named but not there' in why
    assert len(open_bag(left, bag_config, engine).stamps) == 16


def in_sqlite(recorded: Path, target: Path, frames: int = 0) -> tuple[Path, Path]:
    """The drive, or a longer one, with its file."""
    source = wall_bag(target.with_name('long'), frames) if frames else recorded / 'drive'
    bag = copy_bag(source, target, plugin=StoragePlugin.SQLITE3)
    (file,) = bag.glob('*.db3')
    return bag, file


def test_of_a_truncated_database_what_is_left_is_replayed(recorded, tmp_path, capsys):
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    assert command(recorded, bag, tmp_path / 'whole', '--horizon', '3.9') == 0
    whole = file.read_bytes()
    cut = whole[: len(whole) * 3 // 4]
    file.write_bytes(cut)
    capsys.readouterr()
    assert command(recorded, bag, tmp_path / 'out') == 1
    said = capsys.readouterr()
    assert (
        f'drive is damaged or breaks off: {file.name} (database disk image is malformed)'
        in said.err
    )
    assert ' on /camera/image' in said.err
    assert 0 < len(by_name(tmp_path / 'out')) < 4
    assert file.read_bytes() == cut and sorted(p.name for p in bag.iterdir()) == [
        file.name,
        'metadata.yaml',
    ]
    for size in (0, 5000):
        file.write_bytes(whole[:size])
        assert command(recorded, bag, tmp_path / 'other') == 1
        assert 'drive breaks off before its first message' in capsys.readouterr().err


@pytest.mark.parametrize('share', [0.1, 0.4, 0.9])
def test_a_database_is_read_as_far_as_it_goes(recorded, tmp_path, share):
    """Of a long one too, whose tree of pages has grown over the place where it breaks off."""
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag, file = in_sqlite(recorded, tmp_path / 'drive', 200)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    left, _ = intact(bag, tmp_path / 'intact')
    assert len(open_bag(left, bag_config, engine).stamps) == pytest.approx(200 * share, abs=6)


def test_around_a_damaged_page_of_a_database_all_is_read(recorded, tmp_path):
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    whole = file.read_bytes()
    pages = range(20 * 4096, len(whole) - 8 * 4096, 4096)
    leaves = [at for at in pages if whole[at] == 13]  # of a table; those of an index begin with 10
    for damaged in (leaves[10:11], [leaves[10], leaves[14]]):
        spoiled = bytearray(whole)
        for at in damaged:
            spoiled[at : at + 4096] = bytes([0x5A]) * 4096
        file.write_bytes(spoiled)
        left, why = intact(bag, tmp_path / 'intact')
        assert file.name in why
        stamps = open_bag(left, bag_config, engine).stamps
        assert 33 - 4 * len(damaged) <= len(stamps) < 33
        assert (stamps[0], stamps[-1]) == (1000.0, 1004.0)


def test_what_a_killed_recorder_left_in_its_log_is_read(recorded, tmp_path):
    """A reader of the database file alone sees nothing of it."""
    bag_config, _ = options(recorded)
    engine = Engine.from_folder(recorded / 'model').describe()
    bag, file = in_sqlite(recorded, tmp_path / 'drive')
    with closing(sqlite3.connect(file)) as database:
        database.execute('PRAGMA journal_mode = WAL')
        database.execute('PRAGMA wal_autocheckpoint = 0')
        later = 'timestamp > 1002000000000'
        database.execute(f'CREATE TABLE kept AS SELECT * FROM messages WHERE {later}')
        database.execute(f'DELETE FROM messages WHERE {later}')
        database.commit()
        database.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        database.execute('INSERT INTO messages SELECT * FROM kept')
        database.commit()
        shutil.copytree(bag, tmp_path / 'killed')
    killed = tmp_path / 'killed'
    left, why = intact(killed, tmp_path / 'intact')
    assert f'its end is still in {file.name}-wal' in why
    assert len(open_bag(killed, bag_config, engine).stamps) == 17
    assert len(open_bag(left, bag_config, engine).stamps) == 33
