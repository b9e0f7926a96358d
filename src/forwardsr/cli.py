"""The command line: parse, call the API, print. Exit 0 done, 1 diverged, 2 a user's mistake (one line), 130 on Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional, subcommand

from forwardsr import __version__
from forwardsr.errors import UserError
from forwardsr.learn.memory import keep_freed_memory
from forwardsr.learning import LearnConfig, fit
from forwardsr.model.plant import PlantConfig, plant
from forwardsr.parallel import run
from forwardsr.study.plan import ReproduceConfig


@dataclass(frozen=True, kw_only=True)
class Learn(LearnConfig):
    """Learn a generator of a source, into a run folder; the same command again goes on where it stopped."""

    source: Positional[str]
    """An image folder or .zip, pyramid arrays (.npz or a folder of .npy), a planted target, or a name: photos, digits."""
    out: Path
    """The run folder."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        config = LearnConfig(**{f.name: getattr(self, f.name) for f in fields(LearnConfig)})
        return fit(config, self.out, console, command)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw samples: pictures of the finest level, of all levels, or arrays."""

    run: Positional[Path]
    """A run folder, or a network (.safetensors)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64
    """How many samples."""
    out: Path
    """A folder for pictures (000000.png, ...), one picture of all levels (.png), or pyramid arrays (.npz)."""
    levels: str = "finest"
    """finest, or all: a folder a level."""
    weights: str = "best"
    """best (by the run's own distance) or last."""
    seed: int = 0

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        from forwardsr.drawing import draw

        draw(self.run, self.n, self.out, self.levels, self.weights, self.seed, console)
        return 0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Measure a generator: its distance from real data, and what the paper says of hidden layers, features and moments."""

    run: Positional[Path]
    """A run folder, or a planted target (.safetensors)."""
    what: tuple[str, ...] = ()
    """Which measurements: all, or any of distance, sparsity, correlation, moments, features, locality, corrections,
    forward-super-resolution, novelty, assumptions, fid. By default the distance of a run, the assumptions of a target."""
    source: str | None = None
    """The real data; the run's own source where not given."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many generated samples, and real ones. By default each measurement's own number (docs/measurements.md)."""
    weights: str = "best"
    """best or last."""
    seed: int = 1
    fid: Path | None = None
    """The TorchScript file of an Inception network of your own: adds FID and KID. Needs pip install 'forwardsr[fid]'."""
    figures: Path | None = None
    """A folder for a picture (PNG) of every measurement."""
    json: bool = False
    """Print JSON for other programs instead of a table."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        from forwardsr.measuring import measure

        def note(message: str) -> None:
            print(f"note: {message}", file=sys.stderr)

        results = measure(self.run, self.source, self.what, self.n, self.weights, self.seed, self.fid, note)
        if self.json:
            print(json.dumps({name: result.to_json() for name, result in results.items()}, indent=2))
        else:
            for result in results.values():
                console.print(result.table())
        if self.figures is not None:
            from forwardsr.report.measured import save_figures

            for path in save_figures(results, self.figures):
                print(f"figure: {path}", file=sys.stderr)
        return 0


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Hold a learned network against its planted target: Theorem 5.1 and every lemma; or, without a target, against data."""

    run: Positional[Path]
    """The run folder of `learn --method minmax`, or a network (.safetensors)."""
    target: Path | None = None
    """The planted target (.safetensors). Without it every discriminator's moments are compared on the run's source."""
    source: str | None = None
    """Samples to compare with in place of the run's source: where that is finite, others than it was learned from."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10_000
    """Fresh latents (with a target) or samples of the data (without)."""
    seed: int = 1
    json: bool = False
    """Print JSON for other programs instead of a table."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        from forwardsr.learning_minmax import certificate

        result = certificate(self.run, self.target, self.n, self.seed, self.source)
        if self.json:
            print(json.dumps(result.to_json(), indent=2))
        else:
            console.print(result.table())
        return 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one self-contained page about one run or several."""

    runs: Positional[tuple[Path, ...]]
    """Run folders."""
    out: Path | None = None
    """The page; report.html in the run's folder where not given."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        from forwardsr.report.page import write_report

        if self.out is None and len(self.runs) != 1:
            raise UserError("--out: say where a page about several runs goes, as --out page.html")
        page = write_report(self.runs, self.out or self.runs[0] / "report.html")
        console.print(f"report: {page}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Reproduce(ReproduceConfig):
    """Reproduce the paper's figures on a source: learn, measure, draw, and say which of its claims held."""

    targets: Positional[tuple[str, ...]]
    """figure1 ... figure8, theorem, agnostic, or all (all but agnostic)."""
    out: Path
    """The study's folder: runs, figures, page.html and study.json. The same command again goes on where it stopped."""
    dry_run: bool = False
    """Say what would be run, with the time to expect here, and learn nothing."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        from forwardsr.study.reproduce import reproduce

        config = ReproduceConfig(**{f.name: getattr(self, f.name) for f in fields(ReproduceConfig)})
        return reproduce(self.targets, config, self.out, self.dry_run, console)


@dataclass(frozen=True, kw_only=True)
class Plant(PlantConfig):
    """Draw a target network G* that satisfies the paper's assumptions, or violates one by a chosen amount."""

    out: Path
    """The network's file, ending in .safetensors; give it to learn as SOURCE."""

    def main(self, console: Console, command: str) -> int:
        """Run the command."""
        if self.out.suffix != ".safetensors":
            raise UserError(f"--out {self.out}: name a file ending in .safetensors")
        target = plant(PlantConfig(**{f.name: getattr(self, f.name) for f in fields(PlantConfig)}))
        target.save(self.out, {"command": command})
        sizes = ", ".join(f"{k} patches of {m} channels" for (k, _), m in zip(target.shapes, target.channels))
        console.print(f"{self.out}: {len(target.shapes)} levels ({sizes}), latent of {target.latent_dim}")
        return 0


Command = (
    Annotated[Learn, subcommand("learn")]
    | Annotated[Plant, subcommand("plant")]
    | Annotated[Draw, subcommand("draw")]
    | Annotated[Measure, subcommand("measure")]
    | Annotated[Certify, subcommand("certify")]
    | Annotated[Report, subcommand("report")]
    | Annotated[Reproduce, subcommand("reproduce")]
)


def parse(arguments: Sequence[str]) -> Learn | Plant | Draw | Measure | Certify | Report | Reproduce:
    """Read the arguments. Raises :class:`UserError` with tyro's message on one line; exits for ``--help``."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Command, prog="forwardsr", args=list(arguments))
    except SystemExit as stop:
        if not stop.code:
            raise
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in said.getvalue().splitlines()]
    message = re.split(r"For full helptext|Argument helptext|Full helptext", " ".join(filter(None, lines)))[0]
    message = re.sub(
        r"^(Parsing error|Unrecognized options|Value error|Required options|Missing[a-z ]*)\s*", "", message
    )
    what = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    raise UserError(f"{message.strip()} (see forwardsr {what + ' ' if what else ''}--help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Never a traceback for a user's mistake."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        if list(arguments) == ["--version"]:
            print(f"forwardsr {__version__}")
            return 0
        command = parse(arguments)
        seed = getattr(command, "seed", 0)
        if not 0 <= seed < 2**63:
            raise UserError(f"--seed {seed}: must be in [0, 2^63)")
        # Tables are laid out for a wide page where no terminal says how wide it is.
        wide = None if sys.stdout.isatty() else 132
        printed = console if isinstance(command, Learn) else Console(highlight=False, width=wide)
        return command.main(printed, "forwardsr " + shlex.join(arguments))
    except UserError as error:
        print(f"forwardsr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("forwardsr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0


def entry() -> None:
    """The console script and ``python -m forwardsr``, alone or under ``torchrun``: the process is the command's own."""
    keep_freed_memory()
    sys.exit(run(main))
