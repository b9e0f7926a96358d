"""How long to learn: wall time, steps or images, whichever ends first."""

from __future__ import annotations

import re
from dataclasses import dataclass

from forwardsr.errors import UserError

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, flag: str = "--budget") -> float:
    """``"90"``, ``"90s"``, ``"20m"``, ``"1.5h"`` or ``"1h30m"`` in seconds. Raises :class:`UserError` for anything else."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    total = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(n + u for n, u in parts) != text.strip() or total <= 0:
        raise UserError(f"{flag} {text}: not a length of time; write 90s, 20m or 1h30m")
    return total


@dataclass(frozen=True)
class Budget:
    """Limits on a whole run, earlier sessions counted in; ``None`` where there is none."""

    seconds: float | None = None
    steps: int | None = None
    images: int | None = None

    def __post_init__(self) -> None:
        for flag, value in (("budget", self.seconds), ("steps", self.steps), ("images", self.images)):
            if value is not None and value <= 0:
                raise UserError(f"--{flag} {value}: must be positive")

    def spent(self, seconds: float, steps: int, images: int) -> float:
        """The fraction used, by the limit that is nearest: 1 or more means stop."""
        pairs = ((seconds, self.seconds), (steps, self.steps), (images, self.images))
        return max((used / limit for used, limit in pairs if limit), default=0.0)
