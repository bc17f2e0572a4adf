"""Command that trains a world model in a given time, from data to model folder."""

from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
import time

from mirage_model.data import prepare, record
from mirage_model.data.config import PrepareCommand, RecordCommand, RecordConfig
from mirage_model.io import read_json, remove_folder, write_json
from mirage_model.model.checkpoint import EMBEDDED, load_model_info
from mirage_model.training import world_model_command
from mirage_model.training.config import TrainerConfig, WorldModelTraining
from mirage_model.training.export import export
from mirage_model.training.kit_config import KitCommand
from mirage_model.training.trainer import checkpoints

SECONDS_PER_CHECKPOINT = 120.0


def main(config: KitCommand) -> int:
    """Record and prepare clips if none are given, train, and write the model folder.

    Raises:
        ValueError: A folder is missing or does not fit.
    """
    model = config.model or EMBEDDED
    clips, latents = config.clips, config.latents
    if clips is None or latents is None:
        clips, latents = _record(config, model)
    training = WorldModelTraining(
        latents=latents,
        clips=clips,
        codec=model / 'vae',
        run=config.out / 'run',
        resampler=model / 'resampler' if (model / 'resampler').is_dir() else None,
        start=config.start,
        compile=config.compile,
        world_model=config.world_model,
        trainer=TrainerConfig(
            steps=config.probe_steps,
            learning_rate=config.learning_rate,
            warmup_steps=1,
            precision=config.precision,
        ),
    )
    path = config.out / 'kit.json'
    if path.is_file():
        planned = json.loads(path.read_text())
    else:
        step = _step_seconds(training, config.out / 'probe')
        steps = max(1, round(60 * config.minutes / step))
        planned = {'step_s': step, 'steps': steps, 'minutes': config.minutes}
        write_json(path, planned)
    steps = planned['steps']
    trainer = replace(
        training.trainer,
        steps=steps,
        warmup_steps=min(100, steps // 10),
        validate_every=steps,
        checkpoint_every=max(1, round(SECONDS_PER_CHECKPOINT / planned['step_s'])),
    )
    began = time.monotonic()
    world_model_command.main(replace(training, trainer=trainer))
    checkpoint = checkpoints(training.run)[-1]
    (validation, *_) = (training.run / 'validation.jsonl').read_text().splitlines()[::-1]
    result = {**planned, 'seconds': time.monotonic() - began, **json.loads(validation)}
    write_json(path, result)
    fields = read_json(model / 'model.json')
    kept = ('height', 'width', 'chunk_frames', 'frame_rate', 'perception')
    export(
        config.out / 'model',
        world_model=checkpoint,
        vae=model / 'vae',
        perception=model / 'perception',
        resampler=training.resampler,
        settings={name: fields[name] for name in kept if name in fields},
    )
    print(f'wrote {config.out / "model"}: {steps} steps, {result["seconds"]:.0f} s')
    return 0


def _record(config: KitCommand, model: Path) -> tuple[Path, Path]:
    """Return the folders of recorded clips and of their latents."""
    recorded, latents = config.out / 'recorded', config.out / 'latents'
    about = load_model_info(model)
    size = RecordConfig(
        height=about.height,
        width=about.width,
        rate=about.frame_rate,
        frames=max(RecordConfig().frames, 2 * about.new_frames_per_chunk + 1),
    )
    train = RecordCommand(
        split='train', out=recorded, world='rooms', clips=config.recorded, record=size
    )
    few = max(1, config.recorded // 8)
    record.main(train)
    record.main(replace(train, split='validation', clips=few))
    clips = config.out / 'clips'
    prepare.main(
        PrepareCommand(
            out=latents, clips=(recorded,), model=model, frames=size.frames, save_clips=clips
        )
    )
    return clips, latents


def _step_seconds(training: WorldModelTraining, run: Path) -> float:
    """Return the median time of a step in the second half of a short run, which is deleted [s]."""
    objective = world_model_command.make_objective(training)
    times = [time.monotonic()]
    done = objective.after_step

    def timed(step: int) -> None:
        done(step)
        times.append(time.monotonic())

    objective.after_step = timed  # type: ignore[method-assign]
    world_model_command.train(objective, replace(training, run=run))
    remove_folder(run)
    steps = sorted(after - before for before, after in zip(times, times[1:]))
    return steps[len(steps) // 2]
