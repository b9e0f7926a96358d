"""What every benchmark case is made of: the record of one side, the machine, and timing in alternation.

Seconds are of the processor (user + system, over all threads): what the work takes on an idle core, almost independent of what
else runs. Each side runs in turn within a round, and the order turns round from one round to the next, so that a drift of the
machine's speed meets all sides alike.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

OURS = "forwardsr"


@dataclass(frozen=True)
class Record:
    """One side of one comparison. Errors and seconds are medians over ``rounds``; ``ratio`` is ours over this side's."""

    case: str
    setting: str
    """What was measured, in words; sides with equal setting and n had the same input."""
    peer: str
    """The side: a peer, a limit, or forwardsr itself."""
    version: str
    n: int
    """Samples."""
    error: float | None
    seconds: float | None
    """``None`` where the side is a limit and nothing was timed."""
    spread: float | None
    """Of seconds, (largest - least) / median over the rounds; of a simulated ratio, its standard error."""
    rounds: int
    ratio: dict[str, float] = field(default_factory=dict)
    """By quantity: ours over this side's."""
    goal: dict[str, float] = field(default_factory=dict)
    """By quantity: the largest ratio that meets the goal."""
    figures: dict[str, float] = field(default_factory=dict)
    """Further columns of this side, by their heads."""
    machine: str = ""
    """Its name in the file's list of machines."""

    @property
    def met(self) -> dict[str, bool]:
        """By quantity, whether the goal is."""
        return {name: self.ratio[name] <= bound for name, bound in self.goal.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain types, ``met`` included."""
        return asdict(self) | {"met": self.met}

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> Record:
        """Of what :meth:`to_json` gave."""
        return Record(**{key: value for key, value in line.items() if key != "met"})


@dataclass
class Side:
    """What one side of :func:`alternate` took, round by round, and its result in the last one."""

    result: Any = None
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of the middle round."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float | None:
        """(Largest - least) / median; ``None`` where there was one round."""
        return None if len(self.seconds) < 2 else (max(self.seconds) - min(self.seconds)) / self.median


OFTENER = 3


def alternate(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int = 3,
    long: float = 10.0,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Side]:
    """Run every side ``rounds`` times, in turn; one that takes over ``long`` seconds of ``clock`` runs once, and those under
    a second, where there are rounds, :data:`OFTENER` times as often: their medians are the least certain.
    """
    found = {name: Side() for name in sides}
    for turn in range(OFTENER * rounds if rounds > 1 else rounds):
        for name in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            side = found[name]
            if side.seconds and side.seconds[0] > (long if turn < rounds else 1):
                continue
            start = clock()
            side.result = sides[name]()
            side.seconds.append(clock() - start)
    return found


def machine() -> dict[str, Any]:
    """The processor, the software, and how busy the machine was, for the results' file."""
    processor, described = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    load = os.getloadavg()[0]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(load, 1),
    }
