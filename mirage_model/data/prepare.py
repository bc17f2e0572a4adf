"""Make clips of any source ready for training: ``python -m mirage_model.data.prepare --clips DIR --out DIR``.

Estimates depth and labels where the source has none, keeps what moves out of what may be remembered, and encodes
latents once, into OUT/train, OUT/validation and OUT/test by the scene of every clip. Stopped and started again
with the same arguments it goes on where it was. OUT/report.json says what was left out and why.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
import hashlib
from pathlib import Path
import re
import signal

from tqdm import tqdm

from mirage_model.clip import save_clip, why_left_out
from mirage_model.data.bag import Bag, BagConfig
from mirage_model.data.estimate import complete
from mirage_model.data.latents import (
    PREPARED,
    Journal,
    Shard,
    encode_clip,
    read_index,
    save_latents,
)
from mirage_model.data.realestate10k import RealEstate10K
from mirage_model.data.sources import Layout, Part, RecordedClips, Source
from mirage_model.data.splits import NAMES, SPLITS, read_splits, split_of
from mirage_model.io import begin_run, fingerprint, write_json
from mirage_model.model.checkpoint import EMBEDDED, load_perception
from mirage_model.model.codec import Codec
from mirage_model.perception import Perception
from mirage_model.process_pool import in_workers


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Where things are, and how clips are cut and encoded.

    ``codec`` is a VAE folder, ``model`` a model folder whose perception estimates what is missing.
    ``clips_out`` keeps the completed clips too, in a folder for every split; None keeps the latents alone.
    """

    out: Path
    codec: Path
    model: Path
    layout: Layout
    chunk_frames: int
    splits: Path = SPLITS
    clips_out: Path | None = None
    device: str = 'cpu'

    def identity(self) -> dict:
        """What must stay the same for clips to lie in one folder."""
        return {
            'codec': fingerprint(self.codec),
            'perception': fingerprint(self.model / 'perception'),
            'layout': asdict(self.layout),
            'chunk_frames': self.chunk_frames,
            'splits': hashlib.sha256(self.splits.read_bytes()).hexdigest(),
        }


def prepare(config: PrepareConfig, sources: list[Source], *, workers: int = 1) -> dict:
    """Prepare all clips of all sources, and return the report that is written too.

    Raises ValueError if the folder was prepared otherwise, if two clips have one name, or if nothing is there.
    """
    splits = read_splits(config.splits)
    identity = config.identity()
    begin_run(config.out / PREPARED, identity)
    if config.clips_out is not None:
        kept = {name: identity[name] for name in ('perception', 'layout', 'splits')}
        begin_run(config.clips_out / PREPARED, kept)
    listings = [source.listing() for source in sources]
    named = Counter(part.name for listing in listings for part in listing.parts)
    twice = sorted(name for name, count in named.items() if count > 1)
    if twice:
        raise ValueError(f'two clips have the name {twice[0]!r}')
    scenes = {part.scene.casefold() for listing in listings for part in listing.parts}
    unusable = [entry for listing in listings for entry in listing.left_out]
    with ExitStack() as stack:
        journals = {}
        for split in NAMES:
            journals[split] = Journal(config.out / split)
            stack.callback(journals[split].close)
            if config.clips_out is not None:
                (config.clips_out / split).mkdir(parents=True, exist_ok=True)
        done = {
            split: journal.done(config.clips_out and config.clips_out / split)
            for split, journal in journals.items()
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
            journals[split].add(shard)
            bar.update()
        bar.close()
    report = _report(config, unusable, splits, scenes)
    if not any(report[split]['clips'] for split in NAMES):
        reasons = ', '.join(sorted({entry['reason'] for entry in report['left_out']})[:3])
        raise ValueError(f'no clip could be prepared: {reasons}')
    return report


def prepare_clip(
    config: PrepareConfig, source: Source, part: Part, split: str
) -> tuple[str, Shard]:
    """Load, complete and encode one clip, and say what became of it."""
    try:
        clip = source.load(part)
        if not (clip.labelled and clip.metric):
            clip = complete(clip, _perception(config.model, config.device))
        reason = why_left_out(clip)
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
def _perception(folder: Path, device: str) -> Perception:
    return load_perception(folder, device=device)[1]


def _report(
    config: PrepareConfig, unusable: list[tuple[str, str, str]], splits: dict, scenes: set[str]
) -> dict:
    """What every split holds, and what was left out and why; written to report.json."""
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
    # of the worlds that this file is shipped with nobody has all
    wanted = [] if config.splits == SPLITS else held_out
    report['not_found'] = sorted(name for name in wanted if name.casefold() not in scenes)
    report['left_out'] = [dict(zip(keys, entry)) for entry in sorted(left_out)]
    write_json(config.out / 'report.json', report)
    return report


def _mean(values: list[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def summary(report: dict) -> str:
    """The report in a few lines, reasons that differ in their numbers alone counted together."""
    lines = []
    for split in NAMES:
        part = report[split]
        lines.append(
            f'{split}: {part["clips"]} clips of {part["scenes"]} scenes, {part["frames"]} frames in '
            f'{part["chunks"]} chunks'
            + (
                ''
                if part['valid'] is None
                else f'; {part["valid"]:.0%} of the cells may be remembered'
            )
        )
    if report['not_found']:
        lines.append(f'held out, but of no clip: {", ".join(report["not_found"])}')
    reasons = Counter(re.sub(r'\d+(\.\d+)?', 'N', entry['reason']) for entry in report['left_out'])
    lines.append(f'left out: {sum(reasons.values())}')
    lines += [f'  {count} x {reason}' for reason, count in reasons.most_common(12)]
    return '\n'.join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Callable = parser.add_argument
    add('--out', required=True, type=Path)
    add('--clips', type=Path, action='append', default=[], help='recorded clips; may be repeated')
    add(
        '--realestate10k',
        type=Path,
        nargs=2,
        metavar=('TEXT', 'FRAMES'),
        help='folder of text files, and folder of folders of frames',
    )
    add('--bag', type=Path, action='append', default=[], help='may be repeated; takes the topics')
    add('--image', help='topic')
    add('--camera-info', help='topic')
    add('--pose', help='topic of poses or odometry')
    add('--depth', default='', help='topic, if there is one')
    add(
        '--base-from-camera',
        type=float,
        nargs=7,
        default=(),
        metavar='N',
        help='x y z and quaternion x y z w of the optical frame on what the poses are of',
    )
    add('--model', type=Path, default=EMBEDDED, help='model folder: perception, codec and sizes')
    add('--codec', type=Path, help="VAE folder in the place of the model's")
    add('--height', type=int, help="of the frames; default: the model's")
    add('--width', type=int, help="of the frames; default: the model's")
    add('--rate', type=float, help="frames a second; default: the model's")
    add('--chunk-frames', type=int, help="default: the model's")
    add('--frames', type=int, default=65, help='most frames of a clip')
    add('--splits', type=Path, default=SPLITS, help='which scenes are for validation and test')
    add('--save-clips', type=Path, help='folder to keep the completed clips in too')
    add('--device', default='cpu')
    add('--workers', type=int, default=2)
    return parser


def _sources(arguments: argparse.Namespace, layout: Layout) -> list[Source]:
    """Raises ValueError where there is none, or a bag has no topics."""
    sources: list[Source] = [RecordedClips(folder=f, layout=layout) for f in arguments.clips]
    if arguments.realestate10k:
        text, frames = arguments.realestate10k
        sources.append(RealEstate10K(text=text, frames=frames, layout=layout))
    for path in arguments.bag:
        if not (arguments.image and arguments.camera_info and arguments.pose):
            raise ValueError('--bag needs --image, --camera-info and --pose')
        config = BagConfig(
            image=arguments.image,
            camera_info=arguments.camera_info,
            pose=arguments.pose,
            depth=arguments.depth,
            base_from_camera=tuple(arguments.base_from_camera),
        )
        sources.append(Bag(path, config, layout))
    if not sources:
        raise ValueError('no clips: give --clips, --realestate10k or --bag')
    return sources


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        model, _ = load_perception(arguments.model)
        chunk_frames = arguments.chunk_frames or model.chunk_frames
        layout = Layout(
            height=arguments.height or model.height,
            width=arguments.width or model.width,
            rate=arguments.rate or model.frame_rate,
            least=chunk_frames,
            frames=arguments.frames,
        )
        config = PrepareConfig(
            out=arguments.out,
            codec=arguments.codec or arguments.model / 'vae',
            model=arguments.model,
            layout=layout,
            chunk_frames=chunk_frames,
            splits=arguments.splits,
            clips_out=arguments.save_clips,
            device=arguments.device,
        )
        print(summary(prepare(config, _sources(arguments, layout), workers=arguments.workers)))
    except ValueError as error:
        parser.exit(1, f'{error}\n')
    except KeyboardInterrupt:
        parser.exit(130, 'stopped; the same command goes on from here\n')


if __name__ == '__main__':
    main()
