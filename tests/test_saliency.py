"""Saliency maps against differences, captum and scipy; similarities and masks against loops."""

from __future__ import annotations

import json
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from small import network, student
from spikelet.encode import Poisson
from spikelet.errors import UserError
from spikelet.examine.saliency import SHUFFLED, _intervals, examine, look, say
from spikelet.execute import bptt
from spikelet.measure.masking import SHARES, curves, ends, random_order
from spikelet.measure.saliency import (
    chance,
    cosine,
    input_gradients,
    integrated_gradients,
    overlap,
    randomised,
    ranking,
    ranks,
    similarities,
    spearman,
    top,
)
from watched import seen, watched


@pytest.fixture(scope="module")
def captum() -> ModuleType:
    return pytest.importorskip("captum.attr", reason="captum is not installed")


def test_intervals_of_few_images_end_where_the_measure_does() -> None:
    few = {"rank": torch.tensor([1.0, -1.0]), "overlap": torch.tensor([0.2, 0.3])}
    found = _intervals(few)
    assert (found["rank"]["low"], found["rank"]["high"]) == (-1, 1)
    assert -1 < found["overlap"]["low"] < 0.25 < found["overlap"]["high"] < 1
    apart = _intervals(few, {"rank": torch.tensor([-1.0, 1.0]), "overlap": torch.zeros(2)})
    assert (apart["rank"]["low"], apart["rank"]["high"]) == (-2, 2)


def pictures(count: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 2, 8, 8, dtype=torch.float64)
    return x, torch.arange(count) % 3


def answers() -> dict[str, Any]:
    """An ANN and a spiking network as they answer."""
    net, spiking = network("residual").eval(), student("residual").eval()
    return {"ann": net, "spiking": lambda x: bptt(spiking, x.expand(4, *x.shape)).mean_logits}


# ---- maps ---------------------------------------------------------------------------------


def test_a_map_is_the_slope_of_the_logit() -> None:
    """Central differences of a smooth network, pixel by pixel."""
    layers = nn.Conv2d(2, 3, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(192, 3)
    net = nn.Sequential(*layers)
    net, (x, classes) = net.double(), pictures(2)
    found, step = input_gradients(net, x, classes), 1e-5
    for image, (row, column) in ((0, (0, 0)), (1, (3, 5))):
        slope = 0.0
        for channel in range(2):
            shift = torch.zeros_like(x)
            shift[image, channel, row, column] = step
            both = [net(x + sign * shift)[image, classes[image]].detach() for sign in (1, -1)]
            slope += abs(float(both[0] - both[1]) / (2 * step))
        assert float(found[image, row, column]) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("kind", ["ann", "spiking"])
def test_saliency_of_captum(captum: ModuleType, kind: str) -> None:
    answer, (x, classes) = answers()[kind], pictures()
    theirs = captum.Saliency(answer).attribute(x, target=classes, abs=True).sum(1)
    torch.testing.assert_close(input_gradients(answer, x, classes), theirs.detach())
    assert float(theirs.detach().abs().min(0).values.sum()) > 0


@pytest.mark.parametrize("kind", ["ann", "spiking"])
def test_integrated_gradients_of_captum(captum: ModuleType, kind: str) -> None:
    answer, (x, classes) = answers()[kind], pictures()
    baseline = torch.full((2, 1, 1), 0.3, dtype=x.dtype)
    theirs = captum.IntegratedGradients(answer).attribute(
        x, baseline.expand_as(x), target=classes, n_steps=6, method="riemann_middle"
    )
    ours = integrated_gradients(answer, x, classes, baseline, points=6)
    torch.testing.assert_close(ours, theirs.detach().sum(1).abs())


def test_the_parts_of_integrated_gradients_are_the_difference_of_logits() -> None:
    """Completeness, for a network whose gradient is exact: signs restored by one channel each."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 3)).double()
    x, classes = pictures()
    with torch.no_grad():
        net[1].weight.abs_()
    positive, baseline = x.abs(), torch.zeros(2, 1, 1, dtype=x.dtype)
    parts = integrated_gradients(net, positive, classes, baseline, points=3).sum((1, 2))
    change = (net(positive) - net(0 * x)).gather(1, classes.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(parts, change.detach())


def test_maps_leave_no_gradients_behind() -> None:
    net, (x, classes) = network("residual").eval(), pictures()
    with torch.no_grad():
        found = input_gradients(net, x, classes)
    assert not found.requires_grad and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("by_weights", [True, False])
def test_an_answer_without_derivative_is_refused(by_weights: bool) -> None:
    """Also where it has one by the weights, which do not matter here."""
    net, (x, classes) = student("residual").eval().requires_grad_(by_weights), pictures()

    def drawn(images: Tensor) -> Tensor:
        return bptt(net, Poisson(4)(images).double()).mean_logits

    with pytest.raises(UserError, match="no derivative"):
        input_gradients(drawn, x, classes)


# ---- similarity ---------------------------------------------------------------------------


def maps(seed: int = 0, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 8, 8, generator=generator)


def test_identical_maps_are_entirely_similar() -> None:
    for found in similarities(maps(), maps()).values():
        torch.testing.assert_close(found, torch.ones(4, dtype=torch.float64))


def test_cosine_by_a_loop() -> None:
    a, b = maps(0), maps(1)
    for i, found in enumerate(cosine(a, b).tolist()):
        x, y = a[i].flatten().tolist(), b[i].flatten().tolist()
        dot = math.fsum(p * q for p, q in zip(x, y, strict=True))
        size = math.sqrt(math.fsum(p * p for p in x) * math.fsum(q * q for q in y))
        assert found == pytest.approx(dot / size)


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_and_spearman_of_scipy(ties: bool) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    a, b = maps(0), maps(1)
    if ties:
        a, b = (8 * a).round(), (4 * b).round()
    found = spearman(a, b)
    for i in range(len(a)):
        x, y = a[i].flatten().numpy(), b[i].flatten().numpy()
        assert ranks(a.flatten(1))[i].tolist() == stats.rankdata(x).tolist()
        assert float(found[i]) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_overlap_by_sets() -> None:
    a, b = maps(0), maps(1)
    for i, found in enumerate(overlap(a, b, 0.25).tolist()):
        tops = [
            {p for p, _ in sorted(enumerate(x[i].flatten().tolist()), key=lambda e: -e[1])[:16]}
            for x in (a, b)
        ]
        assert found == pytest.approx(len(tops[0] & tops[1]) / len(tops[0] | tops[1]))
    assert top(a, 1e-9).sum(1).tolist() == [1] * 4


def test_no_similarity_of_a_map_that_says_nothing() -> None:
    flat = torch.zeros(4, 8, 8)
    assert cosine(flat, maps()).isnan().all() and spearman(flat + 1, maps()).isnan().all()


def test_overlap_of_unrelated_maps_is_chance() -> None:
    a, b = (torch.rand(4000, 10, 10, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert float(overlap(a, b, 0.1).mean()) == pytest.approx(chance(100, 0.1), rel=0.03)
    assert chance(10, 1.0) == 1 and chance(2, 0.5) == 0.5


def test_shuffled_weights() -> None:
    net = student("residual")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, again, other = (randomised(net, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
        mine, same = first.state_dict()[name], again.state_dict()[name]
        assert torch.equal(mine, same)
        if value.ndim > 1:
            assert torch.equal(mine.flatten().sort().values, value.flatten().sort().values)
            assert not torch.equal(mine, value)
            assert not torch.equal(mine, other.state_dict()[name])
        else:
            assert torch.equal(mine, value)


# ---- masks --------------------------------------------------------------------------------


class OnePixel(nn.Module):
    """Says class 1 where the pixel (2, 3) is bright, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        bright = 20 * (x[:, :, 2, 3].sum(1) - 0.5)
        return torch.stack([-bright, bright], 1)


def test_curves_of_a_network_that_looks_at_one_pixel() -> None:
    x = torch.ones(3, 1, 8, 8)
    fill, answer = torch.zeros(1, 1, 1), OnePixel()
    classes = answer(x).argmax(1)
    order = ranking(input_gradients(answer, x, classes))
    assert order[:, 0].tolist() == [2 * 8 + 3] * 3
    known = ends(answer, x, fill)
    found = curves(answer, x, order, fill, known)
    assert found["deletion"].agreement.tolist() == [[1.0] + [0.0] * (len(SHARES) - 1)] * 3
    assert found["insertion"].agreement.tolist() == [[0.0] + [1.0] * (len(SHARES) - 1)] * 3
    last = curves(answer, x, order.flip(1), fill, known)
    assert last["deletion"].agreement.tolist() == [[1.0] * (len(SHARES) - 1) + [0.0]] * 3
    first, second = ({k: c.areas["probability"] for k, c in x.items()} for x in (found, last))
    assert (first["deletion"] < second["deletion"]).all()
    assert (first["insertion"] > second["insertion"]).all()


def test_curves_by_a_loop() -> None:
    net, (x, _) = network("residual").eval(), pictures(3)
    fill = torch.tensor([0.2, -0.1], dtype=x.dtype).view(2, 1, 1)
    order = random_order(x, torch.Generator().manual_seed(0))
    assert order.sort(1).values.tolist() == [list(range(64))] * 3
    found = curves(net, x, order, fill, ends(net, x, fill), (0.0, 0.3, 0.5, 1.0))
    for image in range(3):
        whole = net(x[image : image + 1])[0].softmax(0)
        for at, share in enumerate((0.0, 0.3, 0.5, 1.0)):
            replaced = {"deletion": x[image].clone(), "insertion": x[image].clone()}
            for position, pixel in enumerate(order[image].tolist()):
                kind = "deletion" if position < round(64 * share) else "insertion"
                replaced[kind][:, pixel // 8, pixel % 8] = fill[:, 0, 0]
            for kind, shown in replaced.items():
                told = net(shown.unsqueeze(0))[0].softmax(0)
                mine = found[kind]  # type: ignore[index]
                assert float(mine.probability[image, at]) == pytest.approx(
                    float(told[whole.argmax()].detach())
                )
                assert bool(mine.agreement[image, at]) == bool(told.argmax() == whole.argmax())
    probability = found["deletion"].probability
    areas = sum(
        (probability[:, i] + probability[:, i + 1]) / 2 * width
        for i, width in enumerate((0.3, 0.2, 0.5))
    )
    torch.testing.assert_close(found["deletion"].areas["probability"], areas)


# ---- of a run -----------------------------------------------------------------------------


def quiet(done: int, total: int, words: str) -> None:
    assert done >= 0 and total > 0 and words


def test_identical_networks_look_at_the_same() -> None:
    teacher = seen("teacher", student("residual").float())
    found = examine(watched(seen("hybrid", student("residual").float()), teacher), quiet)
    json.dumps(found, allow_nan=False)
    mine, shuffled = found["similarity"]
    assert mine["network"] == "hybrid" and shuffled["network"] == SHUFFLED.format("hybrid")
    for name in ("cosine", "spearman", "overlap"):
        assert mine[name]["mean"] == pytest.approx(1) and mine[name]["n"] == found["n"] == 12
        assert shuffled[name]["mean"] < 0.9
        (difference,) = found["similarity_differences"]
        assert difference["minus"] == SHUFFLED.format("hybrid") and difference[name]["low"] > 0
    assert found["integrated"]["similarity"][0]["cosine"]["mean"] == pytest.approx(1)
    across = [d for d in found["curve_differences"] if d.get("minus") == "teacher"]
    assert len(across) == 2 and all(d["probability"]["mean"] == 0 for d in across)


def test_curves_have_every_ranking() -> None:
    teacher = seen("teacher", network("residual").float(), "ann")
    other = seen("none", student("residual").float())
    subject = watched(seen("hybrid", student("residual").float()), teacher, 24, (other,))
    found = examine(subject, quiet)
    ranked = {(row["network"], row["ranked_by"]) for row in found["curves"]}
    assert ranked == {
        ("teacher", "teacher"),
        ("teacher", "hybrid"),
        ("teacher", "random"),
        ("none", "none"),
        ("none", "teacher"),
        ("none", "random"),
        ("hybrid", "hybrid"),
        ("hybrid", "teacher"),
        ("hybrid", "random"),
    }
    for row in found["curves"]:
        first, last = (0, -1) if row["kind"] == "deletion" else (-1, 0)
        same = [r for r in found["curves"] if r["network"] == row["network"]]
        assert row["agreement"][first] == 1.0
        for end in ("probability", "agreement"):
            assert {r[end][first if r["kind"] == row["kind"] else last] for r in same} == {
                row[end][first]
            }


def test_only_images_that_all_answer_rightly_are_used() -> None:
    teacher = seen("teacher", network("residual").float(), "ann")
    hybrid = seen("hybrid", student("residual").float())
    subject = watched(hybrid, teacher, 40, labels=torch.arange(40) % 3)
    looked = look(subject, quiet)
    images, labels = (torch.cat(each) for each in zip(*subject.batches(), strict=True))
    with torch.no_grad():
        right = torch.stack([s.answer(images).argmax(1) == labels for s in subject.networks]).all(0)
    assert 0 < int(right.sum()) < 40 == looked.examined
    assert torch.equal(looked.images, images[right])
    mean = torch.cat([pixels for pixels, _ in subject.pixels()]).mean((0, 2, 3)).view(-1, 1, 1)
    torch.testing.assert_close(looked.fill, subject.normalise(mean))


def test_no_image_that_all_answer_rightly_is_an_error() -> None:
    net = student("residual").float()
    with torch.no_grad():
        net.linear.bias.copy_(torch.tensor([0.0, 0.0, 1e6]))
    teacher = seen("teacher", network("residual").float(), "ann")
    subject = watched(seen("hybrid", net), teacher)
    with pytest.raises(UserError, match="answered rightly"):
        examine(subject, quiet)


def test_a_teacher_alone_is_compared_with_its_shuffled_weights() -> None:
    found = examine(watched(seen("teacher", network("residual").float(), "ann"), None), quiet)
    (only,) = found["similarity"]
    assert only["network"] == SHUFFLED.format("teacher") and not found["similarity_differences"]


def test_sentences_name_every_network_and_its_interval() -> None:
    student_net = student(calibrated=True).float()
    teacher_net = network().float().eval()
    subject = watched(seen("none", student_net), seen("teacher", teacher_net, "ann"), 24)
    found = examine(subject, lambda *_: None)
    lines = say(found)
    assert len(lines) == 1 + len(found["similarity"])
    assert f"on {found['n']} images" in lines[0]
    first = found["similarity"][0]
    assert lines[1].startswith(f"{first['network']}: ")
    assert f"{first['spearman']['low']:.2f} to {first['spearman']['high']:.2f}" in lines[1]
    none = {"mean": None, "low": None, "high": None, "n": 1}
    row = {"network": "x", "spearman": none, "overlap": none}
    assert "unknown" in say({**found, "similarity": [row]})[1]
