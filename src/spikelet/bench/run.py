"""A whole benchmark: its cases one after the other, its rows, its files."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from spikelet.bench import memory, rows
from spikelet.bench.alone import measure_alone
from spikelet.bench.chart import chart
from spikelet.bench.foreign import missing
from spikelet.bench.rows import Row, related
from spikelet.bench.setting import Case, Setting
from spikelet.bench.subject import fuses, model_of, subject
from spikelet.checkpoint import replacing
from spikelet.errors import UserError
from spikelet.heap import keep_freed_memory
from spikelet.report import hardware
from spikelet.train import env, write_json

OTHERS = ("spikingjelly", "snntorch", "triton")
Say = Callable[[str], None]


def bench(setting: Setting, out: Path, say: Say) -> dict[str, Any]:
    """Measures every case and writes OUT/bench.json, anew after each, and OUT/bench.svg.

    A case that fails is one line; the others go on. Nothing else should run on the machine.

    Args:
        setting: what to measure.
        out: folder of the two files, which are replaced.
        say: takes each line of progress.

    Returns:
        `rows`, `failed` (lines), `files`, and what they were measured on.

    Raises:
        UserError: for a model that cannot be made, or if nothing could be measured.
    """
    model_of(setting)
    setting = dataclasses.replace(setting, threads=setting.threads or torch.get_num_threads())
    found: list[Row] = []
    failed: list[str] = []
    about = _about(setting)
    with _computing(setting):
        for case in _plan(setting, failed, say):
            row = _attempt(setting, case, failed, say)
            if row is not None:
                found.append(row)
                say(line(row))
            content = {**about, "rows": related(found), "failed": failed}
            write_json(out / "bench.json", content)
    if not found:
        raise UserError("--engines", f"none could be measured ({failed[0]})", "try another setting")
    return {**content, "files": [str(out / "bench.json"), *_draw(content, out, say)]}


def _plan(setting: Setting, failed: list[str], say: Say) -> Iterator[Case]:
    """The cases in order: those over time between two measurements of the ANN."""
    absent = {engine: missing(engine) for engine in setting.engines}
    for engine, package in absent.items():
        if package is not None:
            _fail(f"{engine}: {package} is not installed", failed, say)
    if setting.fuse != "off" and not fuses(torch.device(setting.device)):
        say("no compiler works here: the fused scan runs as the plain one")
        setting = dataclasses.replace(setting, fuse="off")
    for precision in dict.fromkeys(setting.precisions):
        ann, timed = Case("ann", precision, 1), setting.kind != "memory"
        if timed or "ann" in setting.engines:
            yield ann
        yield from (case for case in setting.cases(precision) if absent[case.engine] is None)
        if timed:
            yield ann


def _attempt(setting: Setting, case: Case, failed: list[str], say: Say) -> Row | None:
    """The row of one case, or None and one more line."""
    try:
        return _row(setting, case)
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        _fail(f"{case.name}: {text.splitlines()[0][:300]}", failed, say)
        return None
    finally:
        gc.collect()
        if setting.device != "cpu":
            torch.cuda.empty_cache()


def _fail(reason: str, failed: list[str], say: Say) -> None:
    failed.append(reason)
    say(f"left out: {reason}")


def _row(setting: Setting, case: Case) -> Row:
    if setting.kind == "memory":
        measure = memory.measure if setting.device != "cpu" else measure_alone
        return rows.blank(setting, case) | measure(setting, case)
    measured = rows.training if setting.kind == "train" else rows.inference
    return measured(setting, case, subject(setting, case))


def line(row: Row) -> str:
    """A row before its ratios are known, for people."""
    words = [Case(row["engine"], row["precision"], row["steps"], row["fused"]).name]
    for key, unit in (("seconds_median", "s"), ("saved_mib", "MiB kept"), ("peak_mib", "MiB peak")):
        if row[key] is not None:
            words.append(f"{row[key]:.4g} {unit}")
    return ", ".join(words)


@contextmanager
def _computing(setting: Setting) -> Iterator[None]:
    """Torch with that many threads and the fastest convolutions; as before afterwards."""
    cudnn = torch.backends.cudnn
    threads, searching = torch.get_num_threads(), cudnn.benchmark
    torch.set_num_threads(setting.threads or threads)
    cudnn.benchmark = True
    if setting.device == "cpu":
        keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.benchmark = searching


def _about(setting: Setting) -> dict[str, Any]:
    """Machine, versions, commit, date and setting."""
    others = {}
    for name in OTHERS:
        try:
            others[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    around = env(setting.device)
    return {
        "schema": 1,
        "kind": setting.kind,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": hardware(),
        "env": {**around, "versions": around["versions"] | others},
        "setting": dataclasses.asdict(setting),
    }


def _draw(content: dict[str, Any], out: Path, say: Say) -> list[str]:
    """The plot's path; none, and one line, where matplotlib is not installed."""
    try:
        drawn = chart(content["kind"], content["rows"])
    except UserError as error:
        say(f"no plot: {error.message}; {error.fix}")
        return []
    with replacing(out / "bench.svg") as temporary:
        temporary.write_text(drawn, encoding="utf-8")
    return [str(out / "bench.svg")]
