"""The Distiller: a student, its terms and a teacher; batch in, loss out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikelet.cuts import after, stages
from spikelet.encode import Direct, fitted, slid, still
from spikelet.errors import UserError
from spikelet.execute import Execute, ann, rate
from spikelet.given import (
    dtype_of,
    require_batch_axes,
    require_images,
    require_labels,
    require_same,
    require_trainable,
)
from spikelet.graph import capture
from spikelet.neuron import Neuron
from spikelet.processes import gathered, processes, rank
from spikelet.terms.suited import require_suited
from spikelet.terms.term import Binding, Pair, Reads, Step, Term
from spikelet.trace import Tap, Trace, batch_axes


def match(
    student: nn.Module,
    teacher: nn.Module | None,
    example: Tensor,
    shown: Tensor | None = None,
) -> tuple[Pair, ...]:
    """Pairs of stage outputs of equal resolution (student path, teacher path), in order.

    Empty without a teacher, or where a teacher that torch.fx cannot trace has no stages. Where the
    teacher is `shown` images of another size than the student's, stages are counted from the end.
    """
    if not isinstance(student, fx.GraphModule) or not isinstance(teacher, fx.GraphModule):
        return ()
    example = still(example[:2])  # a norm without running statistics refuses one
    shown = example if shown is None else shown[:2]
    ours, theirs = stages(student, example), stages(teacher, shown)
    if shown.shape[2:] != example.shape[2:]:
        last = zip(reversed(ours.values()), reversed(theirs.values()), strict=False)
        return tuple(last)[::-1]
    return tuple((path, theirs[size]) for size, path in ours.items() if size in theirs)


class Distiller(nn.Module):
    """Binds student, terms and teacher: the one module to wrap, optimise and checkpoint.

    Where processes share each step (docs/processes.md) its loss is that of this process's images;
    the gradient of the whole batch is the sum over processes, weighted by their images.

    Args:
        student: the network to train, as `convert` makes it (or an ANN, with execute=ann).
        teacher: a trained classifier, spiking or not, or None. A frozen one is copied, set to
            eval mode and kept out of parameters and state; it is never changed.
        terms: name -> loss.
        execute: how the student runs and how its gradient is taken.
        encode: images "B ..." to "T B ..."; one that takes a `generator` draws from the step's.
        pairs: matching places (student path, teacher path); by default the stage outputs of equal
            resolution.
        example: normalised images "B ..." that give shapes and starting points of mappings;
            by default the ones `convert` was calibrated with.
        joint: train the teacher along on the labels; nothing flows from student to teacher.
        paired: labels "B" and a generator to normalised images of these classes, which an ANN as
            teacher is then shown in place of the student's; an encoder with `sliding` shows them
            to the student as well, at ever fewer steps. Only what is not `shown` is drawn.
        labels: the classes of the example, needed with `paired` where nothing is `shown`.
        shown: normalised images that are paired with the example.

    Raises:
        UserError: if a term needs a teacher that is missing, or steps that `execute` cannot give,
            or if class counts differ.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        terms: Mapping[str, Term],
        execute: Execute = rate,
        encode: Callable[[Tensor], Tensor] | None = None,
        pairs: Sequence[Pair] | None = None,
        example: Tensor | None = None,
        joint: bool = False,
        paired: Callable[..., Tensor] | None = None,
        labels: Tensor | None = None,
        shown: Tensor | None = None,
    ) -> None:
        super().__init__()
        _require_parts(student, teacher, terms, execute, encode)
        self.paired = paired
        self.student = student
        self.terms = dict(terms)
        self.execute = execute
        self.encode = Direct() if encode is None else encode
        self._frozen: list[nn.Module] = []
        self.joint: nn.Module | None = teacher if joint else None
        if teacher is not None and not joint:
            self._frozen.append(freeze(teacher))
        example = _example(student, example)
        self._like = example.shape
        lengths = getattr(self.encode, "lengths", None)
        steps = lengths or [len(self._encoded(example[:1], None))]
        require_suited(self.terms, execute, steps, taught=self.teacher is not None)
        if shown is None:
            shown = self._shown(labels, torch.Generator().manual_seed(0))
        if pairs is None:
            pairs = match(student, self.teacher, example, shown)
        self.pairs = tuple(pairs)
        reads = [term.taps(self.pairs) for term in self.terms.values()]
        self._student_taps = _union([r.student for r in reads])
        self._teacher_taps = _union([r.teacher for r in reads])
        binding = self._bind(example, shown)
        self._classes = binding.student.logits.shape[-1]
        self.own = nn.ModuleDict({name: t.init(binding) for name, t in self.terms.items()})
        self.own.to(example.device)

    @property
    def draws(self) -> bool:
        """Whether the encoder draws."""
        return "generator" in inspect.signature(self.encode).parameters

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher that the terms see."""
        return self._frozen[0] if self._frozen else self.joint

    def _bind(self, example: Tensor, shown: Tensor | None) -> Binding:
        modes = {module: module.training for module in self.modules()}
        self.eval()
        with torch.no_grad():
            x = self._encoded(example, None)
            student = self.execute(self.student, x, self._student_taps)
            teacher = self._teach(x, example, shown)
        for module, mode in modes.items():
            module.training = mode
        if teacher is not None and teacher.logits.shape[-1] != student.logits.shape[-1]:
            raise UserError(
                "teacher",
                f"it has {teacher.logits.shape[-1]} classes, the student "
                f"{student.logits.shape[-1]}",
                "use a teacher of the same classes",
            )
        return Binding(student, teacher, self.pairs, self._suffix, self.teacher)

    def _suffix(self, path: str) -> fx.GraphModule:
        if self.joint is not None:
            raise UserError("joint = True", "a learning teacher cannot be cut", "freeze it")
        if not isinstance(self.teacher, fx.GraphModule):
            raise UserError(
                "teacher", "torch.fx cannot trace it, so it cannot be cut", "use method logits"
            )
        return after(self.teacher, path).eval()

    def _encoded(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.draws:
            encode: Callable[..., Tensor] = self.encode
            if not getattr(encode, "common", False):
                return encode(images, generator=_own(generator))
            if generator is None and self.training and torch.is_grad_enabled():
                generator = torch.default_generator
            return encode(images, generator=generator)
        return self.encode(images)

    def _shown(self, labels: Tensor | None, generator: torch.Generator | None) -> Tensor | None:
        """Images "B C H W" paired with the labels, if there are any."""
        if self.paired is None:
            return None
        if labels is None:
            what = "paired images need the classes of the example"
            raise UserError("labels = None", what, "pass them")
        return self.paired(labels, generator=generator)

    def _slid(
        self,
        x: Tensor,
        shown: Tensor | None,
        progress: float | Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The student's input, with paired images at some steps early in the training."""
        left = getattr(self.encode, "images_left", None)
        share = 0.0 if shown is None or left is None else left(float(progress))
        if shown is None or share == 0:
            return x
        drawn = _divided(x.shape[1], generator).to(x.device)
        return slid(x, fitted(shown, x.shape[2], (x.shape[3], x.shape[4])), share, drawn)

    def _teach(self, x: Tensor, images: Tensor, shown: Tensor | None = None) -> Trace | None:
        """The teacher's trace: a spiking one sees x "T B ...", an ANN a still image as it is.

        Images that are `shown` to it alone come first.
        """
        if self.teacher is None:
            return None
        if self._frozen and _device(self.teacher) not in (None, x.device):
            self.teacher.to(x.device)  # not registered: it does not follow the student by itself
        if _spiking(self.teacher):
            return rate(self.teacher, x, self._teacher_taps)
        taps = {path: _analogue(fields) for path, fields in self._teacher_taps.items()}
        if shown is not None:
            return ann(self.teacher, shown.unsqueeze(0), taps)
        same = images.shape == x.shape[1:]
        return ann(self.teacher, images.unsqueeze(0) if same else x, taps)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        progress: float | Tensor = 0.0,
        generator: torch.Generator | None = None,
        shown: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, a scalar, and each term's own unweighted value without gradient.

        Args:
            images: normalised images "B ...".
            labels: class indices "B".
            progress: share of the training that is done, 0 to 1; a scalar where it is replayed.
                Without it terms that fade keep their whole weight.
            generator: source of the terms' and the encoder's randomness, on the CPU; without one,
                torch's own.
            shown: normalised images "B ..." that are paired with these; by default drawn.

        Raises:
            UserError: for images or labels of another type or shape, and classes there are none of.
        """
        require_images("images", images, self._like)
        require_labels(labels, images, self._classes)
        if not torch.is_autocast_enabled(images.device.type):
            require_same("images", images.dtype, dtype_of(self.student), "student")
        if not isinstance(progress, Tensor) and not 0 <= progress <= 1:
            what = "expected the share of the training that is done, 0 to 1"
            raise UserError(f"progress = {progress}", what, "give step / steps, not an epoch")
        x = self._encoded(images, generator)
        if shown is None and self.paired is not None:
            shown = self._shown(labels, _own(generator))
        with torch.set_grad_enabled(self.joint is not None and torch.is_grad_enabled()):
            teacher = self._teach(x, images, shown)
        x = self._slid(x, shown, progress, generator)
        student = self.execute(self.student, x, self._student_taps)
        seen = detached(teacher) if self.joint is not None else teacher
        step = Step(student, seen, labels, progress, generator)
        values = {name: self._value(name, term, step) for name, term in self.terms.items()}
        weights = {name: weight_at(term, progress) for name, term in self.terms.items()}
        loss = torch.stack([weights[n] * v for n, v in values.items()]).sum()
        parts = {name: value.detach() for name, value in values.items()}
        if self.joint is not None and teacher is not None:
            own = F.cross_entropy(teacher.mean_logits.float(), labels)
            loss, parts["teacher"] = loss + own, own.detach()
        if self.training and torch.is_grad_enabled():
            require_trainable(loss)
        return loss, parts

    def _value(self, name: str, term: Term, step: Step) -> Tensor:
        """A term's unweighted loss; one that couples the batch sees that of all processes."""
        if term.coupled and not term.gathers and processes() > 1:
            step = whole(step, term.taps(self.pairs))
        value = term(self.own[name], step)
        if not isinstance(value, Tensor) or value.ndim:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            what = f"expected a loss that is a scalar tensor, got {shape}"
            raise UserError(f"terms[{name!r}]", what, "return its mean")
        return value


def _require_parts(student: Any, teacher: Any, terms: Any, execute: Any, encode: Any) -> None:
    """Raises for what is no network, no mapping or no function."""
    network, pairs = isinstance(student, nn.Module), isinstance(terms, Mapping)
    guide = teacher is None or isinstance(teacher, nn.Module)
    encodes = encode is None or (callable(encode) and not isinstance(encode, type))
    names = '{"ce": CrossEntropy()}'
    for name, value, holds, expected, fix in (
        ("student", student, network, "a network", "pass a torch module"),
        ("teacher", teacher, guide, "a network or None", "pass a torch module, as load(RUN).net"),
        ("terms", terms, pairs, "names and losses", f"pass a dict such as {names}"),
        ("execute", execute, callable(execute), "a function", "pass spikelet.rate or .bptt"),
        ("encode", encode, encodes, "an encoder or None", "pass spikelet.Direct(steps=4)"),
    ):
        if not holds:
            raise UserError(name, f"expected {expected}, got {type(value).__name__}", fix)
    if teacher is not None and _spiking(teacher) and not _spiking(student) and execute is not ann:
        what = "it has no neurons, and the teacher has"
        raise UserError("student", what, "give convert(...) as student and the ANN as teacher")
    if teacher is not None:
        require_same("teacher", dtype_of(teacher), dtype_of(student), "student")


def _spiking(net: nn.Module) -> bool:
    return any(isinstance(module, Neuron) for module in net.modules())


def weight_at(term: Term, progress: float | Tensor) -> float | Tensor:
    """A term's weight when a share of the training is done, 0 to 1: one that fades falls to 0."""
    return term.weight * (1 - progress) ** term.fade if term.fade else term.weight


def whole(step: Step, reads: Reads) -> Step:
    """A step on the batches of all processes, with gradient, as far as it is read."""
    return dataclasses.replace(
        step,
        student=_whole(step.student, reads.student),
        teacher=None if step.teacher is None else _whole(step.teacher, reads.teacher),
        labels=gathered(step.labels),
    )


def _whole(trace: Trace, reads: Mapping[str, tuple[str, ...]]) -> Trace:
    taps = {}
    for path in reads:
        mean, *steps = vars(trace.taps[path]).values()
        each = [None if field is None else gathered(field, 1) for field in steps]
        taps[path] = Tap(gathered(mean), *each)
    return Trace(gathered(trace.logits, 1), taps)


def _own(generator: torch.Generator | None) -> torch.Generator | None:
    """What this process draws from: of several, each has its own stream from the common one."""
    if generator is None or processes() == 1:
        return generator
    drawn = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(generator.device).manual_seed(int(drawn) + rank())


def _divided(count: int, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers "B" for the images of this process: together those of one process.

    Of process r of N are numbers r, r + N, ... of a common row, as it has images r, r + N, ...
    """
    if generator is None:
        return torch.rand(count)
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    row = torch.Generator().manual_seed(int(seed))
    return torch.rand(count * processes(), generator=row)[rank() :: processes()]


def _analogue(fields: tuple[str, ...]) -> tuple[str, ...]:
    """The fields that an ANN has: a term that needs its spikes says so itself."""
    return tuple(field for field in fields if field != "spikes")


def _device(net: nn.Module) -> torch.device | None:
    return next((p.device for p in net.parameters()), None)


def freeze(teacher: nn.Module) -> nn.Module:
    """A copy of a teacher in eval mode without gradients; a graph where torch.fx can trace it."""
    try:
        net: nn.Module = capture(teacher)
    except UserError:
        net = copy.deepcopy(teacher)
    return net.eval().requires_grad_(False)


def detached(trace: Trace | None) -> Trace | None:
    """A trace cut off from its gradient."""
    if trace is None:
        return None
    return Trace(
        trace.logits.detach(),
        {path: _detached_tap(tap) for path, tap in trace.taps.items()},
    )


def _detached_tap(tap: Tap) -> Tap:
    rest = {k: v if v is None else v.detach() for k, v in vars(tap).items() if k != "mean"}
    return Tap(tap.mean.detach(), **rest)


def _example(student: nn.Module, example: Tensor | None) -> Tensor:
    if example is None and isinstance(student, fx.GraphModule):
        example = student.meta.get("example")
    if example is None:
        raise UserError("example = None", "shapes are unknown", "pass some normalised images")
    require_batch_axes("example", example, batch_axes(student))
    return example


def _union(reads: Sequence[Mapping[str, tuple[str, ...]]]) -> dict[str, tuple[str, ...]]:
    union: dict[str, tuple[str, ...]] = {}
    for read in reads:
        for path, fields in read.items():
            union[path] = tuple(dict.fromkeys([*union.get(path, ()), *fields]))
    return union
