"""The peers that recover the columns of W: each takes samples ``(n, d)`` and a number of columns, and gives ``(d, m)``.

Their settings are their defaults but for what the task fixes, or where a default would put them at a disadvantage:

* FastICA whitens by the covariance's eigenvectors, faster than its default for many samples, at the same error;
* picard without its orthogonality constraint: a fifth less error than FastICA, whose error the constraint gives to all digits;
* dictionary learning: non-negative codes, and the penalty of least error on this very task (of 0.003, 0.01, 0.03, 0.1, 0.3, 1,
  at n = 1e5, m = 24), chosen with the true W in hand, which no user has;
* NMF sees positive and negative parts side by side, as it takes no negative numbers;
* the CP decomposition is of the third cumulant in the signal subspace, which is orthogonally decomposable, as W is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import picard
import sklearn
import tensorly
from sklearn.decomposition import NMF, FastICA, MiniBatchDictionaryLearning
from tensorly.decomposition import symmetric_parafac_power_iteration

PENALTY = 0.03
_CHUNK = 4096  # samples whose products are held at once

Peer = Callable[[np.ndarray, int], np.ndarray]


def fast_ica(x: np.ndarray, m: int) -> np.ndarray:
    """scikit-learn's FastICA."""
    model = FastICA(m, whiten="unit-variance", whiten_solver="eigh", random_state=0)
    return model.fit(x).mixing_


def picard_ica(x: np.ndarray, m: int) -> np.ndarray:
    """picard's extended infomax, unconstrained."""
    K, W, _ = picard.picard(x.T.astype(np.float64), n_components=m, ortho=False, extended=True, random_state=0)
    return np.linalg.pinv(W @ K)


def dictionary(x: np.ndarray, m: int) -> np.ndarray:
    """scikit-learn's MiniBatchDictionaryLearning."""
    model = MiniBatchDictionaryLearning(m, alpha=PENALTY, fit_algorithm="cd", positive_code=True, random_state=0)
    return model.fit(x).components_.T


def nmf(x: np.ndarray, m: int) -> np.ndarray:
    """scikit-learn's NMF of positive and negative parts."""
    d = x.shape[1]
    parts = NMF(m, random_state=0).fit(np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], 1)).components_
    return (parts[:, :d] - parts[:, d:]).T


def symmetric_cp(x: np.ndarray, m: int) -> np.ndarray:
    """tensorly's symmetric CP decomposition of the third cumulant."""
    n, mean = len(x), x.mean(0)
    basis = np.linalg.eigh((x.T @ x) / n - np.outer(mean, mean))[1][:, -m:]
    y = (x - mean) @ basis
    cumulant = np.zeros((m * m, m))
    for start in range(0, n, _CHUNK):
        part = y[start : start + _CHUNK]
        cumulant += (part[:, :, None] * part[:, None, :]).reshape(len(part), -1).T @ part
    _, factor = symmetric_parafac_power_iteration(tensorly.tensor(cumulant.reshape(m, m, m) / n), m)
    return basis @ factor


PEERS: dict[str, tuple[Peer, str]] = {
    "FastICA": (fast_ica, f"scikit-learn {sklearn.__version__}"),
    "picard": (picard_ica, f"python-picard {picard.__version__}"),
    "dictionary learning": (dictionary, f"scikit-learn {sklearn.__version__}"),
    "NMF": (nmf, f"scikit-learn {sklearn.__version__}"),
    "symmetric CP": (symmetric_cp, f"tensorly {tensorly.__version__}"),
}


def quietly(peer: Peer, x: np.ndarray, m: int) -> np.ndarray:
    """A peer's columns without its warnings: that it has not converged shows in its error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peer(x, m)
