"""Image training: `joint` against four peers, each in its own loss and update, and against its own networks in the usual loop.

Batches of 16 random pictures that are there in memory: data cost nothing, and no side augments them. Seconds are those of 1,000
real pictures (of the processor; on a GPU, of the clock), over whole periods of a side's update: gradient penalties made now and
then have their share, and SNGAN's five critic batches to one of the generator's count as five. lightweight-gan's batches are of 4.

Widths are chosen so that the multiply-adds of one picture, forward through generator and critic, come nearest to ours (in
millions: *multiply-adds, forward*). lightweight-gan's second critic, of 32 px with attention, and its decoder to 128 px cost a
multiple of that at any width. *Multiply-adds, trained* are what a real picture costs in the side's training, counted as it runs;
ours are those of the plain form of its convolutions (`forwardsr.study.compute`), of which Winograd's filtering then saves a part,
and by these is the ratio *seconds a multiply-add*. The line of the plain loop is the comparison at equal networks: PyTorch's own
layers, float32, channels first, critic and generator in turn.

*Peak memory*, in MiB, is that of a process of its own that takes the side's two dearest steps, beyond what it held before the
networks were built (on a GPU, the most that was allocated). In the timings, all sides have the C library keep the memory that a
step frees (`forwardsr.learn.memory`); in the measurement of memory, none has.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from cases.record import OURS, Record, alternate
from cases.training_peers import PLAIN, SIDES, Training
from forwardsr.device import resolve_device, resolve_precision
from forwardsr.learn.joint import JointConfig, Stage
from forwardsr.learn.memory import keep_freed_memory
from forwardsr.study.compute import step_cost
from throughput import Noise

TITLE = "Image training: pictures a second and peak memory"
BATCH = JointConfig.batch
WIDTHS = {
    32: {OURS: 64, PLAIN: 64, "DCGAN, torchgan": 60, "SNGAN, mimicry": 16, "lightweight-gan": 16, "BMSG-GAN": 28},
    64: {OURS: 64, PLAIN: 64, "DCGAN, torchgan": 50, "SNGAN, mimicry": 224, "lightweight-gan": 16, "BMSG-GAN": 38},
    128: {OURS: 64, PLAIN: 64, "DCGAN, torchgan": 44, "SNGAN, mimicry": 208, "lightweight-gan": 16, "BMSG-GAN": 60},
}
FEW = 2  # pictures in the batches whose multiply-adds are counted
IMAGES = 64  # that a side sees in a round, at least
SLOW = "lightweight-gan"  # a round takes minutes: not in the quick form
ROUNDS, LONG = 3, 20.0  # seconds of a round, after which a side runs no second one
GOAL_EQUAL, GOAL_WORK = 0.5, 1.0
_MIB = 2**20


class Work(TorchDispatchMode):
    """Counts the multiply-adds of products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.multiplications += formula(*args, **(kwargs or {}), out_val=out) // 2
        return out


def work(run: Callable[[], object]) -> int:
    """Multiply-adds of ``run()``."""
    with Work() as counted:
        run()
    return counted.multiplications


def count(name: str, side: int, device: torch.device) -> tuple[float, float]:
    """Multiply-adds a real picture, forward and trained, of batches of ``FEW``; warms up what torch sets up once, too."""
    training = SIDES[name](Noise(side, FEW), WIDTHS[side][name], device)
    dearest, usual = work(training.step), work(training.step)
    trained = (dearest + (training.period - 1) * usual) / training.period
    with torch.no_grad():
        forward = work(lambda: training.critic(training.pictures(FEW)))
    return forward / FEW, trained / training.seen


def steps(training: Training) -> int:
    """Of a round: whole periods, of at least ``IMAGES`` pictures, or fewer where batches are small because a step is dear."""
    seen = training.seen * training.period
    return training.period * -(-(BATCH if training.seen < BATCH else IMAGES) // seen)


def go(training: Training, device: torch.device) -> None:
    """A round of one side."""
    for _ in range(steps(training)):
        training.step()
    if device.type == "cuda":
        torch.cuda.synchronize()


def resident(key: str) -> float:
    """Bytes resident: ``VmRSS`` now, ``VmHWM`` at most since this program began. What ``getrusage`` knows, where that is all.

    On Linux, ``getrusage`` has the most of the *process*, and so that of the program from which this one was started.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS
    return next(1024.0 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))


def peak(name: str, side: int, device: torch.device) -> float:
    """MiB; to be called in a fresh process."""
    source, held = Noise(side, BATCH), resident("VmRSS")
    training = SIDES[name](source, WIDTHS[side][name], device)
    for _ in range(2):
        training.step()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / _MIB
    return (resident("VmHWM") - held) / _MIB


def in_fresh_process(name: str, side: int, device: torch.device) -> float:
    """:func:`peak` there."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(peak, name, side, device).result()


def check(name: str, training: Training, side: int, before: list[torch.Tensor]) -> None:
    """Both networks have learned something, and pictures are of the right size."""
    for network, old in zip((training.generator, training.critic), before):
        assert not torch.equal(next(network.parameters()), old), f"{name} has not trained"
    with torch.no_grad():
        pictures = training.pictures(BATCH)
    finest = pictures if isinstance(pictures, torch.Tensor) else pictures[-1]
    assert finest.shape == (BATCH, 3, side, side), f"{name} gave {tuple(finest.shape)}"
    assert finest.isfinite().all(), f"{name} gave numbers that are not finite"


def run(full: bool) -> Iterator[Record]:
    """Every resolution, smallest first."""
    keep_freed_memory()
    device = resolve_device("auto")
    if full:
        for side in WIDTHS:
            yield from compare(side, device, tuple(SIDES), ROUNDS)
    else:
        yield from compare(32, device, tuple(name for name in SIDES if name != SLOW), 1)


def compare(side: int, device: torch.device, names: Sequence[str], rounds: int) -> Iterator[Record]:
    """All of ``names`` that are installed, in alternation."""
    source, trainings, missing = Noise(side, BATCH), dict[str, Training](), dict[str, str]()
    torch.manual_seed(0)  # the peers draw from the global state
    for name in names:
        try:
            trainings[name] = SIDES[name](source, WIDTHS[side][name], device)
        except ImportError as error:
            missing[name] = str(error)
            print(f"  {side} px, {name}: left out ({error})", flush=True)
    before = {
        name: [next(network.parameters()).detach().clone() for network in (each.generator, each.critic)]
        for name, each in trainings.items()
    }
    counted = {name: count(name, side, device) for name in trainings}
    sides = tuple(shape[-1] for shape in source.shapes)
    counted[OURS] = counted[PLAIN][0], step_cost(sides, Stage("", 0, len(sides)), JointConfig())
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    found = alternate(
        {name: partial(go, each, device) for name, each in trainings.items()}, rounds=rounds, long=LONG, clock=clock
    )
    seconds = {name: 1000 * found[name].median / (steps(each) * each.seen) for name, each in trainings.items()}
    memory = {name: in_fresh_process(name, side, device) for name in trainings}
    setting = f"{side} px, {device.type}, {resolve_precision('auto', device)}"
    for name, each in trainings.items():
        check(name, each, side, before[name])
        forward, trained = counted[name]
        figures = {
            "pictures/s": 1000 / seconds[name],
            "peak memory": memory[name],
            "parameters, millions": sum(p.numel() for p in each.parameters()) / 1e6,
            "multiply-adds, forward": forward / 1e6,
            "multiply-adds, trained": trained / 1e6,
        }
        ratio = {
            "seconds": seconds[OURS] / seconds[name],
            "seconds a multiply-add": seconds[OURS] / counted[OURS][1] * trained / seconds[name],
            "memory": memory[OURS] / memory[name],
        }
        goal = {"seconds": GOAL_EQUAL} if name == PLAIN else {"seconds a multiply-add": GOAL_WORK}
        timed = found[name]
        yield Record(
            "training", setting, name, each.version, 1000, None, seconds[name], timed.spread, len(timed.seconds),
            {} if name == OURS else ratio, {} if name == OURS else goal, figures=figures,
        )  # fmt: skip
    for name in missing:
        yield Record("training", setting, name, "not installed", 1000, None, None, None, 0)
