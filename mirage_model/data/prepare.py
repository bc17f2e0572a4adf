"""Preparation of clips of any source for training.

Missing depth and labels are estimated, and latents are encoded once, into train/, validation/ and
test/ by the scene of the clip. report.json lists what was left out, and why.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
import hashlib
from pathlib import Path
import re
import signal

from tqdm import tqdm

from mirage_model.clip import reason_to_reject, save_clip
from mirage_model.data.bag import Bag
from mirage_model.data.config import BagConfig, PrepareCommand
from mirage_model.data.estimate import complete
from mirage_model.data.latents import (
    PREPARED,
    IndexWriter,
    Shard,
    encode_clip,
    read_index,
    save_latents,
)
from mirage_model.data.posed_frames import Colmap, Tum
from mirage_model.data.realestate10k import RealEstate10K
from mirage_model.data.sources import Layout, Part, RecordedClips, Source
from mirage_model.data.splits import NAMES, SPLITS, read_splits, split_of
from mirage_model.data.vipe import Vipe
from mirage_model.io import begin_run, fingerprint, write_json
from mirage_model.model.checkpoint import EMBEDDED, load_perception
from mirage_model.model.codec import Codec
from mirage_model.perception import Perception
from mirage_model.process_pool import in_workers


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Folders, and how clips are cut and encoded."""

    out: Path
    """Folder of the latents."""
    codec: Path
    """VAE folder."""
    model: Path
    """Model folder whose perception estimates missing depth and labels."""
    layout: Layout
    chunk_frames: int
    """Frames of a chunk, the context frame included."""
    splits: Path = SPLITS
    """JSON file with the scenes of validation and test."""
    clips_out: Path | None = None
    """Folder in which completed clips are kept; None keeps the latents alone."""
    device: str = 'cpu'
    labeller: Path | None = None
    """Folder of a labeller, in place of the model's own."""

    def description(self) -> dict:
        """Return what must be the same for all clips of a folder."""
        return {
            'codec': fingerprint(self.codec),
            'perception': fingerprint(self.model / 'perception'),
            'layout': asdict(self.layout),
            'chunk_frames': self.chunk_frames,
            'splits': hashlib.sha256(self.splits.read_bytes()).hexdigest(),
        } | self._labeller()

    def _labeller(self) -> dict:
        folder = self.labeller or self.model / 'labeller'
        return {'labeller': fingerprint(folder)} if folder.is_dir() else {}


def prepare(config: PrepareConfig, sources: list[Source], *, workers: int = 1) -> dict:
    """Prepare all clips of all sources; return the report, which is also written.

    Raises:
        ValueError: The folder was prepared with another configuration, two clips have one name, or
            no clip can be prepared.
    """
    splits = read_splits(config.splits)
    description = config.description()
    begin_run(config.out / PREPARED, description)
    if config.clips_out is not None:
        names = ('perception', 'labeller', 'layout', 'splits')
        kept = {name: description[name] for name in names if name in description}
        begin_run(config.clips_out / PREPARED, kept)
    listings = [source.listing() for source in sources]
    named = Counter(part.name for listing in listings for part in listing.parts)
    repeated = sorted(name for name, count in named.items() if count > 1)
    if repeated:
        raise ValueError(f'{repeated[0]}: two clips have this name, rename one')
    scenes = {part.scene.casefold() for listing in listings for part in listing.parts}
    unusable = [entry for listing in listings for entry in listing.left_out]
    with ExitStack() as stack:
        writers = {}
        for split in NAMES:
            writers[split] = IndexWriter(config.out / split)
            stack.callback(writers[split].close)
            if config.clips_out is not None:
                (config.clips_out / split).mkdir(parents=True, exist_ok=True)
        done = {
            split: writer.done(config.clips_out and config.clips_out / split)
            for split, writer in writers.items()
        }
        jobs = []
        for source, listing in zip(sources, listings):
            for part in listing.parts:
                split = split_of(part.scene, splits)
                if part.name not in done[split]:
                    jobs.append((config, source, part, split))
        total = len(named)
        bar = tqdm(total=total, initial=total - len(jobs), unit='clip')
        for split, shard in in_workers(prepare_clip, jobs, workers=workers):
            writers[split].add(shard)
            bar.update()
        bar.close()
    report = _report(config, unusable, splits, scenes)
    if not any(report[split]['clips'] for split in NAMES):
        reasons = ', '.join(sorted({entry['reason'] for entry in report['left_out']})[:3])
        raise ValueError(f'clips: none could be prepared: {reasons}')
    return report


def prepare_clip(
    config: PrepareConfig, source: Source, part: Part, split: str
) -> tuple[str, Shard]:
    """Load, complete and encode one clip; return its split and its line in the index."""
    try:
        clip = source.load(part)
        if not (clip.labelled and clip.metric):
            clip = complete(clip, _perception(config.model, config.device, config.labeller))
        reason = reason_to_reject(clip)
        if reason is not None:
            raise ValueError(reason)
        codec = _codec(config.codec, config.device)
        tensors = encode_clip(clip, codec, chunk_frames=config.chunk_frames)
    except ValueError as error:
        return split, Shard(name=part.name, scene=part.scene, left_out=str(error))
    if config.clips_out is not None:
        save_clip(config.clips_out / split / f'{part.name}.safetensors', clip)
    save_latents(config.out / split / f'{part.name}.safetensors', tensors)
    chunks = len(tensors['video'])
    return split, Shard(
        name=part.name,
        scene=part.scene,
        text=clip.text,
        chunks=chunks,
        frames=chunks * (config.chunk_frames - 1) + 1,
        valid=round(float(tensors['valid'].float().mean()), 4),
    )


@cache
def _codec(folder: Path, device: str) -> Codec:
    return Codec.from_folder(folder, device=device)


@cache
def _perception(folder: Path, device: str, labeller: Path | None) -> Perception:
    return load_perception(folder, device=device, labeller=labeller)[1]


def _report(
    config: PrepareConfig, unusable: list[tuple[str, str, str]], splits: dict, scenes: set[str]
) -> dict:
    """Write report.json: the content of each split, and what was left out and why."""
    report: dict = {}
    left_out = []
    for split in NAMES:
        index = read_index(config.out / split)
        report[split] = {
            'clips': len(index.shards),
            'scenes': len({shard.scene for shard in index.shards}),
            'chunks': len(index),
            'frames': sum(shard.frames for shard in index.shards),
            'valid': _mean([shard.valid for shard in index.shards]),
        }
        left_out += [(s.name, s.scene, split, s.left_out) for s in index.left_out]
    left_out += [(name, scene, split_of(scene, splits), why) for name, scene, why in unusable]
    keys = ('name', 'scene', 'split', 'reason')
    held_out = [
        name for parts in splits.values() for split in NAMES[1:] for name in parts.get(split, [])
    ]
    # the scenes of the shipped file are more than anyone records
    wanted = [] if config.splits == SPLITS else held_out
    report['not_found'] = sorted(name for name in wanted if name.casefold() not in scenes)
    report['left_out'] = [dict(zip(keys, entry)) for entry in sorted(left_out)]
    write_json(config.out / 'report.json', report)
    return report


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def summary(report: dict) -> str:
    """Return the report in a few lines; reasons that differ in numbers alone count together."""
    lines = []
    for split in NAMES:
        part = report[split]
        lines.append(
            f'{split}: {part["clips"]} clips of {part["scenes"]} scenes, {part["frames"]} frames '
            'in '
            f'{part["chunks"]} chunks'
            + (
                ''
                if part['valid'] is None
                else f'; {part["valid"]:.0%} of the cells may enter a memory'
            )
        )
    if report['not_found']:
        lines.append(f'held out, but in no clip: {", ".join(report["not_found"])}')
    reasons = Counter(re.sub(r'\d+(\.\d+)?', 'N', entry['reason']) for entry in report['left_out'])
    lines.append(f'left out: {sum(reasons.values())}')
    lines += [f'  {count} x {reason}' for reason, count in reasons.most_common(12)]
    return '\n'.join(lines)


def _sources(command: PrepareCommand, layout: Layout) -> list[Source]:
    """Return the sources that are given.

    Raises:
        ValueError: There is none, or a bag has no topics.
    """
    sources: list[Source] = [RecordedClips(folder=f, layout=layout) for f in command.clips]
    if command.realestate10k is not None:
        text, frames = command.realestate10k
        sources.append(RealEstate10K(text=text, frames=frames, layout=layout))
    for video, folder in command.vipe:
        sources.append(Vipe(video=video, folder=folder, layout=layout))
    for frames, folder in command.colmap:
        sources.append(Colmap(frames=frames, model=folder, rate=command.frame_rate, layout=layout))
    for folder, trajectory in command.tum:
        if command.intrinsics is None:
            raise ValueError('tum: the camera is missing, give --intrinsics FX FY CX CY')
        sources.append(
            Tum(
                folder=folder,
                trajectory=trajectory,
                intrinsics=command.intrinsics,
                depth_scale=command.depth_scale,
                tolerance=BagConfig.tolerance,
                pose_gap=BagConfig.pose_gap,
                layout=layout,
            )
        )
    for path in command.bag:
        if not (command.image and command.camera_info and command.pose):
            raise ValueError('bag: topics are missing, give --image, --camera-info and --pose')
        config = BagConfig(
            image=command.image,
            camera_info=command.camera_info,
            pose=command.pose,
            depth=command.depth,
            depth_camera_info=command.depth_camera_info,
            base_frame=command.base_frame,
            base_from_camera=command.base_from_camera,
            accept=command.accept,
        )
        sources.append(Bag(path, config, layout))
    if not sources:
        raise ValueError(
            'clips: no source is given, use --clips, --realestate10k, --vipe, --colmap, --tum or '
            '--bag'
        )
    return sources


def main(command: PrepareCommand) -> int:
    """Prepare all clips, and print a summary; SIGTERM stops it as SIGINT does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = command.model or EMBEDDED
    model, _ = load_perception(folder)
    chunk_frames = command.chunk_frames or model.chunk_frames
    layout = Layout(
        height=command.height or model.height,
        width=command.width or model.width,
        rate=command.rate or model.frame_rate,
        least=chunk_frames,
        frames=command.frames,
    )
    config = PrepareConfig(
        out=command.out,
        codec=command.codec or folder / 'vae',
        model=folder,
        layout=layout,
        chunk_frames=chunk_frames,
        splits=command.splits or SPLITS,
        clips_out=command.save_clips,
        device=command.device,
        labeller=command.labeller,
    )
    sources = _sources(command, layout)
    try:
        print(summary(prepare(config, sources, workers=command.workers)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt('the same command continues') from None
    return 0
