"""Accuracy over steps, health and intervals, each against a second derivation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from spikelet.convert import convert
from spikelet.data import Batches, digits
from spikelet.encode import repeat
from spikelet.errors import UserError
from spikelet.execute import bptt
from spikelet.measure import (
    accuracy,
    accuracy_over_steps,
    answers_over_steps,
    correct,
    health,
    paired_interval,
    predictions_over_steps,
    t_quantile,
)
from spikelet.models import build_model
from spikelet.neuron import IF, Neuron


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Three uneven batches of random images and labels."""
    return [(torch.randn(n, 1, 8, 8), torch.randint(10, (n,))) for n in (7, 7, 3)]


@pytest.fixture
def teacher() -> nn.Module:
    return build_model("small-cnn", classes=10, channels=1, size=8, width=4, seed=1)


@pytest.fixture
def student(teacher: nn.Module) -> nn.Module:
    return convert(teacher.eval(), steps=4, calibrate=torch.randn(32, 1, 8, 8))


def test_answer_at_t_is_that_of_a_run_of_t_steps(student: nn.Module) -> None:
    """The network is causal, so the first t logits of a longer run are those of a shorter one."""
    images = torch.randn(5, 1, 8, 8)
    answers = answers_over_steps(student, images, [1, 2, 4])
    student.eval()
    for t, logits in answers.items():
        with torch.no_grad():
            alone = bptt(student, repeat(images, t)).mean_logits
        torch.testing.assert_close(logits, alone)


def test_accuracy_counts_every_image_once(
    student: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    hits = predictions_over_steps(student, batches, [4, 1, 2])
    assert list(hits) == [1, 2, 4]
    assert all(hit.dtype == torch.bool and hit.shape == (17,) for hit in hits.values())
    shares = accuracy_over_steps(student, iter(batches), [1, 2, 4])
    assert shares == {t: float(hit.double().mean()) for t, hit in hits.items()}


def test_ann_accuracy(teacher: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        expected = [int(teacher.eval()(x[None]).argmax()) == y for xs, ys in batches
                    for x, y in zip(xs, ys.tolist(), strict=True)]  # fmt: skip
    assert correct(teacher, batches).tolist() == expected
    assert accuracy(teacher, batches) == pytest.approx(sum(expected) / 17)


def test_data_batches_are_one_pass(teacher: nn.Module) -> None:
    data = digits()
    test = Batches(data.test, data, batch=500, shuffle=False)
    assert correct(teacher, test).tolist() == correct(teacher, test.epoch(0)).tolist()
    assert len(correct(teacher, test)) == len(data.test)


def test_modes_and_statistics_are_left_as_they_were(
    student: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    student.train()
    next(m for m in student.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes = [m.training for m in student.modules()]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    accuracy_over_steps(student, batches, [2])
    health(student, batches[0][0], 2)
    assert [m.training for m in student.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_modes_come_back_after_an_error(teacher: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        accuracy(teacher.train(), [(torch.randn(2, 3, 8, 8), torch.zeros(2))])
    assert all(m.training for m in teacher.modules())


@pytest.mark.parametrize("steps", [[], [0, 1]])
def test_bad_steps_are_named(student: nn.Module, steps: list[int]) -> None:
    with pytest.raises(UserError, match="steps"):
        accuracy_over_steps(student, [(torch.randn(2, 1, 8, 8), torch.zeros(2))], steps)


def test_no_batches_are_named(teacher: nn.Module, student: nn.Module) -> None:
    with pytest.raises(UserError, match="batches"):
        accuracy(teacher, [])
    with pytest.raises(UserError, match="batches"):
        accuracy_over_steps(student, [], [1])


def test_health_counts_spikes(student: nn.Module) -> None:
    """Against the spikes that `bptt` records, counted channel by channel."""
    images = torch.randn(6, 1, 8, 8)
    paths = [path for path, module in student.named_modules() if isinstance(module, Neuron)]
    found = health(student, images, 4)
    assert list(found) == paths
    with torch.no_grad():
        trace = bptt(student.eval(), repeat(images, 4), dict.fromkeys(paths, ("spikes",)))
    for path in paths:
        spikes = trace.taps[path].spikes
        assert spikes is not None
        rates = [float(spikes[:, :, c].mean()) for c in range(spikes.shape[2])]
        assert found[path]["rate"] == pytest.approx(sum(rates) / len(rates), abs=1e-6)
        assert found[path]["dead"] == pytest.approx(sum(r == 0 for r in rates) / len(rates))
        assert found[path]["saturated"] == pytest.approx(sum(r >= 0.95 for r in rates) / len(rates))


def test_health_of_dead_and_saturated_layers() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.copy_(torch.tensor([5.0, -1.0]))
        net[2].weight.zero_()
        net[2].bias.fill_(-1.0)
    found = list(health(convert(net, IF()), torch.randn(4, 3), 3).values())
    assert found[0] == {"rate": 0.5, "dead": 0.5, "saturated": 0.5}
    assert found[1] == {"rate": 0.0, "dead": 1.0, "saturated": 0.0}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 1016])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_t_quantile_is_scipys(freedom: int, level: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert t_quantile(level, freedom) == pytest.approx(
        stats.t.ppf((1 + level) / 2, freedom), rel=1e-9
    )


def test_paired_interval_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = [0.91, 0.93, 0.95, 0.90, 0.92], [0.90, 0.91, 0.96, 0.88, 0.90]
    mean, low, high = paired_interval(a, b)
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert mean == pytest.approx(sum(a) / 5 - sum(b) / 5)
    assert (low, high) == pytest.approx((interval.low, interval.high))


def test_interval_of_equal_differences_is_a_point() -> None:
    mean, low, high = paired_interval([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert math.isclose(low, high) and mean == 0.5


@pytest.mark.parametrize(
    "a, b, level", [([1.0], [2.0], 0.95), ([1, 2], [1], 0.9), ([1, 2], [1, 2], 1)]
)
def test_interval_refuses(a: list[float], b: list[float], level: float) -> None:
    with pytest.raises(UserError):
        paired_interval(a, b, level)
