"""Two processes under ``torchrun`` against one with as many threads: the table of docs/parallel.md.

    python benchmarks/parallel.py            # about five minutes of two idle cores

Every number is of a command of its own, and from its log: for ``minmax``, which learns the standard target from four million
samples, the seconds of all stages; for ``joint`` at 64 px, pictures a second in the quickest stretch of 50 steps (others hold a
distance, which rank 0 measures alone, or a checkpoint).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "parallel.md"
LEARNINGS = {
    "minmax, standard target, 4,000,000 samples": ("target.safetensors", "--method", "minmax", "--samples", "4000000"),
    "joint, 64 px": ("photos", "--method", "joint", "--resolution", "64", "--images", "6400"),
}
CREWS = ((1, 1), (1, 2), (2, 1))
"""Processes, and threads of each."""


def command(processes: int, *arguments: str) -> list[str]:
    """Of ``forwardsr``, by so many processes."""
    many = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *many, "-m", "forwardsr", *arguments]


def speed(folder: Path) -> str:
    """Of a learning, by its log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    stages = [line["seconds"] for line in lines if line["kind"] == "stage"]
    if stages:
        return f"{sum(stages):.3g} s"
    trained = [(line["images"], line["seconds"]) for line in lines if line["kind"] == "train"]
    rates = [(n - before) / (at - since) for (before, since), (n, at) in pairwise(trained)]
    return f"{max(rates):.3g} pictures/s"


def main() -> None:
    rows = ["| learning | one process, one thread | one process, two threads | two processes, one thread each |"]
    rows.append("|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        subprocess.run(command(1, "plant", "--out", "target.safetensors"), cwd=here, check=True, capture_output=True)
        for what, arguments in LEARNINGS.items():
            cells = []
            for processes, threads in CREWS:
                out = f"{arguments[0]}-{processes}-{threads}"
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                subprocess.run(
                    command(processes, "learn", *arguments, "--out", out), cwd=here, env=environment, check=True,
                    capture_output=True,
                )  # fmt: skip
                cells.append(speed(here / out))
                print(f"{what}, {processes} x {threads}: {cells[-1]}", flush=True)
            rows.append("| " + " | ".join([what, *cells]) + " |")
    between = re.compile(r"(<!-- table: speed -->\n).*?(<!-- end -->)", re.DOTALL)
    text, n = between.subn(lambda match: f"{match[1]}\n" + "\n".join(rows) + f"\n\n{match[2]}", PAGE.read_text())
    assert n == 1
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
