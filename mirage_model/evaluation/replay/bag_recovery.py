"""Bags that are damaged or break off: a copy of the messages that can be read, or the command that
recovers them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
import shutil
import sqlite3
import struct
from typing import Any

import yaml


def readable_copy(bag: Path, folder: Path) -> tuple[Path, str]:
    """Return the bag and '' where it is whole, else a copy of what can be read, and what is wrong
    with the bag.

    The whole bag is read once. Whole files are linked, not copied.

    Raises:
        ValueError: A database is damaged, or no file of the bag has a message that can be read.
    """
    files = sorted(file for file in [bag, *bag.glob('*')] if file.suffix in ('.mcap', '.db3'))
    damage: dict[Path, str] = {}
    for file in files:
        if file.suffix == '.db3':
            _check_database(file)
        elif found := _read_mcap(file):
            damage[file] = found
    metadata = bag / 'metadata.yaml'
    metadata_damage = _metadata_damage(metadata, {file.name for file in files}) if files else ''
    if not damage and not metadata_damage:
        return bag, ''
    copy = folder / bag.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    inside = copy if bag.is_dir() else folder
    inside.mkdir(parents=True)
    for file in [*files, *([] if metadata_damage or not metadata.exists() else [metadata])]:
        if file not in damage:
            (inside / file.name).symlink_to(file.resolve())
    counts: Counter[str] = Counter()
    for file in damage:
        _copy_mcap(file, inside / file.name, counts)
    reasons = [f'{file.name} ({why})' for file, why in damage.items()]
    if metadata_damage:
        reasons.append(f'{metadata.name} ({metadata_damage})')
    if not counts and len(damage) == len(files):
        raise ValueError(f'{bag}: breaks off before its first message: {", ".join(reasons)}')
    text = f'{bag}: is damaged or breaks off: {", ".join(reasons)}'
    if damage:
        copied = ', '.join(f'{count} on {topic}' for topic, count in sorted(counts.items()))
        text += f'; messages read from there: {copied or "none"}'
    return copy, text


_METADATA = (
    *('version', 'storage_identifier', 'relative_file_paths', 'topics_with_message_count'),
    *('message_count', 'duration', 'starting_time'),
)
"""Keys that metadata.yaml must have."""


def _metadata_damage(path: Path, present: set[str]) -> str:
    """Return what is wrong with metadata.yaml; '' where it is absent, since the files are read
    without it too."""
    if not path.exists():
        return ''
    try:
        information = yaml.safe_load(path.read_text())['rosbag2_bagfile_information']
        if missing := [key for key in _METADATA if key not in information]:
            return f'it breaks off: it has no {missing[0]}'
        names = {Path(name).name for name in information['relative_file_paths']}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        return f'it cannot be read: {" ".join(str(error).split())}'
    # a compressed file has the suffix of its compression
    present = present | {name for name in names if (path.parent / name).exists()}
    differ = sorted(names ^ present)
    return f'{", ".join(differ)}: named but absent, or present but not named' if differ else ''


def _check_database(file: Path) -> None:
    """Raise ValueError, with the command that helps, for a damaged database and for one that was
    not closed."""
    log = file.with_name(f'{file.name}-wal')
    if log.exists() and log.stat().st_size:
        raise ValueError(
            f'{file}: its last messages are still in {log.name}, '
            f"move them with: sqlite3 '{file}' 'PRAGMA wal_checkpoint(TRUNCATE)'"
        )
    try:
        with closing(sqlite3.connect(f'file:{file.resolve()}?mode=ro', uri=True)) as database:
            ((verdict,),) = database.execute('PRAGMA quick_check(1)').fetchall()
            database.execute('SELECT topics.id, messages.id FROM topics, messages LIMIT 1')
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != 'ok':
        raise ValueError(
            f'{file}: damaged database ({" ".join(verdict.split())}), '
            f"recover it with: sqlite3 '{file}' .recover | sqlite3 recovered.db3"
        )


def _read_mcap(file: Path) -> str:
    """Return what is wrong with a file, '' where it is whole."""
    damage: list[str] = []
    for _ in _mcap_records(file, damage):
        pass
    return '; '.join(damage[:3]) + (f'; {len(damage) - 3} more' if len(damage) > 3 else '')


def _mcap_records(file: Path, damage: list[str]) -> Iterator[Any]:
    """Yield the records of a file, in and outside of chunks; a chunk that is damaged is left out
    as a whole."""
    from mcap.exceptions import McapError
    from mcap.records import Chunk
    from mcap.stream_reader import StreamReader, breakup_chunk

    with file.open('rb') as stream:
        try:
            for record in StreamReader(stream, emit_chunks=True).records:
                if not isinstance(record, Chunk):
                    yield record
                    continue
                try:
                    yield from breakup_chunk(record, validate_crc=True)
                except Exception as error:  # decompressors raise errors of their own
                    start = record.message_start_time * 1e-9
                    damage.append(f'chunk from {start:.6f}: {str(error) or type(error).__name__}')
        except (McapError, struct.error, ValueError, OverflowError, MemoryError) as error:
            damage.append(
                f'it breaks off at byte {stream.tell()}: {str(error) or type(error).__name__}'
            )


def _copy_mcap(source: Path, target: Path, counts: Counter[str]) -> None:
    """Write the records that can be read to a file with an index, and count the messages by
    topic.
    """
    from mcap.records import Channel, Message, Schema
    from mcap.writer import Writer

    schemas: dict[int, int] = {}
    channels: dict[int, tuple[int, str]] = {}
    with target.open('wb') as out:
        writer = Writer(out)
        writer.start(profile='ros2')
        for record in _mcap_records(source, []):
            if isinstance(record, Schema) and record.id not in schemas:
                schemas[record.id] = writer.register_schema(
                    record.name, record.encoding, record.data
                )
            elif isinstance(record, Channel) and record.id not in channels:
                schema = schemas.get(record.schema_id, 0)
                number = writer.register_channel(
                    record.topic, record.message_encoding, schema, record.metadata
                )
                channels[record.id] = number, record.topic
            elif isinstance(record, Message) and record.channel_id in channels:
                number, topic = channels[record.channel_id]
                writer.add_message(
                    number, record.log_time, record.data, record.publish_time, record.sequence
                )
                counts[topic] += 1
        writer.finish()
