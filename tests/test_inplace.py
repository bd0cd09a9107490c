"""Operations in place: a captured graph computes what the model does, or refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikelet import graph
from spikelet.convert import convert
from spikelet.distill import freeze
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt
from spikelet.graph import capture
from spikelet.neuron import IF

BATCH, WIDTH = 5, 8

Step = Callable[["Between", Tensor, Tensor], Tensor]


class Between(nn.Module):
    """Two branches, something between them that changes one, and an activated answer."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH), nn.Linear(8, 3)
        self.act, self.identity, self.flatten = nn.ReLU(), nn.Identity(), nn.Flatten()
        self.smooth, self.drop = nn.SiLU(inplace=True), nn.Dropout(0.5)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.step(self, self.one(x), self.two(x))))


def model_of(step: Step) -> tuple[Between, Tensor]:
    torch.manual_seed(4)
    return Between(step).eval(), torch.randn(BATCH, 6)


def chained(_: Between, y: Tensor, z: Tensor) -> Tensor:
    """Each result in place is changed again, under the first name and the one it returned."""
    keep = y.mul_(0.5)
    y.add_(z)
    keep.sub_(0.1)
    y.add_(z, alpha=2)
    return y + keep


def added(_: Between, y: Tensor, z: Tensor) -> Tensor:
    keep = y
    y += z
    return y + 2 * keep


def subtracted(_: Between, y: Tensor, z: Tensor) -> Tensor:
    keep = y
    y -= z
    return y + 2 * keep


def multiplied(_: Between, y: Tensor, z: Tensor) -> Tensor:
    keep = y
    y *= 3
    return torch.where(z > 0, keep, y)


def divided(_: Between, y: Tensor, z: Tensor) -> Tensor:
    keep = y
    y /= 3
    return torch.cat([keep[:, :4], z[:, 4:]], 1)


def powered(_: Between, y: Tensor, z: Tensor) -> Tensor:
    keep = y
    y **= 2
    return z - keep


def rebound(_: Between, y: Tensor, z: Tensor) -> Tensor:
    """A sum that makes a new tensor leaves the old one as it was."""
    keep = y
    y = y + z
    return y * 2 - keep


def accumulated(_: Between, y: Tensor, z: Tensor) -> Tensor:
    """Into a tensor that forward makes."""
    total = torch.zeros(BATCH, WIDTH)
    total.add_(y)
    total += z
    return total


def counted(_: Between, y: Tensor, z: Tensor) -> Tensor:
    """Sizes are numbers: nothing changes them in place."""
    rows = y.size(0)
    kept = rows
    rows *= 2
    return y * rows + z * kept


def chunks(_: Between, y: Tensor, z: Tensor) -> Tensor:
    """The parts of a tensor are none of each other's."""
    first, second = y.chunk(2, 1)
    first.add_(z[:, :4])
    return torch.cat([first, second], 1)


def flattened(m: Between, y: Tensor, z: Tensor) -> Tensor:
    """Of what a view was taken of, only the size is read later."""
    flat = m.flatten(y)
    flat += z
    return flat.reshape(y.shape[0], -1) + z.view(y.size(0), WIDTH)


STEPS: dict[str, Step] = {
    "y.add_": lambda m, y, z: (y.add_(z), y)[1],
    "y.sub_": lambda m, y, z: (y.sub_(z), y)[1],
    "y.mul_": lambda m, y, z: (y.mul_(3.0), y + z)[1],
    "y.div_": lambda m, y, z: (y.div_(3.0), y + z)[1],
    "y.div_, rounded": lambda m, y, z: (y.div_(0.1, rounding_mode="floor"), y + z)[1],
    "y.sigmoid_": lambda m, y, z: (y.sigmoid_(), y - z)[1],
    "y.zero_": lambda m, y, z: (y.zero_(), y + z)[1],
    "torch.sigmoid_": lambda m, y, z: (torch.sigmoid_(y), y - z)[1],
    "F.elu in place": lambda m, y, z: (F.elu(y, inplace=True), y - z)[1],
    "a module in place": lambda m, y, z: (m.smooth(y), y - z)[1],
    "out": lambda m, y, z: (torch.add(y, z, out=y), y)[1],
    "through an identity": lambda m, y, z: (m.identity(y).add_(z), y)[1],
    "of an identity": lambda m, y, z: (keep := m.identity(y), y.add_(z), keep * 2)[2],
    **{f.__name__: f for f in (chained, added, subtracted, multiplied, divided, powered)},
    **{f.__name__: f for f in (rebound, accumulated, counted, chunks, flattened)},
}


@pytest.mark.parametrize("name", STEPS)
def test_a_graph_computes_what_the_model_does(name: str) -> None:
    """At each call anew: nothing that the graph holds is changed."""
    model, x = model_of(STEPS[name])
    net = capture(model).eval()
    with torch.no_grad():
        expected = model(x.clone())
        for _ in range(2):
            torch.testing.assert_close(net(x.clone()), expected)


@pytest.mark.parametrize("name", ["y.add_", "y.div_", "added", "chained", "flattened"])
def test_a_student_computes_what_the_model_does(name: str) -> None:
    """With many steps it comes close; its weights have the model's gradients in the graph."""
    model, x = model_of(STEPS[name])
    net = capture(model).eval()
    model(x).square().sum().backward()
    net(x).square().sum().backward()
    for path, parameter in model.named_parameters():
        torch.testing.assert_close(net.get_parameter(path).grad, parameter.grad, msg=path)
    spiking = convert(model, IF(), steps=256, calibrate=x).eval()
    with torch.no_grad():
        answers = bptt(spiking, repeat(x, 256)).mean_logits
        torch.testing.assert_close(answers, model(x), atol=0.05, rtol=0)


def test_a_gate_in_place_is_no_linear_operation() -> None:
    for step in (STEPS["y.add_"], lambda m, y, z: (y.div_(z), y)[1], lambda m, y, z: y.mul_(z)):
        model, x = model_of(step)
        if step is STEPS["y.add_"]:
            convert(model, IF(), calibrate=x)
            continue
        with pytest.raises(UserError, match="product of two signals"):
            convert(model, IF(), calibrate=x)


def test_a_sum_in_place_keeps_the_name_of_a_sum() -> None:
    names = [node.name for node in capture(model_of(added)[0]).graph.nodes]
    assert [name for name in names if name.startswith(("add", "iadd"))] == ["add", "add_1"]


VIEWED: dict[str, Step] = {
    "a view is read": lambda m, y, z: (v := y.view(-1, 4), y.add_(z), v.view(-1, WIDTH))[2],
    "a view is changed": lambda m, y, z: (y[:, :4].mul_(2), y + z)[1],
    "a view by a layer": lambda m, y, z: (m.flatten(y).add_(z), y)[1],
    "a chunk is changed": lambda m, y, z: (y.chunk(2, 1)[0].mul_(2), y + z)[1],
    "an activation": lambda m, y, z: (F.relu_(y[:, :4]), y + z)[1],
    "an attribute": lambda m, y, z: (y.T.mul_(2), y + z)[1],
    "detached": lambda m, y, z: (y.detach().mul_(2), y + z)[1],
    "dropout": lambda m, y, z: (m.drop(y).add_(z), y)[1],  # out of training it gives its input
}


@pytest.mark.parametrize("name", VIEWED)
@torch.no_grad()
def test_a_view_that_is_changed_in_place_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plain trace computes something else. As a teacher such a model answers as it is."""
    model, x = model_of(VIEWED[name])
    with pytest.raises(UserError, match=r"Between.* works in place on memory .* new tensor"):
        capture(model)
    assert torch.equal(freeze(model)(x), model(x))
    monkeypatch.setattr(graph, "later_uses_see", lambda net: None)
    assert not torch.allclose(capture(model).eval()(x), model(x))
