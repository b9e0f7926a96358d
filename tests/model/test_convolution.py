"""The fast convolutions against PyTorch's own: values, both gradients, second derivatives, and what is computed when."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forwardsr.data.pyramid import Pyramid
from forwardsr.learn.adversarial import gradient_penalty
from forwardsr.model import convolution, winograd
from forwardsr.model.convolution import Convolution, Deconvolution, transposed
from forwardsr.model.critic import SLOPE, Critic, LeakyReLU

SHAPES = [  # n, c, m, height, width of the larger image
    (2, 8, 8, 12, 12),
    (3, 8, 5, 24, 24),
    (2, 4, 8, 48, 48),
    (1, 1, 8, 16, 16),
    (4, 3, 6, 8, 8),
    (2, 5, 7, 20, 36),
    (5, 2, 3, 4, 10),
    (1, 1, 1, 2, 2),
]


def drawn(n: int, c: int, m: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """A large image, a weight, a small image."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((n, c, h, w), (m, c, 6, 6), (n, m, h // 2, w // 2))
    x, weight, s = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return x, weight, s


def everywhere(patch: pytest.MonkeyPatch) -> None:
    """Winograd's way whatever the sizes."""
    patch.setattr(convolution, "FEW", 1)
    patch.setattr(convolution, "LEAST_PRODUCTS", 0.0)


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk", [1, 1 << 21])
def test_winograd_is_the_convolution_its_adjoint_and_its_weight_gradient(
    shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    x, weight, s = drawn(*shape)
    y, windows = winograd.down(x, weight)
    torch.testing.assert_close(y, F.conv2d(x, weight, stride=2, padding=2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        winograd.up(s, weight), F.conv_transpose2d(s, weight, stride=2, padding=2), rtol=1e-10, atol=1e-10
    )
    by_weight = winograd.weight_gradient(windows, s)
    wanted = nn.grad.conv2d_weight(x, weight.shape, s, stride=2, padding=2)
    torch.testing.assert_close(by_weight, wanted, rtol=1e-10, atol=1e-10)
    # Three ways to one number: <s, down(x, w)> = <up(s, w), x> = <gradient, w>.
    numbers = [(s * y).sum(), (winograd.up(s, weight) * x).sum(), (by_weight * weight).sum()]
    torch.testing.assert_close(numbers[0], numbers[1])
    torch.testing.assert_close(numbers[0], numbers[2])


def test_winograd_in_float32_is_within_a_few_roundings() -> None:
    x, weight, s = drawn(4, 64, 64, 32, 32, torch.float32)
    exact = [t.double() for t in (x, weight, s)]
    y, windows = winograd.down(x, weight)
    assert error(y, F.conv2d(*exact[:2], stride=2, padding=2)) < 3e-6
    assert error(winograd.up(s, weight), F.conv_transpose2d(exact[2], exact[1], stride=2, padding=2)) < 3e-6
    by_weight = nn.grad.conv2d_weight(exact[0], weight.shape, exact[2], stride=2, padding=2)
    assert error(winograd.weight_gradient(windows, s), by_weight) < 3e-6


def layers(
    kind: str, inputs: int, outputs: int, kernel: int, stride: int
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A layer of ours with random parameters, and the same by PyTorch."""
    torch_way: Callable[..., Tensor]
    if kind == "down":
        ours: Convolution | Deconvolution = Convolution(inputs, outputs, kernel, stride)
        torch_way = F.conv2d
    else:
        ours = Deconvolution(inputs, outputs)
        torch_way = F.conv_transpose2d
    ours.to(torch.float64, memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(generator=generator)

    def plain(x: Tensor) -> Tensor:
        return torch_way(x, ours.weight, ours.bias, stride, (kernel - stride) // 2)

    return ours, plain


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    ("kind", "inputs", "outputs", "kernel", "stride", "side"),
    [
        ("down", 3, 8, 6, 2, 16), ("down", 1, 8, 6, 2, 12), ("down", 8, 4, 6, 2, 24),
        ("down", 8, 6, 3, 1, 4), ("down", 8, 8, 1, 1, 6),
        ("up", 8, 3, 6, 2, 8), ("up", 8, 1, 6, 2, 6), ("up", 6, 8, 6, 2, 12),
    ],
)  # fmt: skip
def test_a_layer_is_pytorch_s_with_all_its_gradients(
    kind: str,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    side: int,
    fast: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fast:
        everywhere(monkeypatch)
    ours, plain = layers(kind, inputs, outputs, kernel, stride)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, inputs, side, side, dtype=torch.float64, generator=generator).requires_grad_()
    y, wanted = ours(x), plain(x)
    torch.testing.assert_close(y, wanted, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    variables = [x, *ours.parameters()]
    for a, b in zip(torch.autograd.grad(y, variables, cotangent), torch.autograd.grad(wanted, variables, cotangent)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sides", [(8, 16), (12, 24)])
@pytest.mark.parametrize("fast", [True, False])
def test_a_penalty_has_the_gradient_that_pytorch_gives_it(
    channels: int, sides: tuple[int, ...], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(3)
    critic = Critic(sides, width=8, channels=channels, generator=generator).double()
    images = Pyramid([torch.randn(2, channels, s, s, dtype=torch.float64, generator=generator) for s in sides])

    def gradients() -> list[Tensor]:
        critic.zero_grad()
        gradient_penalty(critic, images, torch.Generator().manual_seed(4)).backward()  # type: ignore[no-untyped-call]
        return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in critic.parameters()]

    with monkeypatch.context() as patch:
        patch.setattr(convolution, "_library", lambda _x: True)
        patch.setattr(LeakyReLU, "forward", lambda _self, x: F.leaky_relu(x, SLOPE))
        wanted = gradients()
    if fast:
        everywhere(monkeypatch)
    assert sum(float(w.abs().sum()) > 0 for w in wanted) > len(wanted) / 3
    for got, want in zip(gradients(), wanted):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_a_penalty_does_no_more_convolutions_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is met four times: images forward, images back, and from the second derivative its image and its weight."""
    everywhere(monkeypatch)
    counts = dict.fromkeys(("down", "up", "weight_gradient"), 0)

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            counts[name] += 1
            return function(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(winograd, name, counted(name, getattr(winograd, name)))
    critic = Critic((8, 16), width=8, channels=1, heads=[False, False], generator=torch.Generator().manual_seed(0))
    images = Pyramid([torch.ones(2, 1, side, side) for side in (8, 16)])
    penalty = gradient_penalty(critic, images, torch.Generator().manual_seed(0))
    assert counts == {"down": 3, "up": 3, "weight_gradient": 0}
    penalty.backward()  # type: ignore[no-untyped-call]
    assert counts == {"down": 6, "up": 3, "weight_gradient": 3}


def test_leaky_relu_twice_differentiated() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    layer = LeakyReLU()
    torch.testing.assert_close(layer(x.clone()), F.leaky_relu(x, SLOPE))
    assert torch.autograd.gradcheck(lambda t: layer(t.clone()), x)
    assert torch.autograd.gradgradcheck(lambda t: layer(t.clone()), x)


def test_in_place_changes_of_a_layer_s_result_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    for side in (12, 16):  # with and without a border to cut off
        layer = Convolution(4, 4)
        layer(torch.ones(1, 4, side, side)).mul_(2.0).sum().backward()
        assert layer.weight.grad is not None


def test_the_same_seed_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    x, weight, _ = drawn(3, 8, 8, 24, 24, torch.float32)
    assert torch.equal(winograd.down(x, weight)[0], winograd.down(x.clone(), weight.clone())[0])


def test_between_many_channels_half_precision_and_autocast_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    monkeypatch.setattr(winograd, "up", None)
    _, weight, s = drawn(2, 4, 4, 8, 8, torch.float32)
    assert transposed(s.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert transposed(s, weight).dtype == torch.bfloat16


@pytest.mark.parametrize("autocast", [True, False])
def test_an_image_in_half_precision_is_as_exact_as_pytorch_s(autocast: bool) -> None:
    """Value and all gradients: as far from float64's as those of ``conv_transpose2d`` in bfloat16, or nearer."""
    cotangent, weight, s = drawn(2, 3, 64, 16, 16, torch.float32)
    bias = torch.tensor([0.5, -1.0, 2.0])

    def found(function: Callable[..., Tensor], dtype: torch.dtype, cast: bool) -> list[Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (s, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            out = function(*inputs)
        gradients = torch.autograd.grad(out, inputs, cotangent.to(out.dtype))
        assert all(g.dtype == x.dtype for g, x in zip(gradients, inputs))
        return [x.double() for x in (out, *gradients)]

    dtype = torch.float32 if autocast else torch.bfloat16
    library = partial(F.conv_transpose2d, stride=2, padding=2)
    exact = found(library, torch.float64, False)
    for ours, theirs, truth in zip(found(transposed, dtype, autocast), found(library, dtype, autocast), exact):
        assert (ours - truth).norm() <= 1.1 * (theirs - truth).norm() < 0.01 * truth.norm()


def test_autocast_leaves_an_image_in_double_precision_alone() -> None:
    _, weight, s = drawn(2, 3, 64, 16, 16)
    wanted = F.conv_transpose2d(s, weight, stride=2, padding=2)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(transposed(s, weight), wanted, rtol=1e-10, atol=1e-10)
