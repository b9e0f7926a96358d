"""Learning by two processes under ``torchrun``: what one process learns.

This file is also the program that both a lone process and two of ``torchrun`` run; the tests compare what they leave behind.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

from forwardsr.cli import main
from forwardsr.data.planted import PlantedSource
from forwardsr.data.pyramid import Pyramid, pool
from forwardsr.data.source import Epochs
from forwardsr.errors import UserError
from forwardsr.learn.budget import Budget
from forwardsr.learn.efficient import feature_stage, features_of, latent_sums, super_resolution_stage
from forwardsr.learn.joint import JointConfig, JointLearner
from forwardsr.learn.loop import train
from forwardsr.learn.schedules import ScheduledLearner, schedule
from forwardsr.learn.stream import Stream
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.model.plant import PlantConfig, plant
from forwardsr.model.shared_norm import SharedBatchNorm, share_batch_norms
from forwardsr.parallel import BACKEND, World, current, run, team
from forwardsr.run import Run

pytestmark = pytest.mark.skipif(
    not dist.is_gloo_available(), reason="this PyTorch has no gloo, which processes talk by"
)

STEPS = 5
TERMS = 37  # more than two rounds of the chunks' sums that are held
TINY = "--resolution 16 --width 4 --latent 6 --batch 4 --device cpu --precision float32 --images 24"


# -- the program ----------------------------------------------------------------------------------------------------------


class Pictures:
    """37 random pictures of 16 px: batches run over the ends of epochs."""

    name = "pictures"
    shapes = ((3, 8, 8), (3, 16, 16))

    def __init__(self) -> None:
        self.images = torch.rand(37, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: Tensor, levels: int | None = None) -> Pyramid:
        return pool(self.images[index], (8, 16))[:levels]

    def draw(self, n: int, generator: torch.Generator, levels: int | None = None) -> Pyramid:
        return self.take(torch.randint(0, len(self), (n,), generator=generator), levels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def target() -> PatchGenerator:
    return plant(PlantConfig(patches=(4, 16), channels=(8,), d=12, p=(0.1, 0.12)))


def collectives(world: World) -> dict[str, Any]:
    total = torch.zeros(6, dtype=torch.float64)
    terms = [(torch.randn(6, generator=seeded(i)) * 10.0**i,) for i in range(TERMS)]
    world.add_in_turn(iter(terms[world.rank :: world.size]), (total,))
    mean = [torch.full((2, 3), float(world.rank)), torch.arange(4.0) * (world.rank + 1)]
    world.average(mean)
    return {
        "in turn": total,
        "mean": mean,
        "shared": world.share({"a": torch.ones(2) * (7 + world.rank), "b": [None, "text"]}),
        "agreed": world.agree(100.0 + world.rank, 15 * world.rank),
        "parts": [world.part(n) for n in (1, 5, 8)],
        "alone within": team().size,
    }


def theorem(world: World) -> dict[str, Any]:
    network, found = target(), {}
    for name, source in (("clean", PlantedSource(network)), ("noisy", PlantedSource(network, noise=0.03))):
        stream = Stream(source, seed=3)
        found[f"{name} chunks"] = [x[0] for x in stream.chunks(1000, 1, 5, chunk=130, dealt=True)]
        sigma = torch.zeros(1) if name == "clean" else torch.tensor(0.03) * torch.tensor(source.rms)
        state: dict[str, Tensor] = {}
        for l, (W, k) in enumerate(zip(network.W, (4, 16)), start=1):
            state |= {f"W{l}": W, f"W{l}.warm": W, f"noise{l}": sigma[min(l, len(sigma)) - 1].expand(k)}
            state |= {f"rms{l}": torch.full((k,), 0.5)}
        _, *found[f"{name} sums"] = latent_sums(stream, features_of(state, 0), 20_000, 2)
        higher = super_resolution_stage(stream, state, 1, network.parents, 4000, 12)
        found[f"{name} regression"] = {**higher[0], **{key: torch.tensor(x) for key, x in higher[1].items()}}
        found[f"{name} features"] = feature_stage(stream, 1, 8, 4000, 1, 11)[0]
    with pytest.raises(UserError) as caught:
        feature_stage(Stream(PlantedSource(network), 3), 1, 9, 4000, 1, 11)
    return found | {"error": str(caught.value)}


def norms(world: World) -> dict[str, Any]:
    found = {}
    for name, shape in (("usual", (6, 3, 4, 4)), ("one value a process", (2, 3, 1, 1))):
        x = torch.randn(shape, generator=seeded(1), dtype=torch.float64) * 3 + 5
        cotangent = torch.randn(shape, generator=seeded(2), dtype=torch.float64)
        holder = nn.Sequential(nn.BatchNorm2d(3).double())
        norm = holder[0]
        norm.weight.data, norm.bias.data = torch.tensor([0.5, 1.0, -2.0]).double(), torch.ones(3).double()
        share_batch_norms(holder, world)
        assert isinstance(holder[0], SharedBatchNorm) == (world.size > 1)
        assert holder[0].weight is norm.weight
        own = world.part(len(x))
        part = x[own].requires_grad_()
        y = holder(part)
        y.backward(cotangent[own])
        gradients = [world.total(p.grad) for p in holder.parameters()]
        rows = [torch.cat(world.gather(t)) for t in (y.detach(), part.grad)]
        numbers = [*rows, *gradients, *holder.buffers(), holder.eval()(x).detach()]
        found[name] = torch.cat([t.double().flatten() for t in numbers])
    return found


def joint(batch: int = 4, **settings: Any) -> JointLearner:
    config = JointConfig(width=4, latent=6, batch=batch, penalty_interval=3, precision="float32", **settings)
    return JointLearner(config, Pictures(), torch.device("cpu"))


def layerwise() -> ScheduledLearner:
    stages = schedule("backward-correction", (8, 16))
    return ScheduledLearner(joint().config, Pictures(), torch.device("cpu"), stages, (0.4, 0.8, 1.0), None, 0.2)


def steps(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, learner in (
        ("joint", joint()),
        ("non-saturating", joint(loss="non-saturating")),
        ("stages", layerwise()),
    ):
        learner.join(world)
        records = []
        for step in range(STEPS):
            if learner.stage_over(step / STEPS):
                learner.next_stage()
            records.append({key: x.clone() for key, x in learner.advance().items()})
            if step == 0:
                both = (*learner.generator.parameters(), *learner.critic.parameters())
                found[f"{name} gradients"] = torch.cat([p.grad.flatten() for p in both if p.grad is not None])
        found[f"{name} records"], found[f"{name} state"] = records, learner.state()
        found[f"{name} stage"] = learner.index
    return found


class Stopped(JointLearner):
    """Its last process is told to end in the third step."""

    def advance(self) -> dict[str, Tensor]:
        if self.step == 2 and self.world.rank == self.world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().advance()


def runs(world: World, out: Path) -> dict[str, Any]:
    def learn(name: str, count: int, learner: JointLearner) -> Any:
        learner.join(world)
        kept = Run.create(out / name, {"source": "pictures"}) if world.main else None
        code = train(learner, kept, Budget(steps=count), ignore, ignore, report_images=64, checkpoint_seconds=1e9,
                     console=Console(quiet=True), world=world)  # fmt: skip
        if kept is not None:
            kept.close()
        return code, learner.state()

    def ignore(_seconds: float) -> None:
        """Nothing is watched here."""

    found = {"whole": learn("whole", 6, joint())}
    learn("parts", 3, joint())
    rest = joint()
    rest.rng.manual_seed(world.rank)  # whatever a process begins with, it goes on from what rank 0 has
    found["parts"] = learn("parts", 6, rest)
    found["stopped"] = learn("stopped", 6, Stopped(joint().config, Pictures(), torch.device("cpu")))
    return found


def everything(out: Path) -> dict[str, list[Any]]:
    """Each part's result, of every process."""
    world = current()
    parts: dict[str, Callable[[], Any]] = {
        "collectives": lambda: collectives(world), "theorem": lambda: theorem(world), "norms": lambda: norms(world),
        "steps": lambda: steps(world), "runs": lambda: runs(world, out),
    }  # fmt: skip
    return {name: world.gather(part()) for name, part in parts.items()}


def assist(out: Path) -> None:
    everything(out)


def program(out: Path) -> int:
    """At rank 0: the parts above, and then learnings from the command line, one of which fails."""
    with team().call(assist, out):
        found = everything(out)
    theorem = ["learn", str(out.parent / "target.safetensors"), "--method", "minmax", "--samples", "20000"]
    codes = [
        main([*theorem, "--out", str(out / "minmax")]),
        main([*theorem, "--channels", "8,9", "--out", str(out / "too-many")]),
        main(["learn", str(out.parent / "pictures"), *TINY.split(), "--out", str(out / "joint")]),
    ]
    torch.save(found | {"codes": codes}, out / "found.pt")
    return 0


if __name__ == "__main__":
    sys.exit(run(lambda: program(Path(sys.argv[1]))))


# -- the tests ------------------------------------------------------------------------------------------------------------


def torchrun(*command: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]


def environment(cache: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "FORWARDSR_CACHE": str(cache), **more}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What one process found, and what two did (``found[2]["steps"][rank]``), with their folder and what they said."""
    folder = tmp_path_factory.mktemp("parallel")
    target().save(folder / "target.safetensors")
    rng = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    from PIL import Image

    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "pictures" / f"{i:02d}.png")
    started = {}
    for size, command in ((1, [sys.executable, __file__]), (2, torchrun(__file__))):
        (folder / str(size)).mkdir()
        started[size] = subprocess.Popen(
            [*command, str(folder / str(size))], env=environment(folder / f"cache{size}"), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    results = {}
    with contextlib.ExitStack() as stack:
        for size, process in started.items():
            stack.callback(process.kill)
            said = process.communicate(timeout=900)[0]
            assert process.returncode == 0, said
            out = folder / str(size)
            results[size] = torch.load(out / "found.pt", weights_only=False) | {"out": out, "said": said}
    return results


def alike(a: Any, b: Any, tolerance: float = 0.0) -> None:
    """Equal, tensors to ``tolerance`` of their largest number."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            alike(a[key], b[key], tolerance)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            alike(x, y, tolerance)
    elif isinstance(a, Tensor) and tolerance:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(float(a.double().abs().max()), 1e-30))
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


def test_collectives(found: dict[int, Any]) -> None:
    first, second = found[2]["collectives"]
    (alone,) = found[1]["collectives"]
    # The terms grow tenfold each, so that any other order of addition gives other bits.
    assert torch.equal(first["in turn"], alone["in turn"])
    assert torch.equal(second["in turn"], alone["in turn"])
    assert torch.equal(first["mean"][0], torch.full((2, 3), 0.5))
    assert torch.equal(second["mean"][1], torch.tensor([0.0, 1.5, 3.0, 4.5]))
    for each in (first, second):
        assert torch.equal(each["shared"]["a"], torch.full((2,), 7.0))
        assert each["shared"]["b"] == [None, "text"]
        assert each["agreed"] == (100.0, 15)
        assert each["alone within"] == 1
    assert alone["agreed"] == (100.0, 0)
    assert [(a.start, a.stop, b.stop) for a, b in zip(first["parts"], second["parts"])] == [
        (0, 0, 1),
        (0, 2, 5),
        (0, 4, 8),
    ]


def test_terms_in_another_order_would_have_other_bits() -> None:
    terms = [torch.randn(6, generator=seeded(i)).double() * 10.0**i for i in range(TERMS)]
    forward, backward = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for x, y in zip(terms, reversed(terms)):
        forward, backward = forward + x, backward + y
    assert not torch.equal(forward, backward)


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_chunks_are_dealt_as_one_process_reads_them(found: dict[int, Any], name: str) -> None:
    parts = [each[f"{name} chunks"] for each in found[2]["theorem"]]
    (alone,) = (each[f"{name} chunks"] for each in found[1]["theorem"])
    assert [len(part) for part in parts] == [4, 4]
    alike(alone, [part[i] for i in range(4) for part in parts])


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_sums_and_regressions_are_those_of_one_process_bit_for_bit(found: dict[int, Any], name: str) -> None:
    (alone,) = found[1]["theorem"]
    for each in found[2]["theorem"]:
        alike(alone[f"{name} sums"], each[f"{name} sums"])
        alike(alone[f"{name} regression"], each[f"{name} regression"])


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_features_are_those_of_one_process_to_rounding(found: dict[int, Any], name: str) -> None:
    (alone,) = found[1]["theorem"]
    first, second = (each[f"{name} features"] for each in found[2]["theorem"])
    alike(first, second)
    alike(alone[f"{name} features"], first, 1e-6)


def test_an_error_of_some_patches_is_that_of_one_process(found: dict[int, Any]) -> None:
    (alone,) = found[1]["theorem"]
    assert "patch 0 shows 8 directions" in alone["error"]
    assert [each["error"] for each in found[2]["theorem"]] == [alone["error"]] * 2


def test_shared_batch_norms_are_the_whole_batchs(found: dict[int, Any]) -> None:
    (alone,) = found[1]["norms"]
    for each in found[2]["norms"]:
        alike(alone, each, 1e-12)


@pytest.mark.parametrize("name", ["joint", "non-saturating", "stages"])
def test_steps_of_two_processes_are_those_of_one(found: dict[int, Any], name: str) -> None:
    first, second = found[2]["steps"]
    (alone,) = found[1]["steps"]
    for key in ("gradients", "records", "state", "stage"):
        alike(first[f"{name} {key}"], second[f"{name} {key}"])
    alike(alone[f"{name} gradients"], first[f"{name} gradients"], 2e-5)
    alike(alone[f"{name} records"], first[f"{name} records"], 1e-4)
    alike(alone[f"{name} state"]["generator"], first[f"{name} state"]["generator"], 1e-3)
    for key in ("rng", "position", "step", "began"):
        alike(alone[f"{name} state"][key], first[f"{name} state"][key])
    assert first[f"{name} stage"] == (2 if name == "stages" else 0)


def test_going_on_changes_nothing_bit_for_bit(found: dict[int, Any]) -> None:
    for size in (1, 2):
        for each in found[size]["runs"]:
            assert each["whole"][0] == each["parts"][0] == 0
            alike(each["whole"][1], each["parts"][1])
    a, b = found[2]["runs"]
    alike(a["whole"], b["whole"])


def test_a_signal_to_any_process_ends_all_after_a_checkpoint(found: dict[int, Any]) -> None:
    for size in (1, 2):
        for code, state in (each["stopped"] for each in found[size]["runs"]):
            assert code == 128 + signal.SIGTERM
            assert state["step"] == 3
        saved = Run.read(found[size]["out"] / "stopped").load_state()
        assert saved is not None
        assert saved["learner"]["step"] == 3


def test_learn_from_the_command_line(found: dict[int, Any]) -> None:
    one, two = (found[size]["out"] for size in (1, 2))
    for size in (1, 2):
        assert found[size]["codes"] == [0, 2, 0]
        assert len(re.findall(r"^forwardsr: .*9 channels", found[size]["said"], re.MULTILINE)) == 1
        assert len(re.findall(r"^forwardsr: ", found[size]["said"], re.MULTILINE)) == 1
        assert len(re.findall(r"^stage 4 of 4", found[size]["said"], re.MULTILINE)) == 1
        assert (found[size]["out"] / "joint" / "report.html").is_file()
    a, b = (PatchGenerator.load(out / "minmax" / "model.safetensors") for out in (one, two))
    alike([*a.W, *a.V[1:], *a.b], [*b.W, *b.V[1:], *b.b], 1e-5)
    gram = [torch.einsum("kmz,lnz->kmln", v, v) for v in (a.V[0], b.V[0])]
    alike(gram[0], gram[1], 1e-5)
    a_last, b_last = (Run.read(out / "joint").load_weights("model.safetensors") for out in (one, two))
    alike(a_last, b_last, 1e-3)


def test_bad_use_is_one_line_of_one_process(tmp_path: Path) -> None:
    command = torchrun(
        "-m", "forwardsr", "learn", "photos", "--batch", "15", "--device", "cpu", "--out", str(tmp_path / "run")
    )
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=600)
    assert done.returncode == 1  # torchrun's own
    (line,) = re.findall(r"^forwardsr: (.*)$", done.stderr, re.MULTILINE)
    assert line == "--batch 15: 2 processes cannot share it equally; say --batch 16, or another --nproc-per-node"
    assert re.search(r"rank\s*: 0 .*\n\s*exitcode\s*: 2 ", done.stderr)
    assert not (tmp_path / "run").exists()


def test_an_unknown_backend_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), (BACKEND, "pigeons")):
        monkeypatch.setenv(name, value)
    assert run(lambda: 0) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"forwardsr: {BACKEND}=pigeons: not available here; say gloo")
    assert said.count("\n") == 1


@pytest.mark.parametrize(("batch", "size", "remedy"), [(1, 2, 2), (3, 8, 8), (15, 4, 16), (17, 4, 16)])
def test_batches_that_cannot_be_shared(batch: int, size: int, remedy: int) -> None:
    with pytest.raises(UserError, match=f"--batch {batch}: {size} processes .* say --batch {remedy},"):
        World(0, size).check(batch, torch.device("cpu"))
    World(0, size).check(remedy, torch.device("cpu"))


def test_epochs_are_cut_into_parts() -> None:
    whole = Epochs(Pictures(), 6, seed=1, flip=True)
    parts = [Epochs(Pictures(), 6, 1, True, part=World(rank, 3).part(6)) for rank in range(3)]
    for _ in range(8):  # over the end of an epoch
        alike(list(whole.next()), list(Pyramid.cat([part.next() for part in parts])))
    assert {part.position for part in parts} == {whole.position}


def test_one_process_is_no_world() -> None:
    assert team().size == current().size == 1
    with team().call(assist, Path()) as world:
        assert world.part(5) == slice(0, 5)
    called = []
    assert run(lambda: called.append(1) or 7) == 7
    assert called == [1]
