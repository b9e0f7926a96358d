"""Algorithm 6 on small games with known answers, both orders of play; and every game's gradients by finite differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from forwardsr.data.planted import PlantedSource
from forwardsr.learn.first_hidden import FirstHiddenSettings, NeuronGame, PairGame, start_first_hidden
from forwardsr.learn.output_layer import OutputLayerGame
from forwardsr.learn.sgda import Player, SGDASettings, sgda
from forwardsr.learn.super_resolution import SuperResolutionGame, SuperResolutionSettings
from forwardsr.model.activations import Activation
from forwardsr.model.discriminators import barrier, coordinates, negative_entropy
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant


class Quadratic:
    """min_x max_y  a x^2/2 + x y - y^2/2 - c x + noise: at y = x, so x = c / (a + 1)."""

    name = "quadratic"

    def __init__(self, outer: Player) -> None:
        self.outer: Player = outer
        self.x, self.y = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def parameters(self, player: Player) -> list[Tensor]:
        return [self.x] if player == self.outer else [self.y]

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return 2 + torch.randn(n, generator=rng, dtype=torch.float64).mean()

    def value(self, batch: Tensor) -> float:
        return float(self.x**2 / 2 + self.x * self.y - self.y**2 / 2 - batch * self.x)

    def gradient(self, batch: Tensor, player: Player) -> list[Tensor]:
        return [self.x + self.y - batch] if player == self.outer else [self.x - self.y]

    def step(self, batch: Tensor, player: Player) -> list[float]:
        return [0.5 if player == self.outer else 1.0]

    def retract(self, player: Player) -> None:
        pass


@pytest.mark.parametrize("outer", ["generator", "discriminator"])
def test_both_orders_reach_the_saddle(outer: Player) -> None:
    game = Quadratic(outer)
    trace = sgda(game, SGDASettings(steps=500, samples=64), torch.Generator().manual_seed(0))
    assert float(game.x) == pytest.approx(1.0, abs=0.02)
    assert float(game.y) == pytest.approx(1.0, abs=0.03)
    assert len(trace.steps) == len(trace.values) == 50
    assert trace.values[-1] == pytest.approx(-1.0, abs=0.3)


def test_decay_averages_the_noise_of_the_samples() -> None:
    def error(decay: float) -> float:
        games = [Quadratic("generator") for _ in range(20)]
        for seed, game in enumerate(games):
            settings = SGDASettings(steps=300, samples=4, decay=decay, noise=0.0)
            sgda(game, settings, torch.Generator().manual_seed(seed))
        return float(torch.tensor([float(g.x) - 1 for g in games]).square().mean())

    assert error(1.0) < error(0.0) / 3


def test_noise_moves_the_outer_player_alone() -> None:
    quiet, noisy = Quadratic("generator"), Quadratic("generator")
    sgda(quiet, SGDASettings(steps=1, samples=4, noise=0.0), torch.Generator().manual_seed(0))
    sgda(noisy, SGDASettings(steps=1, samples=4, noise=0.1), torch.Generator().manual_seed(0))
    assert float(quiet.x) != float(noisy.x)
    assert float(quiet.y) == float(noisy.y)


# ------------------------------------------------------------------------------------------- the paper's four games


def small() -> tuple[PlantedSource, PatchGenerator]:
    """A target, and a network near it, in float64."""
    target = plant(PlantConfig(patches=(4, 16), channels=(3,), d=6, p=(0.15, 0.25), latent=8)).map(dtype=torch.float64)
    rng = torch.Generator().manual_seed(1)
    w = [w + 0.1 * torch.randn(w.shape, generator=rng, dtype=w.dtype) for w in target.W]
    v, b = start_first_hidden(4, 3)
    v2 = target.V[1] + 0.2 * torch.rand(target.V[1].shape, generator=rng, dtype=torch.float64)
    network = PatchGenerator(w, [v.double(), v2], [b.double(), target.b[1]], target.parents, Activation("leaky", 0.2))
    return PlantedSource(target), network


def difference(objective: Callable[[], float], theta: Tensor, direction: Tensor, h: float = 1e-5) -> float:
    theta += h * direction
    up = objective()
    theta -= 2 * h * direction
    down = objective()
    theta += h * direction
    return (up - down) / (2 * h)


def check(objective: Callable[[], float], thetas: list[Tensor], gradients: list[Tensor]) -> None:
    for seed, (theta, gradient) in enumerate(zip(thetas, gradients, strict=True)):
        rng = torch.Generator().manual_seed(seed)
        direction = torch.randn(theta.shape, generator=rng, dtype=theta.dtype)
        expected = difference(objective, theta, direction)
        assert abs(expected) > 1e-7
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=2e-3)


def frozen(game: Any, n: int = 400) -> tuple[Any, Callable[[], float]]:
    """A batch, and L as a function of the generator's parameters too, on the same random numbers."""
    batch = game.sample(n, torch.Generator().manual_seed(3))
    return batch, lambda: float(game.value(game.sample(n, torch.Generator().manual_seed(3))))


def test_gradients_of_d1() -> None:
    source, network = small()
    game = OutputLayerGame(source, network, 1, 0.1)
    game.v += 0.1 * torch.randn(game.v.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch, _ = frozen(game)
    # The gate is held: its derivative is zero almost everywhere.
    check(lambda: game.value(batch), game.parameters("generator"), game.gradient(batch, "generator"))
    check(lambda: game.value(batch), game.parameters("discriminator"), game.gradient(batch, "discriminator"))


def test_gradients_of_d4() -> None:
    source, network = small()
    network.W[0] = torch.linalg.qr(network.W[0])[0]  # no cross-talk: a neuron's own gradient is then the whole one
    game = NeuronGame(source, network, 0.1, FirstHiddenSettings(zeta=0.3))
    game.vw = torch.randn(game.vw.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch, objective = frozen(game)
    check(objective, game.parameters("generator"), game.gradient(batch, "generator"))
    check(objective, game.parameters("discriminator"), game.gradient(batch, "discriminator"))


def test_gradients_of_d5() -> None:
    source, network = small()
    settings = FirstHiddenSettings(zeta=0.3, steepness=3.0, tau=0.05, within=10.0, across=3.0)
    game = PairGame(source, network, 0.1, settings, torch.Generator().manual_seed(5))
    game.unit += 0.1 * torch.randn(game.unit.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    game.retract("generator")
    game.log_u = game.d5.best_log(torch.randn(12, 12, generator=torch.Generator().manual_seed(2)).double())
    batch, _ = frozen(game)
    tangent = game.gradient(batch, "generator")[0]
    assert float((tangent * game.unit).sum(1).abs().max()) < 1e-12

    def objective() -> float:
        """L by the discriminator itself, with rows brought back to the sphere."""
        unit = game.unit / game.unit.norm(dim=1, keepdim=True)
        rng = torch.Generator().manual_seed(3)
        true = source.draw(400, rng, 1)[0]
        z = network.latents(400, rng)
        s = network.activation(z @ (game.alpha[:, None] * unit).T - network.b[0].flatten()).reshape(400, 4, 3)
        fake = torch.einsum("kdm,nkm->nkd", network.W[0], s)
        u = game.log_u.exp()
        gain = game.d5(true, u).mean() - game.d5(fake, u).mean() - negative_entropy(game.log_u)
        return float(gain + barrier(unit @ unit.T, 3.0, 0.05))

    assert objective() == pytest.approx(game.value(batch))
    check(objective, [game.unit], [tangent])


def test_mirror_ascent_of_d5_reaches_the_softmax() -> None:
    source, network = small()
    game = PairGame(source, network, 0.1, FirstHiddenSettings(), torch.Generator().manual_seed(5))
    game.log_u = game.log_u.double()
    batch, _ = frozen(game)
    game.log_u += game.gradient(batch, "discriminator")[0]
    game.retract("discriminator")
    torch.testing.assert_close(game.log_u, game.d5.best_log(batch.true - batch.fake))
    assert game.value(batch) == pytest.approx(
        float(game.d5.best_value(batch.true - batch.fake)) + float(barrier(game.unit @ game.unit.T)), rel=1e-6
    )


def test_gradients_of_d2() -> None:
    source, network = small()
    network.W[1] = torch.linalg.qr(network.W[1])[0]  # no cross-talk, as for D4
    game = SuperResolutionGame(source, network, 1, 0.05, SuperResolutionSettings(zeta=0.3, lambda_d=0.1, lambda_g=0.1))
    game.v_d += 0.2
    game.b_d += 0.1
    batch, objective = frozen(game)
    check(objective, game.parameters("generator"), game.gradient(batch, "generator"))
    check(objective, game.parameters("discriminator"), game.gradient(batch, "discriminator"))


def test_d2_game_plays_the_discriminator_itself() -> None:
    source, network = small()
    game = SuperResolutionGame(source, network, 1, 0.05, SuperResolutionSettings(zeta=0.2, lambda_d=0.0, lambda_g=0.0))
    game.v_d += 0.2
    batch, _ = frozen(game)
    rng = torch.Generator().manual_seed(3)
    true = source.draw(400, rng, 2)
    fake = network.render(network.hidden(network.latents(400, rng)))
    gain = game.d2(true[1], true[0], game.v_d, game.b_d) - game.d2(fake[1], fake[0], game.v_d, game.b_d)
    assert game.value(batch) == pytest.approx(float(gain.mean(0).sum()))
    assert torch.equal(coordinates(true[1], game.d2.w).transpose(0, 1), batch.true_s)
