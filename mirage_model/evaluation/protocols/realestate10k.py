"""The RealEstate10K protocol: the first frame and the true trajectory in, the other frames out.

``mirage evaluate realestate10k --text DIR --frames DIR --manifest FILE``. Its poses have no metre:
each clip is brought to the scale of the depth estimate, as for training, or it counts as failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import random

from jaxtyping import Float64, UInt8
import numpy as np
import torch
from tqdm import tqdm

from mirage_model.clip import Clip
from mirage_model.data.estimate import complete
from mirage_model.data.realestate10k import RealEstate10K
from mirage_model.data.sources import Layout, Part
from mirage_model.engine.engine import Engine
from mirage_model.evaluation.config import RealEstate10KConfig
from mirage_model.evaluation.image_quality import MISSING, QUALITY, mean_with_interval, quality
from mirage_model.evaluation.replay.tables import write_tables
from mirage_model.interface import NOTHING, ImagineRequest, InvalidRequest, Observation, Trajectory
from mirage_model.io import as_json, begin_run, write_json

_MEMORY = 'realestate10k'


@dataclass(frozen=True, kw_only=True)
class ImaginedPath:
    """Frames along a path, and the pixels that the memory covered."""

    frames: UInt8[np.ndarray, 'n h w 3']
    covered: np.ndarray


def imagine_along(
    engine: Engine,
    clip: Clip,
    world_from_camera: Float64[np.ndarray, 'n 4 4'],
    *,
    seed: int = 0,
) -> ImaginedPath:
    """Seed a memory with the clip's first frame and depth; imagine a frame for each pose."""
    about, count = engine.describe(), len(world_from_camera)
    engine.seed(
        Observation(
            image=clip.frames[0].numpy(),
            K=clip.cameras.K[0].double().numpy(),
            world_from_camera=clip.cameras.world_from_camera[0].double().numpy(),
            time=float(clip.cameras.times[0]),
            depth=clip.depth[0].numpy(),
        ),
        memory=_MEMORY,
    )
    times = float(clip.cameras.times[0]) + np.arange(1, count + 1) / about.frame_rate
    path = Trajectory(world_from_camera=world_from_camera, times=times).padded(about)
    request = ImagineRequest(
        request_id=clip.name,
        world_from_camera=path.world_from_camera,
        times=path.times,
        memory=_MEMORY,
        seed=seed,
    )
    chunks = list(engine.imagine(request))
    return ImaginedPath(
        frames=np.concatenate([chunk.frames for chunk in chunks])[:count],
        covered=np.concatenate([chunk.visibility for chunk in chunks])[:count] != NOTHING,
    )


def measure(engine: Engine, clip: Clip) -> dict[str, float | int | str | None]:
    """Return means over the frames of the trajectory, and the metrics of the last frame out and
    back."""
    poses = clip.cameras.world_from_camera.double().numpy()
    there = imagine_along(engine, clip, poses[1:])
    truth = clip.frames[1:].numpy()
    frames = quality(there.frames, truth, there.covered)
    back = imagine_along(engine, clip, np.concatenate([poses[1:], poses[-2::-1]]))
    (closed,) = quality(back.frames[-1:], clip.frames[:1].numpy(), back.covered[-1:])
    row: dict[str, float | int | str | None] = {'clip': clip.name, 'frames': len(truth)}
    for name in frames[0]:
        known = [value[name] for value in frames if np.isfinite(value[name])]
        row[name] = float(np.mean(known)) if known else None
    row['covered'] = float(there.covered.mean())
    for name, value in closed.items():
        row[f'closed_loop_{name}'] = value if np.isfinite(value) else None
    return row


def evaluate(
    engine: Engine, source: RealEstate10K, names: Sequence[str], out: Path
) -> dict[str, object]:
    """Evaluate the clips of a manifest that are not finished; write tables and the summary.

    A clip that is missing or cannot be evaluated counts as failed, with its reason. Raises
    ValueError where ``out`` has results of another model or layout.
    """
    about = engine.describe()
    settings = {'model': about.model, 'sha256': about.sha256, 'layout': asdict(source.layout)}
    begin_run(out / 'config.json', settings)
    done = out / 'clips'
    done.mkdir(exist_ok=True)
    parts: dict[str, Part] = {}
    for part in source.listing().parts:
        parts.setdefault(part.sequence, part)
    rows, failed = [], {}
    for name in tqdm(names, unit='clip'):
        path = done / f'{name}.json'
        if not path.exists():
            try:
                if name not in parts:
                    raise ValueError('frames: none can be used')
                clip = complete(source.load(parts[name]), engine.model.perception)
                with torch.no_grad():
                    row = measure(engine, clip)
                write_json(path, row)
            except (ValueError, InvalidRequest) as error:
                failed[name] = str(error)
                continue
        rows.append(json.loads(path.read_text()))
    if rows:
        write_tables(out, {'clips': rows})
    names_of = (*QUALITY, 'covered', *(f'closed_loop_{name}' for name in QUALITY))
    summary = {
        'protocol': 'RealEstate10K',
        'model': about.model,
        'sha256': about.sha256,
        'clips': len(rows),
        'failed_clips': len(failed),
        'failed': failed,
        'missing': MISSING,
        'metrics': {
            name: mean_with_interval([np.nan if r[name] is None else r[name] for r in rows])
            for name in names_of
        },
    }
    write_json(out / 'realestate10k.json', summary)
    return summary


def choose(source: RealEstate10K, count: int, *, seed: int = 0) -> list[str]:
    """Draw sequences for a manifest, the same for the same folder.

    Raises ValueError for too few.
    """
    names = sorted({part.sequence for part in source.listing().parts})
    if len(names) < count:
        raise ValueError(f'{source.text}: {len(names)} usable sequences, {count} are needed')
    return sorted(random.Random(seed).sample(names, count))


def main(config: RealEstate10KConfig) -> int:
    """Evaluate the clips of the manifest; return 1 where none could be evaluated."""
    engine = Engine.from_folder(config.model, device=config.device)
    about = engine.describe()
    layout = Layout(
        height=about.height,
        width=about.width,
        rate=about.frame_rate,
        least=about.new_frames_per_chunk + 1,
        frames=config.length,
    )
    source = RealEstate10K(text=config.text, frames=config.frames, layout=layout)
    if not config.manifest.exists():
        config.manifest.write_text('\n'.join(choose(source, config.clips)) + '\n')
    summary = evaluate(engine, source, config.manifest.read_text().split(), config.out)
    print(as_json(summary))
    return 0 if summary['clips'] else 1
