"""Two processes train together on CPUs by gloo, as copies and sharded."""

from __future__ import annotations

from pathlib import Path
import re
import subprocess
import sys

from process import MODEL, TRAINER
import pytest
from safetensors.torch import load_file
from small_data import clip_of, save_data, small_objective
from test_trainer import curve
import torch

from mirage_model.training.trainer import checkpoints, fit

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
KINDS = ('copies', 'shards')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    clips = [clip_of(name, seed) for seed, name in enumerate('abc')]
    return save_data(
        tmp_path_factory.mktemp('data'), {'train': clips[:2], 'validation': clips[2:]}
    )


@pytest.fixture(scope='module')
def out(data, tmp_path_factory) -> Path:
    """Return a folder with the run folders, and printed.txt with the processes' output."""
    out = tmp_path_factory.mktemp('out')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    done = subprocess.run(
        [sys.executable, *launcher, HERE / 'process.py', data, out],
        env={'PYTHONPATH': f'{HERE}:{HERE.parent}:{HERE.parents[1]}', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (out / 'printed.txt').write_text(done.stdout)
    return out


def newest(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run)[-1] / f'{name}.safetensors')


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_resume_exactly(out, kind):
    unbroken, stopped = out / f'{kind}-unbroken', out / f'{kind}-stopped'
    for name in ('parameters', 'optimizer'):
        whole, resumed = newest(unbroken, name), newest(stopped, name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    for tag in ('train/loss', 'train/grad_norm', 'validation/memory_psnr_db'):
        assert curve(unbroken, tag) == curve(stopped, tag)
    assert [step for step, _ in curve(stopped, 'train/loss')] == [3, 6]


@pytest.mark.parametrize('kind', KINDS)
def test_an_error_on_one_process_is_raised_on_both(out, kind):
    # the lines of two processes may run into each other
    said = rf"{kind}-stopped: (loss is \[.*?\] at step 5: \['.'\])"
    stopped = re.findall(said, out.joinpath('printed.txt').read_text())
    assert len(stopped) == 2 and stopped[0] == stopped[1]
    assert 'nan] at step 5' in stopped[0]


def test_sharding_shards_and_changes_no_result(out):
    printed = out.joinpath('printed.txt').read_text()
    count = len(newest(out / 'shards-unbroken', 'parameters'))
    assert f'shards-unbroken: {count} of {count} sharded' in printed
    assert f'copies-unbroken: 0 of {count} sharded' in printed
    for name in ('parameters', 'optimizer'):
        copies, shards = (newest(out / f'{kind}-unbroken', name) for kind in KINDS)
        assert copies.keys() == shards.keys()
        # Muon makes its steps orthogonal in bfloat16, and where a gradient is zero but for
        # rounding, as that of
        # a bias of keys is, any optimiser makes a step of the rounding: all parameters are
        # compared at once
        one, other = (
            torch.cat([of[key].flatten() for key in sorted(of)]) for of in (copies, shards)
        )
        assert (one - other).norm() < 5e-3 * one.norm()
    for tag in ('train/loss', 'train/grad_norm'):
        one, other = (curve(out / f'{kind}-unbroken', tag) for kind in KINDS)
        assert [step for step, _ in one] == [step for step, _ in other]
        assert [v for _, v in one] == pytest.approx([v for _, v in other], rel=2e-3)


def test_sharding_over_needs_gpus(out):
    assert 'rejected: fsdp: these processes have no GPU' in out.joinpath('printed.txt').read_text()


def test_a_sharded_run_continues_in_one_process(data, out):
    """A checkpoint is whole: one process reads what two wrote together."""
    run = out / 'shards-half'
    assert checkpoints(run)[-1].name == 'checkpoint-0000004'
    objective = small_objective(data, MODEL)
    trained = {n: p.shape for n, p in objective.module.named_parameters() if p.requires_grad}
    written = {n.rpartition('/')[0]: p.shape for n, p in newest(run, 'optimizer').items()}
    assert written == trained
    fit(objective, TRAINER, run, full_config={})
    assert checkpoints(run)[-1].name == 'checkpoint-0000006'
