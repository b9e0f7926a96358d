"""What is checked from the command line, as another program would use it: arrays from elsewhere, and pairs that no data determine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from forwardsr.data.open import open_source
from forwardsr.measure.certificate import match
from forwardsr.measure.self_certificate import self_certificate
from forwardsr.model.patch_generator import PatchGenerator
from theorem_trial import Line


def forwardsr(*arguments: str) -> str:
    """Run ``forwardsr ARGUMENTS``; what it printed on stdout. Raises where it fails."""
    print("forwardsr", *arguments, flush=True)
    return subprocess.run(
        [sys.executable, "-m", "forwardsr", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _errors(certificate: dict[str, Any]) -> Line:
    """``lemma, level, quantity -> worst`` and Theorem 5.1's quantiles of a certificate's JSON."""
    relative = certificate["curves"][-1]["relative"]
    rows = {f"{row['lemma']}, level {row['level']}: {row['quantity']}": row["worst"] for row in certificate["rows"]}
    return {"worst": rows, "median %": 100 * relative[50], "95th %": 100 * relative[95]}


def _notes(run: Path) -> list[str]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["message"] for line in lines if line["kind"] == "note"]


def finite(n: int = 200_000) -> list[Line]:
    """Arrays and network by theorem_arrays.py (numpy alone); learned; certified on the data, on as many held out, by the network."""
    with tempfile.TemporaryDirectory() as folder:
        arrays, held_out, network, run = (
            Path(folder) / x for x in ("arrays", "held-out", "network.safetensors", "run")
        )
        script = str(Path(__file__).with_name("theorem_arrays.py"))
        subprocess.run([sys.executable, script, str(arrays), str(held_out), str(network), "-n", str(n)], check=True)
        began = time.perf_counter()
        forwardsr("learn", str(arrays), "--method", "minmax", "--channels", "8,8", "--out", str(run))
        seconds = time.perf_counter() - began
        own = json.loads(forwardsr("certify", str(run), "--json"))
        truth = json.loads(forwardsr("certify", str(run), "--target", str(network), "--json"))
        # The command compares with the run's own source; held-out arrays take a line of Python.
        learned = PatchGenerator.load(run / "model.safetensors")
        apart = self_certificate(learned, open_source(str(held_out)), n).to_json()
        line: Line = {
            "what": "arrays by numpy alone", "samples": n, "wall s": seconds, **_errors(truth), "notes": _notes(run),
            "own data": _families(own), "held-out data": _families(apart),
        }  # fmt: skip
    print(json.dumps(line, indent=1))
    return [line]


def _families(certificate: dict[str, Any]) -> Line:
    keep = ("discriminator", "level", "moments", "mean_square", "largest", "bound")
    families = [{key: family[key] for key in keep} for family in certificate["families"]]
    return {"n": certificate["n"], "distinguishable": certificate["distinguishable"], "families": families}


def undetermined(amount: float = 0.93) -> list[Line]:
    """Channel 0 of patches 0 and 1 at a correlation of ``-amount``; ``pair`` is what the learner, in its own order, calls it."""
    lines = []
    for samples in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            target, run = Path(folder) / "target.safetensors", Path(folder) / "run"
            violate = ("--violate", "identifiability", "--amount", str(amount))
            forwardsr("plant", *violate, "--patches", "4", "16", "--channels", "12", "--d", "24", "--out", str(target))
            learn = ("learn", str(target), "--method", "minmax", "--samples", str(samples), "--out", str(run))
            forwardsr(*learn)
            truth = json.loads(forwardsr("certify", str(run), "--target", str(target), "--json"))
            planted, learned = PatchGenerator.load(target), PatchGenerator.load(run / "model.safetensors")
            order, _ = match(learned.W[0].double(), planted.W[0].double())
            first, second = learned.V[0][0, order[0, 0]], learned.V[0][1, order[1, 0]]
            line = {
                "what": f"-{amount:g}",
                "samples": samples,
                "pair": f"(0, {int(order[0, 0])})-(1, {int(order[1, 0])})",
                "learned correlation": float(torch.nn.functional.cosine_similarity(first, second, dim=0)),
                **_errors(truth),
                "notes": _notes(run),
            }
        lines.append(line)
        print(json.dumps(line, indent=1))
    return lines
