r"""FID and KID, by torchmetrics, with a feature network that the user has on disk (extra ``[fid]``). Nothing is downloaded.

With features :math:`f` of mean :math:`\mu` and covariance :math:`\Sigma`,

.. math:: \text{FID} = \|\mu_g - \mu_r\|^2 + \operatorname{tr}\big(\Sigma_g + \Sigma_r - 2 (\Sigma_g \Sigma_r)^{1/2}\big)

(Heusel et al. 2017), biased upwards by about 1/n; and KID is the unbiased squared maximum mean discrepancy of
:math:`(f \cdot f' / d + 1)^3` (Binkowski et al. 2018), averaged over random subsets.

The network is a TorchScript file that takes uint8 images ``(n, 3, h, w)`` of any side and gives features ``(n, d)``; the one
that published FIDs are computed with is ``inception-2015-12-05.pt``, whose ``return_features`` is switched on here.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from rich.table import Table
from torch import Tensor, nn

from forwardsr.errors import UserError


@dataclass(frozen=True)
class FeatureDistances:
    """``fid``, ``kid`` and the standard deviation of ``kid`` over subsets, of ``n`` generated and ``n_real`` real images."""

    fid: float
    kid: float
    kid_sd: float
    n: int
    n_real: int

    def table(self) -> Table:
        """The numbers as a table for a terminal."""
        table = Table(title=f"FID and KID of {self.n:,} generated and {self.n_real:,} real images (lower is better)")
        for heading in ("FID", "KID x 1,000", "its standard deviation over subsets"):
            table.add_column(heading, justify="right")
        table.add_row(f"{self.fid:.2f}", f"{1000 * self.kid:.2f}", f"{1000 * self.kid_sd:.2f}")
        return table

    def to_json(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


class _Features(nn.Module):
    """The scripted network as torchmetrics wants it: a module from uint8 images to features, that knows how many."""

    def __init__(self, network: torch.jit.ScriptModule, device: torch.device) -> None:
        super().__init__()
        self.network = network
        arguments = [argument.name for argument in network._c._get_method("forward").schema.arguments]
        self.options = {"return_features": True} if "return_features" in arguments else {}
        probe = self(torch.zeros(2, 3, 64, 64, dtype=torch.uint8, device=device))
        if probe.ndim != 2 or len(probe) != 2:
            raise ValueError(f"it gives {tuple(probe.shape)} for two images, not (2, d)")
        self.num_features = probe.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images, **self.options)
        return features


def _bytes(images: Tensor) -> UInt8[Tensor, "n 3 h w"]:
    grey = images.shape[1] == 1
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).expand(-1, 3 if grey else -1, -1, -1)


def feature_distances(
    generated: Float[Tensor, "n c h w"],
    real: Float[Tensor, "k c h w"],
    weights: Path,
    batch: int = 64,
    subset: int = 1000,
    seed: int = 0,
) -> FeatureDistances:
    """FID and KID of images in [-1, 1] of one or three channels, ``batch`` at a time, on their device.

    ``subset``: images in each of KID's 100 subsets, fewer where there are fewer. ``UserError`` where torchmetrics is not
    installed, ``weights`` is no such network, or there are fewer than two images on a side.
    """
    if importlib.util.find_spec("torchmetrics") is None:
        raise UserError("FID needs torchmetrics: pip install 'forwardsr[fid]'")
    if min(len(generated), len(real)) < 2:
        raise UserError("FID needs two generated and two real images at least; ask for more")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    features = _load(weights, generated.device)
    fid = FrechetInceptionDistance(feature=features).to(generated.device).set_dtype(torch.float64)
    size = min(subset, len(generated), len(real))
    with warnings.catch_warnings():  # that KID keeps all features, a few kilobytes an image
        warnings.simplefilter("ignore", UserWarning)
        kid = KernelInceptionDistance(feature=features, subset_size=size).to(generated.device)
    for images, are_real in ((generated, False), (real, True)):
        for chunk in images.split(batch):
            fid.update(_bytes(chunk), real=are_real)
            kid.update(_bytes(chunk), real=are_real)
    with torch.random.fork_rng(devices=[]):  # KID draws its subsets from the global generator
        torch.manual_seed(seed)
        mean, sd = kid.compute()
    return FeatureDistances(fid.compute().item(), mean.item(), sd.item(), len(generated), len(real))


def _load(weights: Path, device: torch.device) -> _Features:
    remedy = "give a TorchScript file from uint8 (n, 3, h, w) to features (n, d), such as inception-2015-12-05.pt"
    if not weights.is_file():
        raise UserError(f"{weights}: no such file; {remedy}")
    try:
        with warnings.catch_warnings():  # TorchScript is deprecated, and still what feature networks are published as
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(weights, map_location=device).eval()
        return _Features(network, device).requires_grad_(False)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{weights}: not a feature network ({str(error).strip().splitlines()[-1]}); {remedy}"
        ) from error
