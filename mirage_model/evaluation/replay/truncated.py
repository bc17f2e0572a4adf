"""What can still be read of a bag that is damaged or breaks off, as when a recorder was killed or a disk was full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
import mmap
from pathlib import Path
import shutil
import sqlite3
import struct

import yaml

_SUFFIXES = ('.mcap', '.db3')


def intact(bag: Path, folder: Path) -> tuple[Path, str]:
    """The bag and '', or a copy of what is left of it in ``folder``, and what is the matter with it.

    All of the bag is read once. Raises ValueError where nothing is left.
    """
    files = [file for file in _files(bag) if file.suffix in _SUFFIXES]
    reasons = {file: why for file in files if (why := _damage(file))}
    broken = list(reasons)
    if files and (why := _metadata_damage(bag / 'metadata.yaml', {f.name for f in files})):
        reasons[bag / 'metadata.yaml'] = why
    if not reasons:
        return bag, ''
    copy = folder / bag.resolve().name
    shutil.rmtree(folder, ignore_errors=True)
    inside = copy if bag.is_dir() else folder
    inside.mkdir(parents=True)
    for file in _files(bag):
        if file not in reasons:
            (inside / file.name).symlink_to(file.resolve())
    found: Counter[str] = Counter()
    for file in broken:
        save = _save_mcap if file.suffix == '.mcap' else _save_sqlite
        save(file, inside / file.name, found)
    names = ', '.join(f'{file.name} ({why})' for file, why in reasons.items())
    if not found and len(broken) == len(files):
        raise ValueError(f'{bag} breaks off before its first message: {names}')
    counts = ', '.join(f'{count} on {topic}' for topic, count in sorted(found.items())) or 'none'
    left = f'; messages found there: {counts}' if broken else ''
    return copy, f'{bag} is damaged or breaks off: {names}{left}'


def _files(bag: Path) -> list[Path]:
    """Of a bag that is a folder, or one file."""
    return sorted(file for file in [bag, *bag.glob('*')] if file.is_file())


_TOLD = ('version', 'storage_identifier', 'relative_file_paths', 'topics_with_message_count')
_TOLD += ('message_count', 'duration', 'starting_time')
"""What metadata.yaml must say."""


def _metadata_damage(path: Path, there: set[str]) -> str:
    """Of the file that names the others, which are ``there``. Without it these are read as they are."""
    if not path.exists():
        return ''
    try:
        told = yaml.safe_load(path.read_text())['rosbag2_bagfile_information']
        lacks = [name for name in _TOLD if name not in told]
        names = {Path(name).name for name in told.get('relative_file_paths', ())}
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        return f'it cannot be read: {" ".join(str(error).split())}'
    if lacks:
        return f'it breaks off: it says no {lacks[0]}'
    if compressed := [name for name in names if Path(name).suffix not in _SUFFIXES]:
        there = there | {name for name in compressed if (path.parent / name).exists()}
    differ = sorted(names ^ there)
    return f'{", ".join(differ)}: named but not there, or there but not named' if differ else ''


def _damage(file: Path) -> str:
    """What is the matter with a file; nothing where it is whole."""
    if file.suffix == '.db3':
        return _sqlite_damage(file)
    damage: list[str] = []
    for _ in _mcap_records(file, damage):
        pass
    return '; '.join(damage[:3]) + (f'; {len(damage) - 3} more' if len(damage) > 3 else '')


# MCAP


def _mcap_records(file: Path, damage: list[str]) -> Iterator:
    """Schemas, channels and messages, in and outside of chunks; what cannot be read is added to ``damage``."""
    from mcap.exceptions import McapError
    from mcap.records import Channel, Chunk, Message, Schema
    from mcap.stream_reader import StreamReader

    held = None  # until the next begins: the last before a break may be cut short
    with file.open('rb') as stream:
        try:
            for record in StreamReader(stream, emit_chunks=True).records:
                if isinstance(held, Chunk):
                    yield from _in_chunk(held, damage)
                elif held is not None:
                    yield held
                held = record if isinstance(record, Chunk | Channel | Message | Schema) else None
        except (McapError, struct.error, ValueError, OverflowError, MemoryError) as error:
            damage.append(f'it breaks off at byte {stream.tell()}: {_why(error)}')
    if isinstance(held, Chunk):
        yield from _in_chunk(held, damage)


def _in_chunk(chunk, damage: list[str]) -> Iterator:
    from mcap.data_stream import ReadDataStream
    from mcap.exceptions import McapError
    from mcap.opcode import Opcode
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import get_chunk_data_stream

    where = f'chunk from {chunk.message_start_time * 1e-9:.6f}'
    whole = bool(chunk.compression) or len(chunk.data) == chunk.uncompressed_size
    try:
        stream, length = get_chunk_data_stream(chunk, validate_crc=whole)
    except Exception as error:  # decompressors have errors of their own
        damage.append(f'{where}: {_why(error)}')
        return
    try:
        while stream.count < length:
            opcode, size = stream.read1(), stream.read8()
            if stream.count + size > length:
                raise ValueError('it is cut short')
            content = ReadDataStream(BytesIO(stream.read(size)))
            if opcode == Opcode.MESSAGE:
                message = Message.read(content, size)
                if not chunk.message_start_time <= message.log_time <= chunk.message_end_time:
                    raise ValueError(f'a message of another time, {message.log_time * 1e-9:.6f}')
                yield message
            elif opcode == Opcode.CHANNEL:
                yield Channel.read(content)
            elif opcode == Opcode.SCHEMA:
                yield Schema.read(content)
            else:
                raise ValueError(f'no record begins with {opcode}')
    except (McapError, struct.error, ValueError) as error:
        damage.append(f'{where}: {_why(error)}')


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _save_mcap(source: Path, target: Path, found: Counter[str]) -> None:
    """Write anew, with an index, what can be read, and count it by topic."""
    from mcap.records import Channel, Schema
    from mcap.writer import Writer

    schemas: dict[int, int] = {}
    channels: dict[int, tuple[int, str]] = {}
    with target.open('wb') as out:
        writer = Writer(out)
        writer.start(profile='ros2')
        for record in _mcap_records(source, []):
            if isinstance(record, Schema):
                if record.id not in schemas:
                    schemas[record.id] = writer.register_schema(
                        record.name, record.encoding, record.data
                    )
            elif isinstance(record, Channel):
                if record.id not in channels:
                    schema = schemas.get(record.schema_id, 0)
                    number = writer.register_channel(
                        record.topic, record.message_encoding, schema, record.metadata
                    )
                    channels[record.id] = number, record.topic
            elif record.channel_id in channels:
                number, topic = channels[record.channel_id]
                writer.add_message(
                    number, record.log_time, record.data, record.publish_time, record.sequence
                )
                found[topic] += 1
        writer.finish()


# sqlite3


def _sqlite_damage(file: Path) -> str:
    """A write-ahead log beside it holds messages that a reader of the file alone does not see."""
    log = file.with_name(f'{file.name}-wal')
    if log.exists() and log.stat().st_size:
        return f'its end is still in {log.name}'
    try:
        with closing(_opened(file)) as database:
            ((found,),) = database.execute('PRAGMA quick_check(1)').fetchall()
            database.execute('SELECT topics.id, messages.id FROM topics, messages LIMIT 1')
    except sqlite3.DatabaseError as error:
        return str(error)
    return '' if found == 'ok' else ' '.join(found.split())


def _opened(file: Path) -> sqlite3.Connection:
    """For reading alone: nobody's recording is changed."""
    return sqlite3.connect(f'{file.resolve().as_uri()}?mode=ro', uri=True)


_TABLES = """
CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT, offered_qos_profiles TEXT);
CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB);
"""
"""What every version of rosbag2 has, or can do without."""


def _save_sqlite(source: Path, target: Path, found: Counter[str]) -> None:
    """Write anew the rows that can be read, and count them by topic."""
    with closing(_opened(source)) as old, closing(sqlite3.connect(target)) as new:
        new.executescript(_TABLES)
        try:
            # without it a file that is shorter than it should be is not read at all
            old.execute('PRAGMA writable_schema = ON')
            columns = [column[1] for column in old.execute('PRAGMA table_info(topics)')]
            qos = 'offered_qos_profiles' if 'offered_qos_profiles' in columns else "''"
            topics = list(
                old.execute(f'SELECT id, name, type, serialization_format, {qos} FROM topics')
            )
        except sqlite3.DatabaseError:
            return  # without its topics there is nothing
        new.executemany('INSERT INTO topics VALUES (?, ?, ?, ?, ?)', topics)
        try:
            for row in old.execute(
                'SELECT id, topic_id, timestamp, data FROM messages '
                "WHERE typeof(timestamp) = 'integer' AND typeof(data) = 'blob'"
            ):
                new.execute('INSERT INTO messages VALUES (?, ?, ?, ?)', row)
        except sqlite3.DatabaseError:  # `_sqlite_damage` has said so
            for row in _scanned(source):
                new.execute('INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?)', row)
        new.execute('CREATE INDEX timestamp_idx ON messages (timestamp ASC)')
        counts = (
            'SELECT name, count(*) FROM messages JOIN topics ON topic_id = topics.id GROUP BY 1'
        )
        found.update(dict(new.execute(counts)))
        new.commit()


def _scanned(file: Path) -> Iterator[tuple[int, int, int, bytes]]:
    """Messages of the leaves that a file still has, though no page leads to them: https://sqlite.org/fileformat2.html.

    The recovery that SQLite has is in none of its Python packages.
    """
    with file.open('rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        size = int.from_bytes(data[16:18], 'big')
        size = 65536 if size == 1 else size
        usable = size - data[20]
        for page in range(size, len(data) - size + 1, size):
            if data[page] != _LEAF:
                continue
            (count,) = struct.unpack_from('>H', data, page + 3)
            for cell in range(min(count, size // 2 - 4)):
                (at,) = struct.unpack_from('>H', data, page + 8 + 2 * cell)
                try:
                    yield _message(data, page + at, size, usable)
                except (ValueError, IndexError, struct.error):
                    continue  # damaged, or of another table


_LEAF = 13
"""First byte of a page with rows of a table."""


def _message(data: mmap.mmap, at: int, size: int, usable: int) -> tuple[int, int, int, bytes]:
    """The row of the cell that begins there. Raises ValueError for one of another table."""
    length, at = _varint(data, at)
    number, at = _varint(data, at)
    if length > len(data):
        raise ValueError('longer than the file')
    here = length
    if length > usable - 35:
        least = (usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (usable - 4)
        here = least if here > usable - 35 else here
    parts, left = [data[at : at + here]], length - here
    following = at + here
    while left:
        (page,) = struct.unpack_from('>I', data, following)
        following = (page - 1) * size
        if not 0 < page <= len(data) // size:
            raise ValueError('its end is lost')
        parts.append(data[following + 4 : following + 4 + min(left, usable - 4)])
        left -= len(parts[-1])
    row = b''.join(parts)
    end, place = _varint(row, 0)
    kinds = []
    while place < end:
        kind, place = _varint(row, place)
        kinds.append(kind)
    # the id is that of the row, then two integers and bytes
    if len(kinds) != 4 or kinds[0] != 0 or kinds[3] < 12 or kinds[3] % 2:
        raise ValueError('not a message')
    numbers = []
    for kind in kinds[1:3]:
        width = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 8: 0, 9: 0}.get(kind)
        if width is None:
            raise ValueError('not a message')
        whole = int.from_bytes(row[place : place + width], 'big', signed=True)
        numbers.append(whole if width else kind - 8)
        place += width
    if len(row) - place != (kinds[3] - 12) // 2:
        raise ValueError('not all of a message')
    return number, *numbers, row[place:]


def _varint(data: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    """The number, and where what follows begins."""
    value = 0
    for place in range(at, at + 8):
        value = value << 7 | data[place] & 127
        if data[place] < 128:
            return value, place + 1
    return value << 8 | data[at + 8], at + 9
