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
    mean_rates,
    paired_interval,
    predictions_over_steps,
    t_quantile,
)
from spikelet.measure.calibration import (
    agreement,
    calibration_error,
    knee,
    negative_log_likelihood,
)
from spikelet.measure.early import early_exit
from spikelet.measure.similarity import linear_cka
from spikelet.measure.vitals import gradient_norms, neuron_count, vitals
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
    assert found[0] == {"rate": 0.5, "dead": 0.5, "saturated": 0.5, "neurons": 2}
    assert found[1] == {"rate": 0.0, "dead": 1.0, "saturated": 0.0, "neurons": 4}


def test_two_mean_rates(student: nn.Module) -> None:
    """Against the mean of the layers' means, and the mean of all spikes put together."""
    images = torch.randn(6, 1, 8, 8)
    paths = [path for path, module in student.named_modules() if isinstance(module, Neuron)]
    with torch.no_grad():
        taps = bptt(student.eval(), repeat(images, 4), dict.fromkeys(paths, ("spikes",))).taps
    spikes = [taps[path].spikes for path in paths]
    found = mean_rates(health(student, images, 4))
    by_layer = sum(float(s.mean()) for s in spikes) / len(spikes)  # type: ignore[union-attr]
    every = torch.cat([s.flatten() for s in spikes])  # type: ignore[union-attr]
    assert found["rate_by_layer"] == pytest.approx(by_layer, abs=1e-6)
    assert found["rate_by_neuron"] == pytest.approx(float(every.mean()), abs=1e-6)
    assert mean_rates({}) == {"rate_by_layer": None, "rate_by_neuron": None}
    assert mean_rates({"a": {"rate": 0.5}})["rate_by_neuron"] is None


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


# ---- calibration, agreement, early exit ---------------------------------------------------------


def answered(count: int = 200, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits, of which the labels are the likelier classes more often."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def probabilities(row: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in row)
    return [math.exp(z) / total for z in row]


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_bin_by_bin(bins: int) -> None:
    logits, labels = answered()
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = probabilities(row)
        for m in range(1, bins + 1):
            if (m - 1) / bins < max(p) <= m / bins:
                members[m - 1].append((max(p), p.index(max(p)) == label))
    assert sum(map(len, members)) == 200
    expected = sum(
        len(each) / 200 * abs(sum(right for _, right in each) - sum(p for p, _ in each)) / len(each)
        for each in members
        if each
    )
    assert calibration_error(logits, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_calibration_error_of_the_sure() -> None:
    """Sure and always right is 0, sure and always wrong is 1, sure and half right is a half."""
    sure = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    for labels, expected in (([0, 0], 0.0), ([1, 1], 1.0), ([0, 1], 0.5)):
        assert calibration_error(sure, torch.tensor(labels)) == pytest.approx(expected)


def test_negative_log_likelihood_image_by_image() -> None:
    logits, labels = answered()
    expected = -sum(
        math.log(probabilities(row)[label])
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected / 200)


def test_agreement_counts_images() -> None:
    mine = torch.eye(3)[[0, 1, 2, 0]]
    other = torch.eye(3)[[0, 1, 0, 1]]
    labels = torch.tensor([0, 2, 0, 1])
    assert agreement(mine, other, labels) == (0.5, pytest.approx(1 / 3))
    assert agreement(mine, other, torch.full((4,), 2)) == (0.5, None)
    assert agreement(mine, mine, labels)[0] == 1


def test_knee_is_the_first_within_half_a_point() -> None:
    assert knee({1: 0.6, 2: 0.895, 4: 0.9, 8: 0.899}) == 2
    assert knee({1: 0.6, 2: 0.8949, 4: 0.9}) == 4
    assert knee({4: 0.1}) == 4


def test_early_exit_image_by_image() -> None:
    answers = {t: answered(seed=t)[0] for t in (1, 2, 4)}
    labels = answered(seed=4)[1]
    for point in early_exit(answers, labels, [0.0, 0.5, 0.8, 1.01]):
        used, right = [], 0
        for i, label in enumerate(labels.tolist()):
            for t in (1, 2, 4):
                p = probabilities(answers[t][i].tolist())
                if max(p) >= point["threshold"] or t == 4:
                    break
            used.append(t)
            right += p.index(max(p)) == label
        assert point["steps"] == pytest.approx(sum(used) / len(used))
        assert point["accuracy"] == pytest.approx(right / len(used))


def test_early_exit_ends() -> None:
    answers = {t: answered(seed=t)[0] for t in (1, 2, 3)}
    labels = answered(seed=3)[1]
    first, last = early_exit(answers, labels, [0.0, 1.01])
    for point, t in ((first, 1), (last, 3)):
        assert point["steps"] == t
        assert point["accuracy"] == float((answers[t].argmax(1) == labels).double().mean())
    with pytest.raises(UserError, match="answers"):
        early_exit({}, labels)


# ---- likeness of representations ----------------------------------------------------------------


def gram_cka(x: Tensor, y: Tensor) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC = tr(K H L H), written out in loops."""
    n = len(x)
    rows = [each.double().flatten(1).tolist() for each in (x, y)]
    k, low = (
        [[sum(a * b for a, b in zip(u, v, strict=True)) for v in each] for u in each]
        for each in rows
    )
    h = torch.eye(n).double() - 1 / n

    def hsic(a: list[list[float]], b: list[list[float]]) -> float:
        return float(torch.trace(torch.tensor(a).double() @ h @ torch.tensor(b).double() @ h))

    return hsic(k, low) / math.sqrt(hsic(k, k) * hsic(low, low))


@pytest.mark.parametrize("shapes", [((9, 3), (9, 4)), ((6, 2, 5, 5), (6, 12)), ((7, 6), (7, 8))])
def test_cka_by_gram_matrices(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(shape, generator=generator) for shape in shapes)
    y = y + x.flatten(1)[:, :1].reshape(-1, *[1] * (y.ndim - 1))
    assert linear_cka(x, y) == pytest.approx(gram_cka(x, y), abs=1e-7)


@pytest.mark.parametrize("width", [3, 40])
def test_cka_is_blind_to_rotation_scale_and_shift_alone(width: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(20, width, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator).double())[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, -3 * x @ turn + 5) == pytest.approx(1)
    stretched = x * torch.arange(1, width + 1).double() ** 2
    assert (linear_cka(x, stretched) or 0) < 0.99
    assert linear_cka(x, torch.full((20, 2), 0.1)) is None
    with pytest.raises(UserError, match="same images"):
        linear_cka(x, x[:3])


# ---- vitals -------------------------------------------------------------------------------------


def test_vitals_against_spikes_and_potentials_of_bptt(student: nn.Module) -> None:
    images = torch.randn(6, 1, 8, 8)
    modules = {path: m for path, m in student.named_modules() if isinstance(m, Neuron)}
    found = vitals(student, images, 4)
    assert list(found) == list(modules)
    with torch.no_grad():
        fields = dict.fromkeys(modules, ("spikes", "potential"))
        trace = bptt(student.eval(), repeat(images, 4), fields)
    short = health(student, images, 4)
    for path, neuron in modules.items():
        spikes, potential = trace.taps[path].spikes, trace.taps[path].potential
        assert spikes is not None and potential is not None
        assert {key: found[path][key] for key in short[path]} == pytest.approx(short[path])
        for c, rate in enumerate(found[path]["channels"]):
            assert rate == pytest.approx(float(spikes[:, :, c].mean()), abs=1e-6)
        for t, rate in enumerate(found[path]["over_steps"]):
            assert rate == pytest.approx(float(spikes[t].mean()), abs=1e-6)
        drift = float(spikes[3].mean() - spikes[0].mean())
        assert found[path]["drift"] == pytest.approx(drift, abs=1e-6)
        theta = neuron.theta.flatten()
        assert found[path]["threshold"]["mean"] == pytest.approx(float(theta.mean()))
        by_channel = [
            potential[:, :, c].double() / float(theta[min(c, len(theta) - 1)])
            for c in range(potential.shape[2])
        ]
        whole = torch.stack(by_channel).flatten()
        assert found[path]["potential"]["mean"] == pytest.approx(float(whole.mean()), abs=1e-5)
        deviation = float((whole - whole.mean()).square().mean().sqrt())
        assert found[path]["potential"]["deviation"] == pytest.approx(deviation, rel=1e-4)


def test_neurons_are_counted_by_their_potentials(student: nn.Module) -> None:
    paths = [path for path, m in student.named_modules() if isinstance(m, Neuron)]
    trace = bptt(student.eval(), repeat(torch.randn(1, 1, 8, 8), 1), paths)
    expected = sum(trace.taps[path].mean.numel() for path in paths)
    assert neuron_count(student, torch.randn(3, 1, 8, 8)) == expected


def test_gradient_norms_are_those_of_backward(student: nn.Module) -> None:
    images, labels = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    student.eval()
    found = gradient_norms(student, images, labels, 3)
    assert all(p.grad is None for p in student.parameters())
    logits = bptt(student, repeat(images, 3)).mean_logits
    nn.functional.cross_entropy(logits, labels).backward()
    squares: dict[str, float] = {}
    for name, p in student.named_parameters():
        assert p.grad is not None
        path = name.rpartition(".")[0]
        squares[path] = squares.get(path, 0.0) + float(p.grad.double().square().sum())
    assert {path: math.sqrt(each) for path, each in squares.items()} == pytest.approx(
        {path: each["gradient"] for path, each in found.items()}, rel=1e-5
    )
    assert all(each["gradient"] == pytest.approx(each["ratio"] * each["weight"])
               for each in found.values() if each["ratio"])  # fmt: skip
