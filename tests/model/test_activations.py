import pytest
import torch

from forwardsr.model.activations import Activation, SmoothAbs

ZETAS = [0.01, 0.1, 0.5]


def exact(name, zeta):
    """The pieces outside [0, zeta], as the paper states them (§2)."""
    below = (lambda z: zeta * z) if name == "leaky" else (lambda z: 0 * z)
    above = (lambda z: z) if name == "leaky" else (lambda z: z - zeta / 2)
    return below, above


@pytest.mark.parametrize("zeta", ZETAS)
@pytest.mark.parametrize("name", ["relu", "leaky"])
def test_pieces_of_the_paper(name, zeta):
    act, (below, above) = Activation(name, zeta), exact(name, zeta)
    z = torch.linspace(-3, 0, 50, dtype=torch.float64)
    torch.testing.assert_close(act(z), below(z))
    torch.testing.assert_close(act(zeta - z), above(zeta - z))


@pytest.mark.parametrize("zeta", ZETAS)
@pytest.mark.parametrize("make", [lambda zeta: Activation("relu", zeta), lambda zeta: Activation("leaky", zeta)])
def test_twice_continuously_differentiable(make, zeta):
    act, eps = make(zeta), 1e-9
    for joint in (0.0, zeta):
        x = torch.tensor([joint - eps, joint + eps], dtype=torch.float64)
        for f in (act, act.derivative, act.second):
            left, right = f(x).tolist()
            assert abs(left - right) < 100 * eps / zeta**2


@pytest.mark.parametrize("zeta", ZETAS)
@pytest.mark.parametrize("act", [Activation("relu", 1.0), Activation("leaky", 0.5), SmoothAbs(0.3, 1.0)])
def test_autograd_agrees_with_the_stated_derivatives(act, zeta):
    act = SmoothAbs(0.3, zeta) if isinstance(act, SmoothAbs) else Activation(act.name, zeta)
    x = torch.linspace(-2, 2, 401, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(act(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first.detach(), act.derivative(x.detach()))
    torch.testing.assert_close(second, act.second(x.detach()))


@pytest.mark.parametrize("zeta", ZETAS)
def test_bounds_on_the_derivatives(zeta):
    x = torch.linspace(-1, 2, 3001, dtype=torch.float64)
    relu, leaky = Activation("relu", zeta), Activation("leaky", zeta)
    assert relu.derivative(x).min() >= 0
    assert relu.derivative(x).max() <= 1
    assert relu.second(x).min() >= 0
    assert relu.second(x).max() <= 1.5 / zeta
    assert leaky.derivative(x).min() >= zeta - 1e-12
    assert leaky.derivative(x).max() <= 1.512
    assert leaky.second(x).abs().max() <= 7 / zeta


@pytest.mark.parametrize("name", ["relu", "leaky"])
def test_the_limit_of_no_smoothing(name):
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    torch.testing.assert_close(Activation(name, 0.0)(x), x.clamp(min=0))
    for zeta in (1e-2, 1e-4):
        assert (Activation(name, zeta)(x) - x.clamp(min=0)).abs().max() <= zeta
        assert (SmoothAbs(0.2, zeta)(x) - SmoothAbs(0.2)(x)).abs().max() <= zeta
    torch.testing.assert_close(SmoothAbs(0.2)(x), (x.abs() - 0.2).clamp(min=0))
    away = x[x.abs() > 0.1]
    torch.testing.assert_close(Activation("relu", 1e-3).derivative(away), Activation("relu").derivative(away))


def test_abs_is_even_and_blind_below_its_tolerance():
    x = torch.linspace(-1, 1, 201, dtype=torch.float64)
    act = SmoothAbs(0.3, 0.1)
    torch.testing.assert_close(act(x), act(-x))
    assert act(x[x.abs() <= 0.3]).abs().max() == 0


@pytest.mark.parametrize(("name", "zeta"), [("tanh", 0.0), ("relu", -0.1), ("leaky", 1.0)])
def test_refuses_what_is_no_activation(name, zeta):
    with pytest.raises((ValueError, TypeError)):
        Activation(name, zeta)
