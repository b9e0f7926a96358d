"""The benchmarks: every case against its peers or its limit, results as JSON, and docs/benchmarks.md made from them.

    python benchmarks/bench.py            # all cases, in full
    python benchmarks/bench.py --quick    # the smaller settings of each: minutes
    python benchmarks/bench.py features   # one case
    python benchmarks/bench.py --page     # only the page, from the results that are there

One thread unless ``--threads`` says otherwise: seconds are of the processor, and with one thread they are those of an idle
machine's clock, too. Each case writes ``results/bench-CASE.json`` (``bench-CASE-quick.json``); the page shows the full results
where there are some, the quick ones where not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
CASES = ("features", "latent", "end_to_end", "generic", "training", "pictures", "scale")


def measure(case: str, quick: bool) -> None:
    """Run one case and write its results, line by line as they come."""
    from cases.page import line
    from cases.record import machine

    module, own, records = importlib.import_module(f"cases.{case}"), machine(), []
    path, start = RESULTS / f"bench-{case}{'-quick' * quick}.json", time.perf_counter()
    print(f"{module.TITLE} ({'quick' if quick else 'full'})", flush=True)

    def write(complete: bool) -> None:
        content = {
            "mode": "quick" if quick else "full",
            "complete": complete,
            "machine": own,
            "wall_seconds": round(time.perf_counter() - start, 1),
            "records": [each.to_json() for each in records],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    for record in module.run(not quick):
        records.append(replace(record, machine=own["processor"]))
        print(line(records[-1]), flush=True)
        write(complete=False)
    write(complete=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[], help=f"of {', '.join(CASES)}; all where none is given")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.cases) - set(CASES):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    for name in ("OMP", "OPENBLAS", "MKL"):  # before numpy, torch and the peers are imported
        os.environ[f"{name}_NUM_THREADS"] = str(arguments.threads)
    sys.path.insert(0, str(Path(__file__).parent))
    if not arguments.page:
        for case in arguments.cases or CASES:
            measure(case, arguments.quick)
    from cases.page import write

    write(PAGE, RESULTS, CASES)
    print(f"page: {PAGE}")


if __name__ == "__main__":
    main()
