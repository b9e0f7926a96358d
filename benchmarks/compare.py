"""Runs and peers side by side, as the Markdown table that docs/joint.md shows.

    python benchmarks/compare.py run-faces dcgan-faces.json
    python benchmarks/compare.py --keep run-faces benchmarks/results/joint-faces.json     # ... so that the run is not needed again

Each argument is a Run (its ``distance.json`` is read) or the JSON that a benchmark wrote. All must be distances of equal ``n``
from the same source; their floors are checked to be the same.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """One side: its name, how far it was trained, its distances."""
    if not path.is_dir():
        record: dict[str, Any] = json.loads(path.read_text())
        return (
            record
            if "name" in record
            else record | {"name": f"{record['peer']}, step_channels={record['step_channels']}"}
        )
    config = json.loads((path / "config.json").read_text())
    lines = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    end = next(line for line in reversed(lines) if line["kind"] == "end")
    distance: dict[str, Any] = json.loads((path / "distance.json").read_text())
    # minmax sees all images of its source, as its log's line of the distance says.
    seen = next(line["images"] for line in reversed(lines) if "images" in line)
    return distance | {"name": f"forwardsr {config['method']}", "images": seen, "seconds": end["seconds"]}


def main(paths: list[Path]) -> None:
    """Print the table."""
    sides = [read(path) for path in paths]
    first = sides[0]
    for other in sides[1:]:
        # Of the same images the floors are equal but for the rounding of another machine or number of threads.
        floors = zip(other["floor_raw"], first["floor_raw"])
        same = other["sides"] == first["sides"] and other["n"] == first["n"]
        if not same or not all(math.isclose(a, b, rel_tol=1e-5) for a, b in floors):
            sys.exit("compare: these distances are not from the same source, resolution and number of images")
    levels = [f"{side} px" for side in first["sides"]]
    print(f"| | images seen | {' | '.join(levels)} |")
    print(f"|---|---:|{'---:|' * len(levels)}")
    for form, floor in (("standardised", "floor_standardised"), ("raw", "floor_raw"), ("diversity", "real_diversity")):
        digits = 3 if form == "diversity" else 1
        label = "MS-SSIM" if form == "diversity" else form
        rows = [(f"{side['name']}, {label}", f"{side['images']:,}", side[form]) for side in sides]
        rows.append((f"*real vs real, {label}*", "", first[floor]))
        for name, images, values in rows:
            print(f"| {name} | {images} | {' | '.join(f'{value:.{digits}f}' for value in values)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--keep"]:
        Path(sys.argv[3]).write_text(json.dumps(read(Path(sys.argv[2])), indent=1) + "\n")
        sys.exit()
    main([Path(argument) for argument in sys.argv[1:]])
