"""Order of memory: channels last gives the numbers of contiguous tensors, in rows, not copies."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from small import assert_same, gradients, images, neurons, student
from spikelet.anchor import laid_as
from spikelet.distill import freeze
from spikelet.dual import over_time, window_means
from spikelet.encode import repeat
from spikelet.execute import ann, rate
from spikelet.layout import as_rows, from_rows, is_channels_last, laid_for
from spikelet.measure import accuracy
from spikelet.neuron import IF, Integrator
from spikelet.rate import averaged
from spikelet.slopes import closed_form
from spikelet.train.prepare import placed
from spikelet.windows import chained

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler"
)


def both(steps: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The same currents "T B C H W", contiguous and channels last."""
    generator = torch.Generator().manual_seed(steps)
    x = (torch.randn(steps * 3, 5, 4, 6, generator=generator) + 0.3).to(dtype)
    last = x.to(memory_format=torch.channels_last)
    return x.unflatten(0, (steps, 3)), last.unflatten(0, (steps, 3))


def test_rows_are_views_in_the_order_of_memory() -> None:
    for x in both(4):
        rows = as_rows(x, x)
        assert rows.data_ptr() == x.data_ptr()
        assert torch.equal(from_rows(rows, x), x)
        assert from_rows(rows, x).stride() == x.stride()
    contiguous, last = both(4)
    assert is_channels_last(last) and not is_channels_last(contiguous)
    assert torch.equal(as_rows(contiguous, last), as_rows(last, last))
    assert as_rows(last, last).shape == (4, 3 * 24, 5, 1)


def agree(neuron: Integrator, steps: int, fuse: bool) -> None:
    """The closed form over channels-last currents is that over contiguous ones."""
    affine = torch.linspace(0.5, 1.5, 5), torch.linspace(-0.2, 0.2, 5)
    x, last = both(steps)
    second = (2 * x, affine), (2 * last, affine)
    ours, theirs = (
        closed_form(neuron, each, 3, fuse, affine, more)
        for each, more in zip((last, x), second, strict=True)
    )
    assert torch.equal(ours.output, theirs.output)
    assert torch.equal(ours.mean_output, theirs.mean_output)
    assert torch.allclose(ours.slope, theirs.slope, rtol=1e-5, atol=1e-7)
    assert is_channels_last(ours.output)


@pytest.mark.parametrize("steps", [1, 3], ids=["constant", "moving"])
def test_neurons_answer_alike_in_either_order(steps: int) -> None:
    for neuron in neurons(threshold=torch.linspace(0.5, 1.2, 5)).values():
        agree(neuron, steps, fuse=False)


@needs_compiler
def test_the_compiled_form_answers_alike_in_either_order() -> None:
    agree(IF(threshold=torch.linspace(0.5, 1.2, 5)), 3, fuse=True)


def test_windows_answer_alike_in_either_order() -> None:
    x, last = both(4)
    for neuron in neurons().values():
        for windows in (2, 4):
            ours, theirs = (chained(neuron, each, 4, windows) for each in (last, x))
            assert torch.equal(ours.output, theirs.output)
            assert torch.equal(ours.means, theirs.means)
            for a, b in zip(ours.links.slopes, theirs.links.slopes, strict=True):
                assert torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_means_over_time_keep_the_order() -> None:
    for x in both(4):
        expected = x.double().unflatten(0, (2, 2)).mean(1)
        assert torch.allclose(window_means(x, 2).double(), expected)
        found = over_time(x.flatten(0, 1), 4)
        assert found.stride() == x[0].stride()


@needs_compiler
def test_the_compiled_mean_is_the_mean() -> None:
    for x in both(4, torch.bfloat16):
        for windows in (1, 2):
            exact = x.double().unflatten(0, (windows, -1)).mean(1).flatten(0, 1)
            found = averaged(x.flatten(0, 1), 4, windows)
            assert found.dtype == torch.bfloat16
            assert torch.allclose(found.double(), exact, rtol=2**-8, atol=0)


def test_a_gradient_takes_the_order_of_its_tensor() -> None:
    x, last = (each[0] for each in both(1))
    assert torch.equal(laid_as(x, last), x)
    assert laid_as(x.double(), last).stride() == last.stride()
    assert laid_as(last, last) is last


def test_a_network_has_the_same_gradients_in_either_order() -> None:
    net = student().train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        net.load_state_dict(state)
        net = net.to(memory_format=layout)
        x = images().contiguous(memory_format=layout)
        loss = F.cross_entropy(rate(net, repeat(x, 3)).mean_logits, torch.tensor([0, 1, 2, 0]))
        found.append(gradients(net, loss))
    assert_same(*found)


def test_only_weights_of_four_dimensions_are_laid_channels_last() -> None:
    net = nn.Sequential(nn.Conv3d(2, 3, 2), nn.Conv2d(4, 5, 2), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    placed(net, torch.device("cpu"))
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[0].weight.is_contiguous() and net[2].weight.is_contiguous()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


class Viewing(nn.Module):
    """What tutorials write: a `view`, which a tensor with channels last does not bear."""

    def __init__(self, branching: bool = False) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 36, 5)
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        if self.branching and x.sum() > 1e9:
            return x
        return self.out(torch.relu(self.conv(x)).view(-1, 4 * 36))


@pytest.mark.parametrize("branching", [False, True])
def test_a_network_with_views_is_run_as_it_can_be(branching: bool) -> None:
    net, cpu = Viewing(branching).eval(), torch.device("cpu")
    x, labels = torch.randn(7, 3, 6, 6), torch.arange(7) % 5
    wanted, last = net(x), x.contiguous(memory_format=torch.channels_last)
    assert placed(net, cpu).conv.weight.is_contiguous()
    torch.testing.assert_close(ann(net, last.unsqueeze(0)).mean_logits, wanted)
    assert accuracy(net, [(last, labels)]) == int((wanted.argmax(1) == labels).sum()) / 7
    frozen = placed(freeze(net), cpu)
    torch.testing.assert_close(ann(frozen, last.unsqueeze(0)).mean_logits, wanted)
    assert branching or not frozen.conv.weight.is_contiguous()


def test_a_network_without_views_has_its_channels_last() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    assert not placed(net, torch.device("cpu"))[0].weight.is_contiguous()
    x = torch.randn(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
    assert laid_for(net, x) is x
