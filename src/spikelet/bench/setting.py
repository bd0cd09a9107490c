"""What is measured: the setting of one benchmark and its cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from spikelet.errors import UserError, unknown

KINDS = ("train", "memory", "infer")
ENGINES = ("ann", "rate", "hybrid", "bptt", "jelly", "snntorch")
FUSED = ("rate", "hybrid", "bptt")
PRECISIONS = ("fp32", "bf16")
FUSE = ("on", "off", "both")


@final
@dataclass(frozen=True)
class Case:
    """One engine at one precision and number of steps; `fused` concerns our own alone."""

    engine: str
    precision: str
    steps: int
    fused: bool = False

    @property
    def name(self) -> str:
        """Such as "rate, fused, bf16, T = 4"."""
        fused = ", fused" if self.fused else ""
        return f"{self.engine}{fused}, {self.precision}, T = {self.steps}"


@final
@dataclass(frozen=True)
class Setting:
    """One benchmark: random images of 3 channels and `size` x `size`, ten classes.

    Args:
        kind: train, memory or infer.
        model: one of ours, `timm:NAME`, `torchvision:NAME` or an import path.
        width: of the model; its own where None.
        size: height and width of an image.
        batch: images B.
        steps: numbers of time steps T, each measured.
        precisions: fp32, bf16 (autocast), each measured.
        engines: what is compared: ways to run the network, and `hybrid`, a whole training step of
            that method by `rate`, its teacher and branches included (not at inference).
        repeats: measured steps of each case, after those that warm up.
        threads: of torch on the CPU; as they are where None.
        device: cpu or cuda.
        fuse: whether `rate` and `bptt` run with their fused scans: on, off or both.

    Raises:
        UserError: for a value that cannot be measured.
    """

    kind: str = "train"
    model: str = "resnet18"
    width: int | None = None
    size: int = 32
    batch: int = 16
    steps: tuple[int, ...] = (2, 4, 8, 16)
    precisions: tuple[str, ...] = ("fp32",)
    engines: tuple[str, ...] = ENGINES
    repeats: int = 7
    threads: int | None = None
    device: str = "cpu"
    fuse: str = "on"

    def __post_init__(self) -> None:
        _check_names("what to measure", [self.kind], KINDS)
        _check_names("--precision", self.precisions, PRECISIONS)
        _check_names("--engines", self.engines, ENGINES)
        _check_names("--fuse", [self.fuse], FUSE)
        _check_counts("--steps", self.steps)
        for name in ("width", "size", "batch", "repeats", "threads"):
            value = getattr(self, name)
            if value is not None:
                _check_counts(f"--{name}", [value])

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Setting:
        """The setting whose fields `dataclasses.asdict` wrote, lists for tuples."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in content.items()
        }
        return cls(**fields)

    def cases(self, precision: str) -> Iterator[Case]:
        """All that runs over time at one precision."""
        engines = [e for e in dict.fromkeys(self.engines) if e != "hybrid" or self.kind != "infer"]
        for steps in sorted(set(self.steps)):
            for engine in engines:
                if engine in FUSED:
                    for fused in {"on": (True,), "off": (False,), "both": (False, True)}[self.fuse]:
                        yield Case(engine, precision, steps, fused)
                elif engine != "ann":
                    yield Case(engine, precision, steps)


def _check_names(argument: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise unknown(argument, name, known)
    if not names:
        raise UserError(argument, "there is none", f"choose from {', '.join(known)}")


def _check_counts(argument: str, values: Sequence[int]) -> None:
    if not values:
        raise UserError(argument, "there is none", "give whole numbers such as 2 4")
    if min(values) < 1:
        raise UserError(f"{argument} {min(values)}", "expected 1 or more", "raise it")
