"""The loop that every training shares: steps, logs, checkpoints that resume exactly.

What a step sees follows from (seed, step, rank) alone, and the learning rate from the step, so that a
checkpoint is the weights, the optimiser's moments and a number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
import math
import os
from pathlib import Path
import shutil
import subprocess
import time
from typing import Protocol, runtime_checkable

from accelerate import Accelerator
import numpy as np
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    steps: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    accumulate: int = 1
    precision: str = 'no'
    seed: int = 0
    log_every: int = 20
    validate_every: int = 500
    checkpoint_every: int = 250


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """``loss`` is a scalar with a graph, ``logs`` are plain numbers, ``names`` the clips of the batch."""

    loss: Tensor
    logs: dict[str, float]
    names: list[str]


@runtime_checkable
class Objective(Protocol):
    """What is trained and how it is judged. ``module`` holds every trainable parameter."""

    module: nn.Module

    def step(
        self, module: nn.Module, rng: np.random.Generator, generator: torch.Generator, step: int
    ) -> StepResult: ...

    def validate(self, writer: SummaryWriter | None, step: int) -> dict[str, float]: ...


class DivergedError(RuntimeError):
    """The loss is NaN or infinite; the message names the step and the clips."""


def learning_rate(config: TrainerConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def fit(objective: Objective, config: TrainerConfig, run: Path, *, full_config: dict) -> None:
    """Train to the last step, from the newest checkpoint of the run folder if there is one."""
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.accumulate
    )
    main = accelerator.is_main_process
    parameters = {n: p for n, p in objective.module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(),
        lr=config.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=config.weight_decay,
    )
    run.mkdir(parents=True, exist_ok=True)
    start = _resume(run, parameters, optimizer)
    if main:
        described = {'trainer': asdict(config), **full_config, 'commit': _commit()}
        (run / 'config.json').write_text(json.dumps(described, indent=1, default=str))
    module, optimizer = accelerator.prepare(objective.module, optimizer)
    writer = SummaryWriter(str(run / 'logs'), purge_step=start) if main else None
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, disable=not main)
    began, sums, count = time.monotonic(), {}, 0
    for step in bar:
        for group in optimizer.param_groups:
            group['lr'] = learning_rate(config, step)
        for micro in range(config.accumulate):
            key = (config.seed, step, micro, accelerator.process_index)
            rng = np.random.default_rng(key)
            generator = torch.Generator(accelerator.device).manual_seed(int(rng.integers(2**62)))
            with accelerator.accumulate(module):
                # accelerate casts inside the prepared module alone: geometry stays in float32
                result = objective.step(module, rng, generator, step)
                if not torch.isfinite(result.loss):
                    raise DivergedError(
                        f'loss is {float(result.loss.detach())} at step {step}: {result.names}'
                    )
                accelerator.backward(result.loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(parameters.values(), config.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
        for name, value in {
            **result.logs,
            'loss': float(result.loss.detach()),
            'grad_norm': float(norm),
        }.items():
            sums[name] = sums.get(name, 0.0) + value
        count += 1
        done = step + 1
        if main and done % config.log_every == 0:
            means = {name: total / count for name, total in sums.items()}
            for name, value in means.items():
                writer.add_scalar(f'train/{name}', value, done)
            writer.add_scalar(
                'train/steps_per_second', (done - start) / (time.monotonic() - began), done
            )
            bar.set_postfix({name: f'{value:.4f}' for name, value in means.items()})
            sums, count = {}, 0
        if main and (done % config.validate_every == 0 or done == config.steps):
            figures = objective.validate(writer, done)
            for name, value in figures.items():
                writer.add_scalar(f'validation/{name}', value, done)
            with (run / 'validation.jsonl').open('a') as file:
                file.write(json.dumps({'step': done, **figures}) + '\n')
            tqdm.write(f'step {done}: ' + ', '.join(f'{k} {v:.3f}' for k, v in figures.items()))
        if main and (done % config.checkpoint_every == 0 or done == config.steps):
            _save(run, done, objective.module, parameters, optimizer)
        accelerator.wait_for_everyone()
    if writer is not None:
        writer.close()


def _save(
    run: Path, step: int, module: nn.Module, parameters: dict[str, nn.Parameter], optimizer
) -> None:
    """All parameters, frozen ones too, written aside, then renamed; the two newest are kept."""
    folder = run / f'checkpoint-{step:07d}'
    aside = run / f'{folder.name}.part'
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    every = {name: p.detach().contiguous() for name, p in module.named_parameters()}
    save_file(every, aside / 'parameters.safetensors')
    moments = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            moments[f'{name}/{key}'] = value.detach().clone()
    save_file(moments, aside / 'optimizer.safetensors')
    (aside / 'state.json').write_text(json.dumps({'step': step}))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(aside, folder)
    for old in checkpoints(run)[:-2]:
        shutil.rmtree(old)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    return sorted(p for p in run.glob('checkpoint-*') if p.suffix != '.part')


def load_parameters(module: nn.Module, checkpoint: Path) -> None:
    """Copy a checkpoint's parameters into a module. Raises ValueError that names what does not fit."""
    own = dict(module.named_parameters())
    stored = load_file(checkpoint / 'parameters.safetensors')
    missing = sorted(own.keys() - stored.keys())
    if missing:
        raise ValueError(f'{checkpoint} lacks {len(missing)} parameters, {missing[0]} among them')
    for name, value in stored.items():
        if name not in own or own[name].shape != value.shape:
            raise ValueError(f'{checkpoint}: {name} {tuple(value.shape)} does not fit the model')
        own[name].data.copy_(value)


def _resume(run: Path, parameters: dict[str, nn.Parameter], optimizer) -> int:
    found = checkpoints(run)
    if not found:
        return 0
    weights = load_file(found[-1] / 'parameters.safetensors')
    moments = load_file(found[-1] / 'optimizer.safetensors')
    trained = {name.rpartition('/')[0] for name in moments}
    if not weights.keys() >= parameters.keys() or trained != parameters.keys():
        raise ValueError(f'{found[-1]} is of another model or stage; start in another run folder')
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
        state = {key: moments[f'{name}/{key}'] for key in ('step', 'exp_avg', 'exp_avg_sq')}
        optimizer.state[parameter] = state
    return json.loads((found[-1] / 'state.json').read_text())['step']


def _commit() -> str:
    done = subprocess.run(
        ['git', 'rev-parse', 'HEAD'],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip() or 'unknown'
