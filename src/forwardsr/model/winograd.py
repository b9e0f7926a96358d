r"""Winograd's minimal filtering F(4, 3) for 6 x 6 convolutions of stride 2: a quarter of the multiplications.

With :math:`x_p(i) = x(2i + p)` and :math:`w_p(m) = w(2m + p)`, a 6-tap convolution of stride 2 is a sum of 3-tap ones of stride 1,

.. math::
    y(i) = \sum_{k=0}^{5} w(k)\, x(2i + k - 2) = \sum_{p=0}^{1} \sum_{m=0}^{2} w_p(m)\, x_p(i + m - 1),

so in two dimensions it is a 3 x 3 convolution of the image of 2 x 2 *blocks*, which has 4c channels. F(4, 3) computes 4 outputs of
a 3-tap filter w from 6 inputs d with 6 multiplications in place of 12 (Winograd 1980; Lavin and Gray 2016): both are
evaluated as polynomials at 6 points, multiplied there, and the result is interpolated,

.. math::
    y = A^T [(G w) \odot (B^T d)], \qquad
    Y = A^T \Big[\textstyle\sum_c (G w_c G^T) \odot (B^T d_c B)\Big] A \quad \text{(4 x 4 outputs at once)},

where the sum over channels is one matrix product for each of the 36 points. The gradient of the image is the convolution of
the cotangent with the reversed filter, and that of the filter is as cheap, the sum being over tiles:

.. math::
    \nabla_{w_c} = G^T \Big[\textstyle\sum_{tiles} (B^T d_c B) \odot (A\, \nabla_Y A^T)\Big] G .

The points are 0, 2/3, -2/3, 3/2, -3/2 and infinity: symmetric about 0 and closed under inversion, they leave an error of 1.4e-6
of the result in float32, under half that of the usual 0, 1, -1, 2, -2 (direct summation leaves 0.3e-6).

Tensors here are real, of any floating dtype; a *cotangent* is the gradient of the loss with respect to an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 21  # numbers in the samples transformed together: the temporaries stay within 100 MB, mostly in cache

_P = 2 / 3
_A2, _B2 = _P**2, 1 / _P**2


@cache
def _matrices(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """``A (x) A``, ``G (x) G`` and the latter for reversed filters; B is in :func:`_filter`, where its zeros are used."""
    points = torch.tensor([0.0, _P, -_P, 1 / _P, -1 / _P], dtype=torch.float64)
    apart = points[:, None] - points + torch.eye(5, dtype=torch.float64)
    infinity = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    a = torch.cat([points[:, None] ** torch.arange(4), infinity])
    g = torch.cat([points[:, None] ** torch.arange(3) / apart.prod(1, keepdim=True), infinity[:, 1:]])
    return tuple(torch.kron(m, m).to(dtype) for m in (a, g, g.flip(1)))  # type: ignore[return-value]


def _filter(x: Tensor, out: tuple[Tensor, ...]) -> None:
    """``B^T d`` along the first dimension, for every tile of 4 of ``x`` ``(4T, ...)``: six points, each ``(T, ...)``, to ``out``.

    A tile's inputs are the 4 of the tile, d1 to d4, and its two neighbours, which are 0 beyond the border; these enter at
    the points 0 and infinity alone.
    """
    d1, d2, d3, d4 = (x[k::4] for k in range(4))
    zero, plus_a, minus_a, plus_b, minus_b, infinity = out
    for plus, minus, point, other in ((plus_a, minus_a, _P, _B2), (plus_b, minus_b, 1 / _P, _A2)):
        torch.add(d4, d2, alpha=-other, out=plus)
        odd = torch.add(d3, d1, alpha=-other, out=zero)
        torch.add(plus, odd, alpha=-point, out=minus)
        plus.add_(odd, alpha=point)
    torch.add(d4, d2, alpha=-(_A2 + _B2), out=zero)[1:].add_(d4[:-1])
    torch.add(d1, d3, alpha=-(_A2 + _B2), out=infinity)[:-1].add_(d1[1:])


def _blocks(x: Tensor, k: int) -> Tensor:
    """``(n, c, kS, kT)`` seen as ``(S, T, n, k, k, c)``."""
    return x.permute(2, 3, 0, 1).unflatten(0, (-1, k)).unflatten(2, (-1, k)).permute(0, 2, 4, 1, 3, 5)


def _whole(x: Tensor, k: int) -> Tensor:
    """``x`` with zeros up to whole tiles of 4 x 4 blocks."""
    h, w = (-side % (4 * k) for side in x.shape[2:])
    return F.pad(x, (0, w, 0, h)) if h or w else x


def _windows(x: Tensor, k: int) -> Tensor:
    """``B^T d B`` of all windows of blocks of ``x`` ``(n, c, kS, kT)``: ``(36, tiles * n, k * k * c)``."""
    blocks = _blocks(_whole(x, k), k).contiguous()
    rows, columns = blocks.shape[0] // 4, blocks.shape[1] // 4
    half = x.new_empty(6, rows, *blocks.shape[1:])
    _filter(blocks, half.unbind(0))
    full = x.new_empty(6, 6, rows, columns, *blocks.shape[2:])
    _filter(half.permute(2, 0, 1, 3, 4, 5, 6), full.permute(1, 3, 0, 2, 4, 5, 6, 7).unbind(0))
    return full.view(36, rows * columns * len(x), -1)


def _spread(y: Tensor) -> Tensor:
    """``A y A^T`` of all tiles of 4 x 4: ``(n, c, S, T)`` to ``(36, tiles * n, c)``."""
    y = _whole(y, 1)
    tiles = y.permute(2, 3, 0, 1).unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).permute(1, 3, 0, 2, 4, 5)
    return (_matrices(y.dtype)[0] @ tiles.reshape(16, -1)).view(36, -1, y.shape[1])


def _collect(products: Tensor, k: int, out: Tensor) -> None:
    """``A^T M A`` of all tiles, laid out in ``out`` ``(n, c, kS, kT)``, S and T multiples of 4: the way back of :func:`_windows`."""
    tiles = _blocks(out, k).unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).permute(1, 3, 0, 2, 4, 5, 6, 7)
    tiles.copy_((_matrices(products.dtype)[0].T @ products.view(36, -1)).view(tiles.shape))


def _taps(weight: Tensor, reverse: bool = False) -> Tensor:
    """``G w G^T`` of ``(m, c, 6, 6)``: ``(36, m, 4 c)``; or of the filter reversed."""
    taps = weight.unflatten(3, (3, 2)).unflatten(2, (3, 2)).permute(2, 4, 0, 3, 5, 1)
    return (_matrices(weight.dtype)[2 if reverse else 1] @ taps.reshape(9, -1)).view(36, len(weight), -1)


def _chunk(x: Tensor) -> int:
    return max(1, CHUNK // x[0].numel())


def _whole_tiles(x: Tensor, c: int, h: int, w: int, k: int) -> Tensor:
    """Memory for ``(n, c, kh, kw)`` with h and w rounded up to multiples of 4, channels last."""
    size = (len(x), c, k * (h + -h % 4), k * (w + -w % 4))
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _cropped(out: Tensor, h: int, w: int) -> Tensor:
    """Never a view, which could not be the output of an autograd function that is changed in place afterwards."""
    return out if out.shape[2:] == (h, w) else out[:, :, :h, :w].clone(memory_format=torch.channels_last)


def down(
    x: Float[Tensor, "n c H W"], weight: Float[Tensor, "m c 6 6"]
) -> tuple[Float[Tensor, "n m h w"], list[Tensor]]:
    """``conv2d(x, weight, stride=2, padding=2)``, channels last, and what :func:`weight_gradient` needs of ``x``."""
    h, w = x.shape[2] // 2, x.shape[3] // 2
    chunk = _chunk(x)
    taps, windows = _taps(weight).transpose(1, 2), []
    out = _whole_tiles(x, len(weight), h, w, 1)
    for part, to in zip(x.split(chunk), out.split(chunk)):
        windows.append(_windows(part, 2))
        _collect(windows[-1] @ taps, 1, to)
    return _cropped(out, h, w), windows


def up(s: Float[Tensor, "n m h w"], weight: Float[Tensor, "m c 6 6"]) -> Float[Tensor, "n c H W"]:
    """``conv_transpose2d(s, weight, stride=2, padding=2)``, channels last."""
    h, w = s.shape[2:]
    taps = _taps(weight, reverse=True)
    out = _whole_tiles(s, weight.shape[1], h, w, 2)
    chunk = _chunk(out)
    for part, to in zip(s.split(chunk), out.split(chunk)):
        _collect(_windows(part, 1) @ taps, 2, to)
    return _cropped(out, 2 * h, 2 * w)


def weight_gradient(windows: Sequence[Tensor], cotangent: Float[Tensor, "n m h w"]) -> Float[Tensor, "m c 6 6"]:
    """``sum <cotangent, down(x, weight)>`` differentiated by the weight, from the windows that :func:`down` gave of ``x``."""
    m, c = cotangent.shape[1], windows[0].shape[2] // 4
    tiles = -(-cotangent.shape[2] // 4) * -(-cotangent.shape[3] // 4)
    first, *others = zip(windows, cotangent.split(windows[0].shape[1] // tiles))
    total = _spread(first[1]).transpose(1, 2) @ first[0]
    for part, of in others:
        total.baddbmm_(_spread(of).transpose(1, 2), part)
    taps = (_matrices(total.dtype)[1].T @ total.view(36, -1)).view(3, 3, m, 2, 2, c)
    return taps.permute(2, 0, 3, 1, 4, 5).reshape(m, 6, 6, c).permute(0, 3, 1, 2)
