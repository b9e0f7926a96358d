"""A random network of the paper's class and pyramids drawn from it, written in the formats of docs/formats.md by numpy alone.

    python benchmarks/theorem_arrays.py ARRAYS HELD-OUT NETWORK.safetensors -n 200000

Nothing of forwardsr is imported: this is the other program that the formats are for. Two levels of 4 and 16 patches, m = 8
channels, 12 numbers a patch. Every patch of level 2 is wired to *two* patches of level 1, in a graph of its own (parents2.npy), and
each of its channels adds up one channel of each. ``ARRAYS`` and ``HELD-OUT`` become folders with x1.npy, x2.npy and parents2.npy; the
network is written as safetensors: eight bytes of length, a JSON header, the tensors.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

PATCHES, M, D, LATENT = (4, 16), 8, 12, 40
ACTIVE = 0.12  # Pr[S > 0] at both levels


def network(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """W1, W2, V1, V2, b1, b2, parents2: X_l = W_l S_l, S_1 = (V_1 z - b_1)_+, S_2 = (sum V_2 S_1 - b_2)_+."""
    W = [np.linalg.qr(rng.standard_normal((k, D, M)))[0] for k in PATCHES]
    V1 = rng.standard_normal((PATCHES[0] * M, LATENT))
    V1 *= rng.uniform(1, 2, (len(V1), 1)) / np.linalg.norm(V1, axis=1, keepdims=True)
    V1 = V1.reshape(PATCHES[0], M, LATENT)
    b1 = 1.175 * np.linalg.norm(V1, axis=2)  # Q(1.175) = 0.12
    parents = np.stack([rng.permutation(PATCHES[0])[:2] for _ in range(PATCHES[1])])
    V2 = np.zeros((PATCHES[1], 2, M, M))
    for j in range(PATCHES[1]):
        for i in range(2):
            V2[j, i, np.arange(M), rng.permutation(M)] = rng.uniform(0.5, 1.5, M)
    tensors = {
        "W1": W[0],
        "W2": W[1],
        "V1": V1,
        "V2": V2,
        "b1": b1,
        "b2": np.zeros((PATCHES[1], M)),
        "parents2": parents,
    }
    before = hidden(tensors, rng.standard_normal((20_000, LATENT)), bias=False)[1]
    tensors["b2"] = np.quantile(before, 1 - ACTIVE, axis=0)
    return {name: x.astype(np.int64 if name == "parents2" else np.float32) for name, x in tensors.items()}


def hidden(net: dict[str, np.ndarray], z: np.ndarray, bias: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """S_1 ``(n, 4, m)`` and S_2 ``(n, 16, m)``; the latter before its bias and ReLU where ``bias`` is false."""
    s1 = np.maximum(np.einsum("jrq,nq->njr", net["V1"], z, optimize=True) - net["b1"], 0)
    u = sum(np.einsum("jrq,njq->njr", net["V2"][:, i], s1[:, net["parents2"][:, i]], optimize=True) for i in range(2))
    return s1, np.maximum(u - net["b2"], 0) if bias else u


def write_arrays(net: dict[str, np.ndarray], n: int, folder: Path, rng: np.random.Generator) -> None:
    """``n`` samples, a chunk at a time, into memory-mapped files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [
        np.lib.format.open_memmap(folder / f"x{l}.npy", "w+", np.float32, (n, k, D))
        for l, k in enumerate(PATCHES, start=1)
    ]
    for start in range(0, n, 10_000):
        z = rng.standard_normal((min(10_000, n - start), LATENT), dtype=np.float32)
        for l, (file, s) in enumerate(zip(files, hidden(net, z)), start=1):
            file[start : start + len(z)] = np.einsum("jdr,njr->njd", net[f"W{l}"], s, optimize=True)
    np.save(folder / "parents2.npy", net["parents2"])


def write_safetensors(tensors: dict[str, np.ndarray], path: Path) -> None:
    """Little-endian: the header's length (uint64), the header (JSON: dtype, shape and place of each tensor), the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "forwardsr/1", "activation": "relu", "zeta": "0"}}
    at = 0
    for name, x in tensors.items():
        kind = "I64" if x.dtype == np.int64 else "F32"
        header[name] = {"dtype": kind, "shape": list(x.shape), "data_offsets": [at, at + x.nbytes]}
        at += x.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(x).tobytes() for x in tensors.values())
    path.write_bytes(np.uint64(len(text)).tobytes() + text + body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("network", type=Path)
    parser.add_argument("-n", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    net = network(rng)
    write_safetensors(net, arguments.network)
    for folder in (arguments.arrays, arguments.held_out):
        write_arrays(net, arguments.n, folder, rng)


if __name__ == "__main__":
    main()
