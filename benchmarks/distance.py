"""How long the distance takes, and where the time goes: `python benchmarks/distance.py [--n 2048] [--side 64] [--threads 2]`.

The images are white noise (what is in them does not matter). Times are seconds of processor, so that a busy
machine does not show, but for `wall_s`; `project` is without its `sort_rows`. Prints a table; writes JSON where `--json PATH` is
given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.measure import _swd, distance
from forwardsr.measure.distance import Reference


def noise(n: int, side: int, seed: int) -> Pyramid:
    images = torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    sides = [side]
    while sides[0] >= 16:
        sides.insert(0, sides[0] // 2)
    return pool(images, sides)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=2048)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    real, other, generated = (noise(args.n, args.side, seed) for seed in range(3))
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*a: Any, **k: Any) -> Any:
            start = time.process_time()
            try:
                return of(*a, **k)
            finally:
                spent[name] += time.process_time() - start

        return call

    parts = {name: (_swd, name) for name in ("laplacian", "patches", "project", "sort_rows", "wasserstein")}
    parts |= {name: (distance, name) for name in ("diversity", "spacing")}
    patched = [mock.patch.object(m, f, timed(name, getattr(m, f))) for name, (m, f) in parts.items()]
    for p in patched:
        p.start()
    started, start = time.perf_counter(), time.process_time()
    reference = Reference(real, other)
    prepared = time.process_time()
    result = reference.compare(generated)
    done = time.process_time()
    spent["project"] -= spent["sort_rows"]
    kept = sum(x.numel() * x.element_size() for level in reference._real for x in level) / 2**20
    out = {
        "images": args.n,
        "side": args.side,
        "threads": args.threads,
        "reference_s": prepared - start,
        "compare_s": done - prepared,
        "total_s": done - start,
        "wall_s": time.perf_counter() - started,
        "reference_mib": kept,
        "parts_s": dict(spent),
        "score_of_floor": result.score(),
    }
    for name, value in (out | spent).items():
        if isinstance(value, int | float):
            print(f"{name:16} {value:10.3f}" if isinstance(value, float) else f"{name:16} {value:10}")
    if args.json:
        args.json.write_text(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
