"""Settled and frozen batch norm."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from spikelet.checkpoint import save_weights
from spikelet.convert import convert
from spikelet.data import normalise
from spikelet.encode import repeat
from spikelet.execute import bptt, rate
from spikelet.norm import (
    FrozenNorm,
    estimate_norms,
    freeze_norms,
    settle,
    settle_norms,
    tracking,
)
from spikelet.quantise import quantised
from spikelet.recipe import Training, default_recipe
from spikelet.train import job, load
from spikelet.train.job import teach
from spikelet.train.load import restored
from spikelet.train.prepare import make_student

STEPS = 3


def student(affine: bool = True) -> tuple[torch.fx.GraphModule, torch.Tensor]:
    images = torch.randn(16, 3, 8, 8)
    norms = [nn.BatchNorm2d(6, affine=affine), nn.BatchNorm2d(6, affine=affine)]
    for norm in norms if affine else []:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    model = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 6, 3), norms[1], nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96, 5)),
    )
    for _ in range(20):
        model(images)
    return convert(model.eval(), steps=STEPS, calibrate=images), images


def test_frozen_norm_is_batch_norm_in_eval_mode_in_both_modes() -> None:
    norm = nn.BatchNorm2d(4).double()
    x = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    norm(x)
    frozen = FrozenNorm(norm)
    norm.eval()
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x), norm(x))


@pytest.mark.parametrize("execute", [rate, bptt])
def test_frozen_norms_keep_the_calibrated_network_in_training(execute: object) -> None:
    net, images = student()
    before = execute(net.eval(), repeat(images, STEPS)).logits  # type: ignore[operator]
    freeze_norms(net).train()
    after = execute(net, repeat(images, STEPS)).logits  # type: ignore[operator]
    torch.testing.assert_close(after, before)
    buffers = copy.deepcopy(dict(net.named_buffers()))
    after.sum().backward()
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("affine", [True, False])
def test_settled_norm_has_the_input_s_statistics_and_the_same_function(affine: bool) -> None:
    norm = nn.BatchNorm2d(4, affine=affine).double()
    norm(3 + 2 * torch.randn(50, 4, 3, 3, dtype=torch.float64))
    norm.eval()
    x = 1 + torch.randn(50, 4, 3, 3, dtype=torch.float64)
    before = norm(x)
    settle(norm, x)
    torch.testing.assert_close(norm(x), before)
    torch.testing.assert_close(norm.train()(x), before)


@pytest.mark.parametrize("ways", [(bptt, rate), (quantised, quantised)])
@pytest.mark.parametrize("affine", [True, False])
def test_settled_student_starts_training_where_it_was_calibrated(affine: bool, ways) -> None:
    """By the batch's statistics; each norm then trains a scale and a shift."""
    (net, images), (measured, training) = student(affine), ways
    x = repeat(images, STEPS)
    before = measured(net.eval(), x).logits.detach()
    settle_norms(net, lambda: measured(net, x))
    torch.testing.assert_close(measured(net, x).logits, before, atol=1e-4, rtol=0)
    trained = training(net.train(), x).logits
    torch.testing.assert_close(trained, before, atol=1e-4, rtol=0)
    trained.square().sum().backward()
    for norm in tracking(net):
        assert norm.affine and bool(norm.weight.grad.any()) and bool(norm.bias.grad.any())


class Bare(nn.Module):
    """Norms that have no weight and no bias."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 6, 3), nn.Conv2d(6, 6, 3)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6, affine=False) for _ in range(2))
        self.linear = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        return self.linear(F.relu(self.norms[1](self.second(x))).mean((2, 3)))


DATA = {"kind": "digits", "train": 200, "validation": 40}
PARAMETERS = {f"norms.{i}.{name}" for i in range(2) for name in ("weight", "bias")}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a teacher whose norms have no weight."""
    out = tmp_path_factory.mktemp("bare") / "teacher"
    training = Training(epochs=6, batch=50, learning_rate=0.1, clip=1.0)
    mine = default_recipe("teach", DATA, model={"kind": "test_norm:Bare"}, training=training)
    teach(mine, out, console=Console(quiet=True), device="cpu")
    return out


@pytest.mark.parametrize("kind", ["rate", "quantised"])
def test_a_run_whose_norms_got_a_weight_loads_as_it_was(
    bare: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network that was trained and the one that is read back answer alike."""
    kept: list[nn.Module] = []
    training = Training(epochs=2, batch=50, optimiser="adamw", learning_rate=2e-3, clip=1.0)
    mine = default_recipe(
        "distill", DATA, "none", teacher={"run": str(bare)}, training=training, steps=2,
        norm="settled", execute={"kind": kind},
    )  # fmt: skip

    def made(*args, **fields):
        net, description = make_student(*args, **fields)
        kept.append(net)
        return net, description

    monkeypatch.setattr(job, "make_student", made)
    rows = job.distill(mine, tmp_path / "run", console=Console(quiet=True), device="cpu")["rows"]
    run = load(tmp_path / "run")
    assert run.description["norm"] == "settled"
    names = dict(run.net.named_parameters())
    assert names.keys() >= PARAMETERS
    assert all(bool(names[n].ne(float(n.endswith("weight"))).all()) for n in PARAMETERS)
    dataset = run.dataset()
    x = normalise(dataset.test.images, dataset)
    with torch.no_grad():
        way = quantised if kind == "quantised" else bptt
        expected = way(kept[-1].eval(), repeat(x, 2)).mean_logits
    torch.testing.assert_close(run.predict(x), expected, atol=1e-4, rtol=1e-4)
    accuracy = float((run.predict(x).argmax(1) == dataset.test.labels).double().mean())
    stored = [row["accuracy"] for row in rows if row["method"] == "none" and row["steps"] == 2]
    assert stored == [pytest.approx(accuracy, abs=1e-6)]


def test_a_run_from_before_norms_got_a_weight_loads(bare: Path, tmp_path: Path) -> None:
    """Its stored weights say that its norms have none."""
    teacher = load(bare)
    net = convert(teacher.net, steps=2, calibrate=torch.randn(16, 1, 8, 8)).eval()
    save_weights(tmp_path / "model.safetensors", net)
    description = teacher.description | {"neuron": {"kind": "IF"}, "norm": "settled"}
    found = restored(description, tmp_path / "model.safetensors")
    assert not dict(found.named_parameters()).keys() & PARAMETERS
    x = repeat(torch.randn(4, 1, 8, 8), 2)
    assert torch.equal(bptt(found, x).logits, bptt(net, x).logits)


@pytest.mark.parametrize("execute", [rate, bptt])
def test_estimated_statistics_are_the_plain_average_over_the_batches(execute) -> None:
    """Against a loop over batches that reads the currents of each norm."""
    net, images = student()
    before = {name: p.clone() for name, p in net.named_parameters()}
    modes = [module.training for module in net.modules()]
    batches = images.split(4)
    estimate_norms(net, batches, lambda n, x: execute(n, repeat(x, STEPS)))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 for norm in norms)
    seen: dict[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {norm: [] for norm in norms}

    def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        seen[norm].append((x.mean(1), x.var(1)))

    net.train()
    kept = copy.deepcopy(net.state_dict())
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    for batch in batches:
        bptt(net, repeat(batch, STEPS))
    for handle in handles:
        handle.remove()
    net.load_state_dict(kept)
    for norm in norms:
        mean = torch.stack([m for m, _ in seen[norm]]).mean(0)
        variance = torch.stack([v for _, v in seen[norm]]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


def test_with_one_batch_the_network_in_use_is_the_one_in_training() -> None:
    """On that batch both answer alike, but for the variance's n / (n - 1)."""
    net, images = student()
    estimate_norms(net, [images], lambda n, x: bptt(n, repeat(x, STEPS)))
    used = bptt(net.eval(), repeat(images, STEPS)).logits
    trained = bptt(net.train(), repeat(images, STEPS)).logits
    scale = trained.std()
    assert (used - trained).abs().mean() < 0.05 * scale
    estimate_norms(net, images.split(2), lambda n, x: bptt(n, repeat(x, STEPS)))
    poorer = bptt(net.eval(), repeat(images, STEPS)).logits
    assert (poorer - trained).abs().mean() > 2 * (used - trained).abs().mean()


def test_frozen_norms_are_not_estimated() -> None:
    net, images = student()
    freeze_norms(net)
    before = copy.deepcopy(net.state_dict())
    estimate_norms(net, images.split(4), lambda n, x: bptt(n, repeat(x, STEPS)))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
