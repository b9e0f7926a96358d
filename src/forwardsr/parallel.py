r"""Many processes, one learning: ``torchrun --nproc-per-node K -m forwardsr learn ...``.

The process of rank 0 runs the command as it would alone. Where a part of the work can be divided it *calls* the others
(:meth:`World.call`), which wait in :func:`run` for what they are told to do; everything else (parsing, checks, the Run, reports,
figures) happens once, at rank 0, and so do messages.

**Images.** With a batch cut into K equal parts :math:`B_r`, :math:`\nabla \frac1{|B|} \sum_{i \in B} \ell_i = \frac1K \sum_r
\nabla \frac1{|B_r|} \sum_{i \in B_r} \ell_i`: every process takes its part of the batch that one process would take, and gradients
are averaged. Samples meet in batch normalisation only: :mod:`forwardsr.model.shared_norm`.

**Moments.** Chunks of samples go round the processes, and their sums are added in the order of the chunks
(:meth:`World.add_in_turn`), as one process adds them: floating-point addition is not associative, so only that gives the same bits.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from forwardsr.errors import UserError

_PATIENCE = timedelta(days=14)  # a process may wait while rank 0 measures for hours; torchrun sees who has died
_GRACE = timedelta(seconds=30)  # from the end of a job at one process to that at another
_HELD = 16  # chunks' sums a process may be ahead of the addition
_HELD_NUMBERS = 2**24  # and numbers
BACKEND = "FORWARDSR_BACKEND"  # environment variable: nccl (the default) or gloo, for tensors on CUDA devices


class PeerLost(UserError):
    """Another process of this job has ended."""


@contextlib.contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of all backends, with as many wordings
        raise PeerLost(
            "another process of this job has ended; its own message says why, and the same command goes on from the last checkpoint"
        ) from error


class World:
    """This process's ``rank`` among ``size``, and what they do together. With a size of 1 every operation is the identity.

    Each method but :meth:`part` must be called by all processes in the same order. A collective raises :class:`PeerLost` where a
    process has ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: PrefixStore | None = None) -> None:
        self.rank, self.size, self.store = rank, size, store
        self._jobs = 0
        self._sent: tuple[Any, Tensor] | None = None

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which keeps the Run and speaks."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """This process's part of ``n`` things in a row; parts differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def check(self, batch: int, device: torch.device) -> None:
        """Raises :class:`UserError` where ``batch`` cannot be divided evenly, or there are not as many CUDA devices."""
        if self.size == 1:
            return
        if batch % self.size:
            near = max(self.size, self.size * round(batch / self.size))
            raise UserError(
                f"--batch {batch}: {self.size} processes cannot share it equally; say --batch {near}, or another --nproc-per-node"
            )
        if device.type == "cuda":
            here, devices = int(os.environ.get("LOCAL_WORLD_SIZE", self.size)), torch.cuda.device_count()
            if device.index is not None:
                raise UserError(f"--device {device}: every process takes a device of its own; say --device cuda")
            if here > devices:
                raise UserError(
                    f"--nproc-per-node {here}: there are {devices} CUDA devices; start as many, or say --device cpu"
                )

    # -- calling --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def call(self, job: Callable[..., None], *arguments: Any) -> Iterator[World]:
        """At rank 0: have all others run ``job(*arguments)`` (a function of a module) while the block runs here.

        The block and the job must do the same things together; :func:`current` is this world meanwhile. Raises
        :class:`PeerLost` where the others are not done with an earlier job, having failed in it.
        """
        if self.store is None:
            yield self
            return
        with _together():
            if self._jobs:
                self.store.wait([f"done/{self._jobs}/{rank}" for rank in range(1, self.size)], _GRACE)
            self._jobs += 1
            self.store.set(f"job/{self._jobs}", pickle.dumps((job, arguments)).hex())
        try:
            with self.active():
                yield self
        finally:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"done/{self._jobs}/0", "")

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Makes this :func:`current`."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def dismiss(self) -> None:
        """At rank 0: let the others end."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.set(f"job/{self._jobs + 1}", pickle.dumps((None, ())).hex())

    def serve(self) -> int:
        """At the other ranks: do what rank 0 calls for until it is done; returns the exit code.

        An error that rank 0 has as well is its to tell; any other is told here.
        """
        assert self.store is not None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to all; rank 0 decides what it means
        try:
            for number in itertools.count(1):
                with _together():
                    self.store.wait([f"job/{number}"], _PATIENCE)
                    job, arguments = pickle.loads(bytes.fromhex(self.store.get(f"job/{number}").decode()))
                if job is None:
                    break
                try:
                    with self.active():
                        job(*arguments)
                except PeerLost:
                    raise
                except UserError as error:
                    if not self._ended(number):
                        print(f"forwardsr: process {self.rank}: {error}", file=sys.stderr)
                        return 2
                with _together():
                    self.store.set(f"done/{number}/{self.rank}", "")
        except PeerLost:
            time.sleep(1)  # torchrun ends all processes with the first that fails: let the one that knows why be it
            return 1
        return 0

    def _ended(self, number: int) -> bool:
        """Whether rank 0 has left that job, too, before long."""
        assert self.store is not None
        try:
            self.store.wait([f"done/{number}/0"], _GRACE)
        except RuntimeError:
            return False
        return True

    # -- collectives ----------------------------------------------------------------------------------------------------

    def share(self, value: Any) -> Any:
        """Rank 0's ``value``: what a checkpoint may hold, tensors arriving on the CPU."""
        if self.size == 1:
            return value
        file = io.BytesIO()
        if self.main:
            torch.save(value, file)
        box = [file.getvalue()]
        with _together():
            dist.broadcast_object_list(box, src=0)
        return value if self.main else torch.load(io.BytesIO(box[0]), weights_only=True, map_location="cpu")

    def gather(self, value: Any) -> list[Any]:
        """The ``value`` of every process (whatever pickles), by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with _together():
            dist.all_gather_object(found, value)
        return found

    def agree(self, seconds: float, number: int) -> tuple[float, int]:
        """Rank 0's clock, and the highest signal that any process has caught (0: none)."""
        if self.size == 1:
            return seconds, number
        said = torch.tensor([seconds if self.main else 0.0, float(number)], dtype=torch.float64)
        with _together():
            dist.all_reduce(said, dist.ReduceOp.MAX)
        return float(said[0]), int(said[1])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of ``tensors`` (one device and dtype) by its mean over the processes, in one reduction."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([x.reshape(-1) for x in tensors])
        with _together():
            dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([x.numel() for x in tensors])
        torch._foreach_copy_(list(tensors), [part.view(x.shape) for part, x in zip(parts, tensors)])

    def total(self, x: Tensor) -> Tensor:
        """The sum of ``x`` over the processes, in place."""
        if self.size > 1:
            with _together():
                dist.all_reduce(x)
        return x

    def stack(self, x: Tensor) -> Tensor:
        """``(size, *x.shape)``: every process's ``x``, by rank."""
        if self.size == 1:
            return x[None]
        found = [torch.empty_like(x) for _ in range(self.size)]
        with _together():
            dist.all_gather(found, x)
        return torch.stack(found)

    @contextlib.contextmanager
    def turn(self, generator: torch.Generator, first: bool, last: bool) -> Iterator[None]:
        """A process's turn to draw, in the order of ranks: ``generator`` goes on where the process before left it.

        ``first``, ``last``: of all turns. The next process draws as soon as the block has ended.
        """
        if self.size == 1:
            yield
            return
        if not first:
            state = torch.empty_like(generator.get_state())
            with _together():
                dist.recv(state, (self.rank - 1) % self.size)
            generator.set_state(state)
        yield
        with _together():
            if self._sent is not None:
                self._sent[0].wait()
                self._sent = None
            if not last:
                state = generator.get_state()
                self._sent = dist.isend(state, (self.rank + 1) % self.size), state

    def add_in_turn(self, terms: Iterator[Sequence[Tensor]], totals: Sequence[Tensor]) -> None:
        """Add to ``totals`` all terms of all processes, in place: the first of each by rank, then the second of each, and so on.

        ``terms``: this process's, one float32 tensor for each total; no process has two more than another, nor a later one more.
        """
        if self.size == 1:
            for term in terms:
                for total, x in zip(totals, term):
                    total += x
            return
        held = max(1, min(_HELD, _HELD_NUMBERS // sum(total.numel() for total in totals)))
        counts = [held]
        while max(counts) == held:
            pending = [term for _, term in zip(range(held), terms)]
            counts = self.stack(torch.tensor(len(pending))).tolist()
            for k in range(max(counts)):
                for rank in (rank for rank in range(self.size) if k < counts[rank]):
                    for i, total in enumerate(totals):
                        x = pending[k][i] if rank == self.rank else torch.empty_like(total, dtype=torch.float32)
                        with _together():
                            dist.broadcast(x, rank)
                        total += x


ALONE = World()
_active: ContextVar[World] = ContextVar("world", default=ALONE)
_team = ALONE


def current() -> World:
    """The world within :meth:`World.call` or a job; a world of one elsewhere."""
    return _active.get()


def team() -> World:
    """All processes of this job, to :meth:`World.call` on: one where ``torchrun`` did not start it."""
    return _team if current() is ALONE else ALONE


def run(main: Callable[[], int]) -> int:
    """``main()`` at rank 0, and at the others what it calls for; returns the exit code. Without ``torchrun`` just ``main()``."""
    global _team
    size = int(os.environ.get("WORLD_SIZE", "1")) if {"RANK", "MASTER_ADDR"} <= os.environ.keys() else 1
    if size == 1:
        return main()
    rank, name = int(os.environ["RANK"]), os.environ.get(BACKEND)
    cuda = torch.cuda.is_available()
    if rank == 0 and name not in (None, "gloo", *(["nccl"] if cuda else [])):
        print(f"forwardsr: {BACKEND}={name}: not available here; say gloo{' or nccl' if cuda else ', or leave it out'}",
              file=sys.stderr)  # fmt: skip
        return 2
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
    store, _, _ = next(rendezvous("env://"))
    backend = f"cpu:gloo,cuda:{name or 'nccl'}" if cuda else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore("collectives", store), rank=rank, world_size=size, timeout=_PATIENCE
    )
    _team = World(rank, size, PrefixStore("jobs", store))
    if rank:
        return _team.serve()
    try:
        return main()
    finally:
        _team.dismiss()  # what is left of the group ends with the process: one that failed may hold it up
