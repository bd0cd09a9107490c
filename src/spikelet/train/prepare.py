"""From a recipe to what a run trains: teacher, student, terms, Distiller."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from spikelet.convert import convert
from spikelet.data import Batches, Dataset, normalise
from spikelet.data.paired import Paired
from spikelet.distill import Distiller
from spikelet.encode import still
from spikelet.errors import UserError
from spikelet.execute import ann as run_ann
from spikelet.execute import bptt
from spikelet.graph import capture
from spikelet.layout import laid_for
from spikelet.norm import estimate_norms, freeze_norms, settle_norms, tracking
from spikelet.obstacles import reason
from spikelet.processes import processes, rank
from spikelet.quantise import quantised
from spikelet.recipe import (
    AUGMENTS,
    DEFAULT_METHOD,
    EXECUTES,
    NEURONS,
    TERMS,
    Recipe,
    Training,
    build,
    default_recipe,
    terms_of,
)
from spikelet.stepwise import require_fixed_norms
from spikelet.terms import Term
from spikelet.train.crossed import IMAGES, beginning, crossing
from spikelet.train.known import require_classes
from spikelet.train.load import (
    ANN,
    SNN,
    Loaded,
    architecture,
    assemble,
    describe,
    load,
    own_architecture,
)
from spikelet.train.running import by_levels, encoder, encoding, roomy, that_fit, trainer

ZOO_CLASSES = 1000
EXAMPLES = 64
ESTIMATING = -1  # an epoch that training never sees
SPOILT = 1.25  # times the cross entropy of the conversion


def calibration(dataset: Dataset, count: int, seed: int, device: torch.device) -> Tensor:
    """Normalised training images "B C H W", or frames "B F C H W", drawn by the seed."""
    return normalise(dataset.train.images[_drawn(dataset, count, seed)], dataset).to(device)


def _drawn(dataset: Dataset, count: int, seed: int) -> Tensor:
    """Which training images thresholds are calibrated on."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(dataset.train), generator=generator)[: max(count, 2)]


def training_batches(
    recipe: Recipe, dataset: Dataset, device: torch.device, shared: bool = True
) -> Batches:
    """The training data in augmented batches, by the recipe's seed.

    Of a batch that is `shared` it is what this process has to do.
    """
    specs = [dict(spec) for spec in dataset.augment] if recipe.augment is None else recipe.augment
    augment = [build(f"augment.{i}", spec, AUGMENTS) for i, spec in enumerate(specs)]
    batch = recipe.training.batch * processes()
    shard = (rank(), processes()) if shared else (0, 1)
    seed = recipe.seed
    return Batches(dataset.train, dataset, batch, augment, seed, device, shard=shard)


def teacher_of(recipe: Recipe, out: Path, dataset: Dataset) -> Loaded:
    """The teacher that a recipe names, a run folder (spiking or not) or a model with weights."""
    spec = recipe.teacher
    if spec is None:
        raise UserError("teacher = None", "a student needs a teacher", "name a run or a model")
    if "run" in spec:
        loaded = crossing(load(spec["run"]), dataset, recipe.data["kind"])
        if loaded.kind == SNN and recipe.model is None:
            raise UserError(
                f"teacher = {spec['run']}",
                "a spiking teacher's student needs an architecture of its own",
                "name one with --model, or take the run of an ANN as teacher",
            )
    else:
        description = describe(spec, dataset, recipe.seed)
        own = ":" in spec["kind"] and not spec["kind"].startswith(("timm:", "torchvision:"))
        if description.get("pretrained") and len(dataset.classes) != ZOO_CLASSES:
            raise UserError(
                f"teacher = {spec['kind']}",
                f"its published weights know {ZOO_CLASSES} classes, the data {dataset.name} has "
                f"{len(dataset.classes)}",
                "fine-tune it first with `spikelet teach` and name that run",
            )
        if not own and not description.get("weights") and not description.get("pretrained"):
            raise UserError(
                f"teacher = {spec['kind']}", "it has no weights", "add weights or name a run"
            )
        net = assemble(description)
        loaded = Loaded(recipe, net.eval(), ANN, architecture(description), out)
    if IMAGES not in loaded.description:
        _require_images(loaded.description, dataset)
    classes = loaded.description["classes"]
    if classes != len(dataset.classes):
        raise UserError(
            "teacher",
            f"it knows {classes} classes, the data {dataset.name} has {len(dataset.classes)}",
            "use a teacher that was trained on these classes",
        )
    if "run" in spec and IMAGES not in loaded.description:
        require_classes(Path(spec["run"]), dataset)
    return loaded


def placed(net: nn.Module, device: torch.device) -> nn.Module:
    """The network itself on a device, channels last: the layout that convolutions are fast in.

    One whose own code takes a `view`, or cannot be read, stays contiguous.
    """
    net = net.to(device)
    if not _lays_freely(net):
        return net
    for weight in net.parameters():
        if weight.ndim == 4:  # torch refuses the layout for any other
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return net


def _lays_freely(net: nn.Module) -> bool:
    """Whether nothing in a network needs its tensors contiguous; a captured graph does not."""
    if isinstance(net, fx.GraphModule):
        return True
    try:
        return not capture(net).meta["viewed"]
    except UserError:
        return False


def require_logits(net: nn.Module, images: Tensor) -> None:
    """Refuses a network that gives more than logits, or cannot be trained, before its run begins.

    Raises:
        UserError: for other outputs, and where no gradient of its logits can be taken.
    """
    tried = copy.deepcopy(net).train()
    with torch.random.fork_rng(), torch.enable_grad():
        logits = run_ann(tried, still(images).unsqueeze(0)).logits
        try:
            logits.sum().backward()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            why = str(error).partition(":")[0]
            fix = "take detach(), no_grad() and operations in place (mul_, +=) out of its forward"
            raise UserError("model", f"its gradient cannot be taken ({why})", fix) from error


def require_ann(ann: Loaded, recipe: Recipe, dataset: Dataset) -> None:
    """Raises where a run is none that a student of this recipe can begin as."""
    where, other = f"ann = {ann.path}", "train one by `spikelet teach` that does"
    if ann.kind != ANN:
        raise UserError(where, "it is a student's run", "name the run of a `teach`")
    if ann.description["classes"] != len(dataset.classes):
        what = f"it knows {ann.description['classes']} classes, the data {dataset.name} has "
        raise UserError(where, f"{what}{len(dataset.classes)}", other)
    _require_images(ann.description, dataset, where)
    require_classes(ann.path, dataset, "ann")
    if own_architecture(ann.description) != recipe.model:
        what = f"it is a {ann.description['kind']}, the recipe's model is {recipe.model}"
        raise UserError(where, what, "name its architecture as model")


def _require_images(
    description: Mapping[str, Any], dataset: Dataset, argument: str = "teacher"
) -> None:
    """Raises where the images are not those that a network was trained on."""
    theirs = (description["channels"], *description["size"])
    ours = (dataset.channels, *dataset.size)
    if theirs != ours:
        shown = ["x".join(map(str, shape)) for shape in (theirs, ours)]
        one = "a teacher" if argument == "teacher" else "one"
        raise UserError(
            argument,
            f"it was made for images of {shown[0]} (channels, height, width), the data "
            f"{dataset.name} has {shown[1]}",
            f"use {one} that was trained on such images",
        )


def make_student(
    recipe: Recipe,
    dataset: Dataset,
    teacher: Loaded,
    images: Tensor,
    ann: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The student before training, and what is needed to build its network again.

    It is the converted teacher; of another architecture it is the converted `ann`, or one whose
    weights are fresh, as from scratch. Fresh norms take the images' statistics first, as
    thresholds are calibrated on what arrives. Thresholds are set on as many images as one pass has
    room for. `convert`, which trains nothing, is the teacher's conversion beside others from
    scratch, too.
    """
    neuron = build("neuron", recipe.neuron, NEURONS)
    source, description = beginning(teacher, dataset, recipe.seed)
    scratch, other = recipe.start == "scratch", recipe.model is not None
    untrained = scratch and recipe.method == "convert" and teacher.kind == ANN
    plainly = untrained and reason(source) is None
    fresh = not plainly and (scratch or (other and ann is None))
    if recipe.model is not None and not plainly:
        description = describe(recipe.model, dataset, recipe.seed)
    if fresh:
        source = assemble(description | {"seed": recipe.seed})
    source = (source if ann is None else ann).to(images.device)
    images = that_fit(source, images, recipe.steps)
    if fresh:
        estimate_norms(source, [images], lambda net, x: net(laid_for(net, still(x))))
    student = convert(source, neuron, steps=recipe.steps, calibrate=images)
    norm = recipe.norm_kind
    if norm in ("auto", "settled"):
        own = norm == "settled" or (recipe.method != "convert" and not fresh)
        norm = _settled(recipe, dataset, student, images.device) if own else "train"
    elif norm == "frozen":
        freeze_norms(student)
    return student, description | {"neuron": recipe.neuron, "norm": norm}


def _settled(
    recipe: Recipe, dataset: Dataset, student: nn.Module, device: torch.device
) -> Literal["train", "settled"]:
    """Settles a converted student's norms: always if told so, else where training needs it.

    It does where the statistics that training goes by would spoil the conversion: with them the
    cross entropy of augmented training images is more than SPOILT times what it was.
    """
    if not tracking(student):
        return "train"
    encode = encoder(recipe, dataset.mean, dataset.std)
    batches = training_batches(recipe, dataset, device, shared=False)
    images, labels = _large(recipe, dataset, student, batches)
    x, run = encode(images, recipe.steps), quantised if by_levels(recipe) else bptt

    def loss(net: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(run(net, x).mean_logits.float(), labels))

    student.eval()
    if recipe.norm == "auto":
        other = copy.deepcopy(student)
        estimate_norms(other, [x], run)
        if loss(other) <= SPOILT * loss(student):
            return "train"
    settle_norms(student, lambda: run(student, x))
    return "settled"


def estimated(recipe: Recipe, dataset: Dataset, student: nn.Module) -> Callable[[Batches], None]:
    """A function that gives a student's norms the statistics of the weights it has then.

    They are taken over augmented training images, as training's own were, in one large batch: of
    `estimate` images, or as many as there is room for.
    """
    execute = trainer(recipe)
    encode = encoder(recipe, dataset.mean, dataset.std)

    def run(net: nn.Module, x: Tensor) -> None:
        execute(net, encode(x, recipe.steps))

    def estimate(batches: Batches) -> None:
        if recipe.estimate and recipe.norm_kind != "frozen":
            images, _ = _large(recipe, dataset, student, batches)
            estimate_norms(student, [images], run)

    return estimate


def _large(
    recipe: Recipe, dataset: Dataset, student: nn.Module, batches: Batches
) -> tuple[Tensor, Tensor]:
    """Augmented training images and labels in one batch: `estimate`, or as there is room for."""
    drawn = batches.epoch(ESTIMATING)
    images, labels = next(drawn)
    example = encoder(recipe, dataset.mean, dataset.std)(images[:1], recipe.steps)
    count = min(recipe.estimate, roomy(student, example)) // batches.batch
    more = list(itertools.islice(drawn, max(count - 1, 0)))
    return torch.cat([images, *(i for i, _ in more)]), torch.cat([labels, *(y for _, y in more)])


def build_terms(recipe: Recipe) -> dict[str, Term]:
    """The losses of a recipe, by name."""
    return {name: build(f"terms.{name}", spec, TERMS) for name, spec in recipe.terms.items()}


def ann_recipe(recipe: Recipe, teacher: Loaded) -> Recipe:
    """The recipe of the ANN that a student of another architecture begins as.

    The student's teacher answers for it, less and less, where that is an ANN and a term of the
    student's asks it; else the labels teach it alone.
    """
    assert isinstance(recipe.ann, Training)
    asked = teacher.kind == ANN and any(term.taught for term in build_terms(recipe).values())
    method = DEFAULT_METHOD if asked else "none"
    terms = {k: v for k, v in terms_of(method).items() if v["kind"] != "feature"}
    recipe_of_anns = default_recipe("teach", recipe.data, model=recipe.model, training=recipe.ann)
    return dataclasses.replace(
        recipe_of_anns,
        teacher=recipe.teacher,
        method=method,
        terms=terms,
        seed=recipe.seed,
        augment=recipe.augment,
    )


def bind(
    recipe: Recipe,
    dataset: Dataset,
    student: nn.Module,
    teacher: nn.Module | None,
    images: Tensor,
    paired: Paired | None = None,
) -> Distiller:
    """The distiller of a recipe; with `paired` images the teacher is shown those.

    Raises:
        UserError: if paired images are to slide into the student's input, and there are none.
    """
    terms = build_terms(recipe)
    if recipe.encode.get("sliding") and paired is None:
        raise UserError(
            f"encode.sliding = {recipe.encode['sliding']}",
            "no images are paired with these data, for the teacher was not trained on images of "
            "the classes of events",
            "take the run of a teacher of such images, as mnist for nmnist, or set it to 0",
        )
    seen = _drawn(dataset, recipe.calibrate, recipe.seed)[:EXAMPLES].to(images.device)
    needed = recipe.joint or any(term.taught for term in terms.values())
    beside = paired if needed or recipe.encode.get("sliding") else None
    labels = dataset.train.labels.to(images.device)[seen]
    draw = torch.Generator().manual_seed(recipe.seed)
    if recipe.execute.get("order") == "time":
        require_fixed_norms(student, training=True)
    return Distiller(
        student,
        teacher if needed else None,
        terms=terms,
        execute=build("execute", recipe.execute, EXECUTES),
        encode=encoding(recipe, dataset.mean, dataset.std, recipe.steps),
        example=images[:EXAMPLES],
        joint=recipe.joint,
        paired=beside,
        shown=None if beside is None else beside.pictures(beside.chosen(seen, labels, draw)),
    )
