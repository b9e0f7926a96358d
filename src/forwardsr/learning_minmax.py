"""``learn --method minmax``: Algorithm 4 on a source, into a Run that resumes between stages."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from forwardsr.data.open import open_source
from forwardsr.data.source import FiniteSource, Source
from forwardsr.drawing import pictures, save_features
from forwardsr.errors import UserError
from forwardsr.generators import load_generator, load_target
from forwardsr.learn.minmax import MinmaxConfig, MinmaxResult, StageRecord, State, learn_minmax
from forwardsr.measure.certificate import Certificate, certify
from forwardsr.measure.self_certificate import SelfCertificate, self_certificate
from forwardsr.model.innovation_generator import InnovationGenerator
from forwardsr.model.patch_generator import PatchGenerator
from forwardsr.parallel import ALONE, current, team
from forwardsr.report.figures import grid, save_png
from forwardsr.report.page import write_report
from forwardsr.run import Run

SHOWN = 32  # samples in the pictures, in two rows
FEWEST = 1000  # samples a certificate is made of


def learn_theorem(
    source: str, channels: str | None, config: MinmaxConfig, seed: int, out: Path, console: Console, command: str
) -> int:
    """Learn ``source`` (a planted target or pyramid arrays) into the Run at ``out``, or go on there; returns 0.

    ``channels``: ``"m1,m2,..."``, or ``None`` where the source is a planted target, whose sizes are known. Raises
    :class:`UserError` for bad settings or input.
    """
    settings: dict[str, Any] = {"method": "minmax", "source": source, "channels": channels, "seed": seed}
    settings |= asdict(config) | {"command": command}
    Run.check(out, settings)
    data = open_source(source, console=console)
    run = Run.create(out, settings)
    try:
        if not run.log_path.exists():
            size = f"{len(data):,} samples" if isinstance(data, FiniteSource) else "fresh samples"
            console.print(
                f"{data.name}: {size}, {' / '.join(f'{k} x {d}' for k, d in data.shapes)} numbers; {config.solver}"
            )
        saved = run.load_checkpoint()
        if saved is not None and saved.get("done"):
            console.print(f"{out}: learned already; its report is {run.path / 'report.html'}")
            return 0
        start = None if saved is None else saved["state"]
        divided = config.solver == "efficient"
        with team().call(assist, source, channels, config, seed) if divided else nullcontext(ALONE) as world:
            result = learn_minmax(
                data, sizes(channels, data), None, config, seed,
                on_stage=lambda record, state: _keep(run, record, state, console), resume=world.share(start),
            )  # fmt: skip
        result.generator.save(run.path / "model.safetensors", {"command": command})
        # Of all stages, also those of an earlier session.
        for note in dict.fromkeys(note for line in run.lines("stage") for note in line.get("notes", [])):
            run.log("note", message=note)
            console.print(f"note: {note}")
        console.print(trace_table(run, result))
        _finish(run, data, result, console)
        run.log("end", reason="learned")
        run.save_checkpoint({"state": dict(result.state), "done": True})
    except KeyboardInterrupt:
        console.print("stopped; the stages that were finished are kept, and the same command goes on after them")
        return 130
    finally:
        run.close()
    return 0


def assist(source: str, channels: str | None, config: MinmaxConfig, seed: int) -> None:
    """What the other processes do while rank 0 is in :func:`learn_theorem` (:mod:`forwardsr.parallel`)."""
    data = open_source(source, console=Console(quiet=True))
    learn_minmax(data, sizes(channels, data), None, config, seed, resume=current().share(None))


def _finish(run: Run, data: Source, result: MinmaxResult, console: Console) -> None:
    """The certificate (of a planted target) or the self-certificate, as a table and ``certificate.json``; pictures; the page."""
    target = Path(str(run.config["source"]))
    found = certificate(run.path, target if target.suffix == ".safetensors" else None)
    run.write_json("certificate.json", found.to_json())
    console.print(found.table())
    _pictures(run, data, result)
    save_features(result.generator, run.path / "samples")
    page = write_report([run.path], run.path / "report.html")
    console.print(f"weights: {run.path / 'model.safetensors'}; report: {page}")


def _pictures(run: Run, data: Source, result: MinmaxResult) -> None:
    """Real and learned samples of every level under samples/, where the patches make square images."""
    random = torch.Generator().manual_seed(0)
    try:
        real = pictures(data.draw(SHOWN, random))
        learned = pictures(result.generator.sample(SHOWN, random))
    except UserError:
        return
    for name, pyramid in (("real", real), ("best", learned)):
        for images in pyramid:
            save_png(grid(images, SHOWN // 2), run.path / "samples" / f"{name}-{images.shape[-1]:03d}.png")


def certificate(
    path: Path, target: Path | None, n: int = 10_000, seed: int = 1, source: str | None = None
) -> Certificate | SelfCertificate:
    """Hold the network at ``path`` (a Run or a file) against ``target``; where there is none, against ``source`` or its Run's own.

    Raises :class:`UserError` where the network is no patch generator, the sizes differ, no source is known, or n < 1000.
    """
    if n < FEWEST:
        raise UserError(f"-n {n}: a certificate needs at least {FEWEST}")
    if target is not None and source is not None:
        raise UserError("--source: a certificate is against a target or against data; leave one out")
    learned = load_generator(path)
    if not isinstance(learned, PatchGenerator):
        raise UserError(f"{path}: a certificate is of a patch network; learn one with --method minmax")
    run = None if path.suffix == ".safetensors" else Run.read(path)
    if target is not None:
        if isinstance(learned, InnovationGenerator):
            raise UserError(f"--target: {path} learned photographs, which have none; leave it out")
        saved = None if run is None else run.load_state()
        return certify(learned, load_target(target), n, seed, None if saved is None else saved["state"])
    named = source or (None if run is None else str(run.config["source"]))
    if named is None:
        raise UserError("--target: a network file alone has no data; name its target, or --source, or give a run")
    if isinstance(learned, InnovationGenerator):
        from forwardsr.measuring import Subject

        data = Subject(learned, run, source, n, seed, None).real
    else:
        data = open_source(named)
    own = run is not None and isinstance(data, FiniteSource) and source in (None, run.config["source"])
    return self_certificate(learned, data, n, seed, held_out=not own)


def sizes(channels: str | None, source: Source) -> list[int]:
    """m_1, m_2, ... as the user gave them, or as the planted target has them."""
    if channels is None:
        known = getattr(source, "channels", None)
        if known is None or isinstance(known, int):
            raise UserError(
                f"--channels: {source.name} does not say how many channels its patches have; give m1,m2,..."
            )
        return list(known)
    try:
        return [int(part) for part in channels.split(",")]
    except ValueError:
        raise UserError(f"--channels {channels}: give whole numbers, as 24,24,24") from None


def _keep(run: Run, record: StageRecord, state: State, console: Console) -> None:
    run.log("stage", **record.to_json())
    run.save_checkpoint({"state": dict(state)})
    console.print(
        f"stage {record.index + 1} of {record.total}: level {record.level}, {record.name} (Algorithm {record.algorithms}), "
        f"{record.seconds:.1f} s"
    )


def trace_table(run: Run, result: MinmaxResult) -> Table:
    """What every stage took and found."""
    table = Table(title="Algorithm 4, stage by stage", title_justify="left")
    for heading in ("level", "stage", "algorithms", "seconds", "found"):
        table.add_column(heading)
    for line in run.lines("stage"):
        found = ", ".join(f"{key} {value:.3g}" for key, value in line["metrics"].items())
        table.add_row(str(line["level"]), line["name"], line["algorithms"], f"{line['seconds']:.1f}", found)
    return table
