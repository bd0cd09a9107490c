"""Intervals over images, over seeds and images, and over draws: that they cover what they say."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from spikelet.errors import UserError
from spikelet.measure.immunity import Right, against, both_right, over_kinds, over_seeds
from spikelet.measure.interval import combined, crossed_interval, over_images, paired_interval

Interval = tuple[float, float, float]


def drawn(seed: int) -> Generator:
    return torch.Generator().manual_seed(seed)


def share_covered(times: int, truth: float, sample: Callable[[Generator], Interval]) -> float:
    """In how many of so many studies an interval covers the truth."""
    generator = drawn(0)
    found = [sample(generator) for _ in range(times)]
    return sum(low <= truth <= high for _, low, high in found) / times


# ---- over images --------------------------------------------------------------------------


def test_interval_over_images_by_a_loop() -> None:
    values = torch.rand(40, generator=drawn(1), dtype=torch.float64) - 0.4
    mean = sum(values.tolist()) / 40
    scatter = sum((v - mean) ** 2 for v in values.tolist()) + 1
    half = 2.022691 * math.sqrt(scatter / 39 / 40)  # t of 39 degrees of freedom
    found = over_images(values)
    assert found == pytest.approx((mean, mean - half, mean + half), rel=1e-6)


def test_many_images_are_plain_t_and_few_are_wider() -> None:
    for count, rel in ((20_000, 1e-3), (500, 0.03)):
        a, b = torch.rand(2, count, generator=drawn(2), dtype=torch.float64)
        plain, ours = paired_interval(a.tolist(), b.tolist()), over_images(a - b)
        assert ours == pytest.approx(plain, rel=rel)
        assert ours[2] - ours[1] > plain[2] - plain[1]
    same = [over_images(torch.full((count,), 0.25)) for count in (5, 20, 200)]
    widths = [high - low for _, low, high in same]
    assert widths == sorted(widths, reverse=True) and widths[-1] > 0  # plain t has no width
    assert same[0][1] < 0 < same[0][2] and same[-1][1] > 0


@pytest.mark.parametrize("count", [15, 60])
def test_few_images_with_rare_differences_are_covered(count: int) -> None:
    """One image in fifty is answered by one network alone, either of the two alike."""

    def values(generator: Generator) -> Tensor:
        one, two = (torch.rand(2, count, generator=generator) < 0.02).double()
        return one - two

    def plain(generator: Generator) -> Interval:
        found = values(generator)
        return paired_interval(found.tolist(), [0.0] * count)

    def ours(generator: Generator) -> Interval:
        return over_images(values(generator))

    assert share_covered(300, 0.0, ours) >= 0.95
    uneven = [values(drawn(seed)) for seed in range(300)]
    wide = [paired_interval(v.tolist(), [0.0] * count) for v in uneven]
    assert sum(high == low for _, low, high in wide) > (100 if count == 15 else 10)


# ---- over seeds and images ----------------------------------------------------------------


def crossed(seeds: int, images: int, spread: float, generator: Generator) -> Tensor:
    """Differences around 0: each pair of networks off by its own luck, each image by its own."""
    rows = spread * torch.randn(seeds, 1, generator=generator, dtype=torch.float64)
    columns = 0.2 * torch.randn(1, images, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(seeds, images, generator=generator, dtype=torch.float64)
    return rows + columns + noise


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_seeds_and_images_are_covered_where_images_alone_are_not(spread: float) -> None:
    """What a newcomer saw: one pair of networks, an interval over images, one seed's luck."""

    def ours(generator: Generator) -> Interval:
        return crossed_interval(crossed(4, 100, spread, generator))

    def one_pair(generator: Generator) -> Interval:
        return over_images(crossed(4, 100, spread, generator)[0])

    assert share_covered(400, 0.0, ours) >= 0.945
    if spread:
        assert share_covered(400, 0.0, one_pair) < 0.9


def test_crossed_interval_by_a_loop_with_images_left_out() -> None:
    values = crossed(3, 20, 0.1, drawn(5))
    values[0, :4] = values[2, 7] = values[:, 19] = torch.nan
    rows = [[v for v in row if not math.isnan(v)] for row in values.tolist()]
    means = [sum(row) / len(row) for row in rows]
    columns = [[v for v in column if not math.isnan(v)] for column in values.T.tolist()]
    heights = [sum(column) / len(column) for column in columns if column]
    mean, height = sum(means) / 3, sum(heights) / len(heights)
    over_rows = sum((m - mean) ** 2 for m in means) / 2 / 3
    over_columns = (sum((h - height) ** 2 for h in heights) + 1) / 18 / 19
    found = crossed_interval(values)
    assert found[0] == pytest.approx(mean)
    assert found == pytest.approx(combined(mean, [(over_rows, 2), (over_columns, 18)]))


def test_combined_is_scipys_t_of_welchs_degrees() -> None:
    stats = pytest.importorskip("scipy.stats")
    mean, low, high = combined(0.5, [(0.04, 2), (0.01, 90)])
    freedom = 0.05**2 / (0.04**2 / 2 + 0.01**2 / 90)
    half = stats.t.ppf(0.975, int(freedom)) * math.sqrt(0.05)
    assert (mean - low, high - mean) == pytest.approx((half, half))
    alone = combined(0.5, [(0.04, 2)])
    assert alone[2] - 0.5 == pytest.approx(stats.t.ppf(0.975, 2) * 0.2)


def test_too_few_rows_or_columns_are_refused() -> None:
    for values in (torch.zeros(1, 9), torch.zeros(4, 1), torch.tensor([[1.0, 0], [torch.nan] * 2])):
        with pytest.raises(UserError, match="measure"):
            crossed_interval(values)
    with pytest.raises(UserError, match="1 images"):
        over_images(torch.zeros(1))


# ---- noise --------------------------------------------------------------------------------


def network(seed: int, images: int = 200, luck: float = 0.0) -> Right:
    """Two levels of noise that each image stands with its own chance."""
    generator = drawn(seed)
    clean = torch.rand(images, generator=generator) < 0.8
    levels = [
        [clean & (torch.rand(images, generator=generator) < share + luck)] for share in (0.7, 0.5)
    ]
    return Right.of(clean, levels)


def test_over_seeds_by_a_loop() -> None:
    pairs = [(network(2 * seed), network(2 * seed + 1, luck=-0.2)) for seed in range(3)]
    means = []
    for mine, other in pairs:
        both = [i for i in range(200) if mine.right[0, i] == other.right[0, i] == 1]
        assert int(both_right(mine, other).sum()) == len(both)
        lost = [float((mine.right[1:, i] - other.right[1:, i]).mean()) for i in both]
        means.append(sum(lost) / len(lost))
    found = over_seeds(pairs)
    assert found["kept"]["mean"] == pytest.approx(sum(means) / 3)
    clean = [float(mine.right[0].mean() - other.right[0].mean()) for mine, other in pairs]
    assert found["clean"]["mean"] == pytest.approx(sum(clean) / 3)
    singles = [against(mine, other)["kept"] for mine, other in pairs]
    widths = [each["high"] - each["low"] for each in singles]
    assert found["kept"]["high"] - found["kept"]["low"] > 0.5 * min(widths)
    assert all(each["low"] > 0 for each in singles)


def test_one_network_less_itself_is_nothing_over_seeds() -> None:
    pairs = [(network(seed), network(seed)) for seed in range(3)]
    found = over_seeds(pairs)
    for part in ("clean", "noisy", "kept"):
        assert found[part]["mean"] == 0 and found[part]["low"] < 0 < found[part]["high"]


def test_one_seed_has_no_interval_over_seeds() -> None:
    assert over_seeds([(network(0), network(1))])["kept"]["mean"] is None


def common(draws: list[float], images: int, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Draws of noise that is the same for all images: each takes its own share of them."""
    generator = drawn(seed)
    clean = torch.ones(images).bool()
    counts = [images] + [images // 5] * (len(draws) - 1)
    pairs = zip(draws, counts, strict=True)
    return clean, [torch.rand(n, generator=generator) < share for share, n in pairs]


def test_noise_common_to_all_images_counts_its_draws() -> None:
    """Weights are disturbed once for all images: three draws are three, however many images."""
    clean, hits = common([0.9, 0.6, 0.3], 500, 1)
    _, others = common([0.5, 0.5, 0.5], 500, 2)
    own, shared = (
        against(make(clean, [hits]), make(clean, [others])) for make in (Right.of, Right.of_common)
    )
    assert (own["covers"], shared["covers"]) == ("images", "images and draws")
    assert own["kept"]["mean"] == shared["kept"]["mean"]
    assert own["kept"]["low"] > 0 > shared["kept"]["low"]
    pairs = zip(hits, others, strict=True)
    differences = torch.stack([a[:100].double() - b[:100].double() for a, b in pairs])
    weights = [(400 + 100 / 3) / 500, 100 / 3 / 500, 100 / 3 / 500]
    variance = float(differences.mean(1).var()) * sum(w * w for w in weights)
    images = (own["kept"]["high"] - own["kept"]["mean"]) / 1.964729
    expected = combined(own["kept"]["mean"], [(images**2, 499), (variance, 2)])
    assert shared["kept"]["low"] == pytest.approx(expected[1], rel=1e-4)
    assert shared["kept"]["high"] == 1 < expected[2]  # where a difference of two shares ends


def test_kinds_together_have_noise_of_their_own_for_each_image() -> None:
    clean, hits = common([0.9, 0.6, 0.3], 50, 1)
    assert over_kinds([Right.of_common(clean, [hits])] * 2).common is None
