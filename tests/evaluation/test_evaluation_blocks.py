"""What is computed in blocks, against plain loops over single images, at block sizes from one to more than all.

Coordinates are small integers, so distances are exact and ties occur: whether a bound itself counts is then visible.
"""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch_fidelity.defaults import DEFAULTS

from ddpm.evaluation import classifier, distances, memorisation
from ddpm.evaluation.classifier import Classifier, accuracy, normalise, predict, small, train_classifier
from ddpm.evaluation.distances import (
    channel_drift,
    frechet_distance,
    inception_score,
    kernel_distance,
    level_fractions,
    manifold_metrics,
    misplaced_levels,
    moments_of,
)
from ddpm.evaluation.image_sets import ImageSet, subset_rows
from ddpm.evaluation.memorisation import Neighbours, audit, feature_neighbours, pixel_neighbours, save_pairs

BLOCKS = [1, 5, 7, 21, 1000]  # of 21 and 14 images: one, not a divisor, a divisor, all at once, more than all


def grid_points(n: int, seed: int, d: int = 3, most: int = 6, shift: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, (n, d)).astype(np.float64) + shift


class Images(ImageSet):
    """uint8 images in memory."""

    def __init__(self, images, labels=None, class_names=None, chunk=4, title="images"):
        self.images, self.chunk, self.title = torch.as_tensor(images), chunk, title
        self.labels = None if labels is None else torch.as_tensor(labels)
        self.class_names, self.shape, self.asked = class_names, tuple(self.images.shape[1:]), []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        found = self.images[rows]
        self.asked.append(len(found))
        return found


def squared(a, b) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def radius(points, index: int, k: int) -> float:
    """Squared distance to the k-th neighbour, not counting the point itself."""
    return sorted(squared(points[index], other) for j, other in enumerate(points) if j != index)[k - 1]


def manifold_by_definition(real, generated, k_precision: int, k_density: int) -> list[float]:
    """Kynkäänniemi et al. 2019, eq. 1 to 3, whose balls are closed; Naeem et al. 2020, eq. 4 and 5, open ones."""
    wide, narrow = [[radius(real, i, k) for i in range(len(real))] for k in (k_density, k_precision)]
    ours = [radius(generated, i, k_precision) for i in range(len(generated))]
    d = [[squared(g, r) for r in real] for g in generated]
    n, m = len(generated), len(real)
    precision = sum(any(d[j][i] <= narrow[i] for i in range(m)) for j in range(n)) / n
    recall = sum(any(d[j][i] <= ours[j] for j in range(n)) for i in range(m)) / m
    density = sum(d[j][i] < wide[i] for j in range(n) for i in range(m)) / (k_density * n)
    coverage = sum(any(d[j][i] < wide[i] for j in range(n)) for i in range(m)) / m
    return [precision, recall, density, coverage]


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("seed", [0, 1])
def test_manifold_metrics_are_their_definitions_at_any_block_size(monkeypatch, block, seed):
    monkeypatch.setattr(distances, "BLOCK", block)
    # far from 0, and in float32: only in float64 are the distances exact there
    real, generated = grid_points(21, 2 * seed, shift=5000), grid_points(14, 2 * seed + 1, shift=5002)
    real, generated = real.astype(np.float32), generated.astype(np.float32)
    ticks = []
    found = manifold_metrics(real, generated, tick=lambda: ticks.append(1))
    assert len(ticks) == distances.blocks_needed(21, 14) == -(-21 // block) + 2 * -(-14 // block)
    expected = manifold_by_definition(real.tolist(), generated.tolist(), 3, 5)
    assert [found.precision, found.recall, found.density, found.coverage] == pytest.approx(expected)
    assert all(0 < value < 1 for value in expected[:2])
    other = manifold_metrics(real, generated, k_precision=2, k_density=1)
    expected = manifold_by_definition(real.tolist(), generated.tolist(), 2, 1)
    assert [other.precision, other.recall, other.density, other.coverage] == pytest.approx(expected)


def test_constants_are_those_of_the_published_evaluations():
    names = {
        "kid_subsets": distances.SUBSETS,
        "kid_subset_size": distances.SUBSET_SIZE,
        "rng_seed": distances.SEED,
        "isc_splits": distances.SPLITS,
        "prc_neighborhood": distances.PRECISION_NEIGHBOURS,
    }
    assert names == {name: DEFAULTS[name] for name in names}
    assert distances.DENSITY_NEIGHBOURS == 5  # Naeem et al. 2020, section 4
    assert memorisation.QUANTILE == 0.01


@pytest.mark.parametrize("block", BLOCKS)
def test_moments_are_those_of_all_images_at_any_block_size(block):
    x = grid_points(21, 5) * [1.0, 10.0, 0.1] + 1000
    found = moments_of(x[start : start + block] for start in range(0, 21, block))
    mean = [sum(column) / 21 for column in x.T]
    covariance = [[sum((r[i] - mean[i]) * (r[j] - mean[j]) for r in x) / 20 for j in range(3)] for i in range(3)]
    assert found.n == 21
    np.testing.assert_allclose(found.mu, mean, rtol=1e-14)
    np.testing.assert_allclose(found.sigma, covariance, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("subsets", "size"), [(1, 2), (4, 5), (3, 9), (6, 40)])
def test_kernel_distance_is_its_definition_on_every_subset(subsets, size):
    """Bińkowski et al. 2018, eq. 4, pair by pair, with the kernel (x·y/D + 1)³; draws without replacement."""
    a, b = grid_points(13, 6) / 3, grid_points(9, 7, shift=1) / 3

    def kernel(x, y) -> float:
        return (sum(p * q for p, q in zip(x, y, strict=True)) / 3 + 1) ** 3

    random, values, m = np.random.RandomState(5), [], min(size, 9)
    for _ in range(subsets):
        x, y = a[random.choice(13, m, replace=False)], b[random.choice(9, m, replace=False)]
        within = sum(kernel(p[i], p[j]) for p in (x, y) for i, j in itertools.permutations(range(m), 2)) / (m * (m - 1))
        values.append(within - 2 * sum(kernel(p, q) for p in x for q in y) / m**2)
    found = kernel_distance(a, b, subsets=subsets, subset_size=size, seed=5)
    assert (found.subsets, found.subset_size) == (subsets, m)
    assert found.mean == pytest.approx(sum(values) / subsets)
    spread = math.sqrt(sum((value - found.mean) ** 2 for value in values) / subsets)
    assert found.std == pytest.approx(spread, abs=1e-12)


@pytest.mark.parametrize(("n", "splits"), [(21, 1), (21, 4), (22, 3), (20, 20)])
def test_inception_score_is_its_definition_on_every_split(n, splits):
    """Salimans et al. 2016: exp of the mean divergence of p(y|x) from p(y), the splits together holding every image."""
    logits = np.random.default_rng(3).normal(size=(n, 5)).astype(np.float32) * 2 + 300
    mean, std = inception_score(logits, splits=splits, seed=9)
    order = np.random.RandomState(9).permutation(n).tolist()
    scores, used = [], 0
    for split in range(splits):
        rows = order[split * n // splits : (split + 1) * n // splits]
        used += len(rows)
        p = [[math.exp(float(v) - 300) for v in logits[row]] for row in rows]
        p = [[v / sum(row) for v in row] for row in p]
        marginal = [sum(column) / len(p) for column in zip(*p, strict=True)]
        divergences = [sum(v * math.log(v / q) for v, q in zip(row, marginal, strict=True)) for row in p]
        scores.append(math.exp(sum(divergences) / len(p)))
    assert used == n
    assert mean == pytest.approx(np.mean(scores), rel=1e-9)
    assert std == pytest.approx(np.std(scores), rel=1e-6, abs=1e-12)


def test_channel_drift_is_generated_minus_real_with_its_standard_error():
    generated, real = grid_points(8, 1) * 3, grid_points(5, 2)
    levels, errors = channel_drift(generated.astype(np.float32), real.astype(np.float32))
    for channel in range(3):
        g, r = generated[:, channel].tolist(), real[:, channel].tolist()
        mean_g, mean_r = sum(g) / 8, sum(r) / 5
        variance = sum((v - mean_g) ** 2 for v in g) / 7 / 8 + sum((v - mean_r) ** 2 for v in r) / 4 / 5
        assert levels[channel] == pytest.approx(mean_g - mean_r)
        assert errors[channel] == pytest.approx(math.sqrt(variance))


@pytest.mark.parametrize("block", BLOCKS)
def test_level_fractions_count_every_pixel_at_any_block_size(block):
    images = np.random.default_rng(8).choice([0, 3, 3, 200, 255], (21, 2, 3, 4)).astype(np.uint8)
    images[:, 1] //= 3
    found = level_fractions(images[start : start + block] for start in range(0, 21, block))
    assert found.shape == (2, 256)
    for channel in range(2):
        for level in range(256):
            assert found[channel, level] == pytest.approx((images[:, channel] == level).sum() / (21 * 12))


def test_misplaced_levels_are_half_the_absolute_differences_averaged_over_channels():
    ours, theirs = np.zeros((2, 256)), np.zeros((2, 256))
    ours[0, [1, 2]], theirs[0, [2, 9]] = [0.25, 0.75], [0.6, 0.4]  # 0.25 + 0.15 + 0.4
    ours[1, 7], theirs[1, 7] = 1, 1
    assert misplaced_levels(ours, theirs) == pytest.approx(0.8 / 2 / 2)


@pytest.mark.parametrize("block", BLOCKS)
def test_nearest_neighbours_are_found_at_any_block_size(monkeypatch, block):
    monkeypatch.setattr(memorisation, "BLOCK", block)
    asked, base = (grid_points(n, 20 + n, d=4, most=50).astype(np.float32) for n in (14, 21))
    found = feature_neighbours(asked, base)
    table = [[math.sqrt(squared(q, b)) for b in base] for q in asked]
    assert found.index.tolist() == [row.index(min(row)) for row in table]
    np.testing.assert_allclose(found.distance, [min(row) for row in table], rtol=1e-6)


def test_frechet_distance_takes_singular_covariances_on_either_side():
    """Rounding makes some of their eigenvalues negative; two distributions along one line each are a closed form."""
    line = np.random.default_rng(0).normal(size=30)
    a, b = np.outer(line, np.arange(1.0, 8.0)) * 1e3, np.outer(line * 2 + 3, np.arange(1.0, 8.0)) * 1e3
    length = float((np.arange(1.0, 8.0) ** 2).sum()) * 1e6
    expected = length * ((line.mean() + 3) ** 2 + line.var(ddof=1))
    for first, second in ((a, b), (b, a)):
        assert frechet_distance(moments_of([first]), moments_of([second])) == pytest.approx(expected, rel=1e-6)


def test_nearest_compares_one_row_at_a_time_if_no_more_fit(monkeypatch):
    monkeypatch.setattr(memorisation, "VALUES", 3)  # fewer than one row of four
    asked, base = (torch.from_numpy(grid_points(n, n, d=4, most=50)).float() for n in (3, 5))
    lengths = []

    def rows_of(x):
        def rows(part):
            lengths.append(len(x[part]))
            return x[part]

        return rows

    found = memorisation.nearest(rows_of(asked), 3, rows_of(base), 5)
    assert set(lengths) == {1}
    assert found.index.tolist() == torch.cdist(asked, base).argmin(1).tolist()


@pytest.mark.parametrize("most", [9, 14])
def test_pixel_neighbours_are_looked_up_for_a_fixed_choice_of_queries(monkeypatch, most):
    """Mirrored or not; more queries than `QUERIES` are thinned, and each result belongs to its row."""
    monkeypatch.setattr(memorisation, "QUERIES", most)
    random = np.random.default_rng(1)
    training = random.integers(0, 256, (21, 3, 2, 4), dtype=np.uint8)
    asked = random.integers(0, 256, (14, 3, 2, 4), dtype=np.uint8)
    asked[3], asked[8] = training[20], training[11, :, :, ::-1]
    found, rows = pixel_neighbours(Images(asked), Images(training))
    assert len(rows) == most
    assert rows.tolist() == sorted(set(rows.tolist())) == subset_rows(14, most).tolist()
    for position, row in enumerate(rows):
        table = [
            min(np.linalg.norm(turned / 255.0 - image / 255.0) for turned in (asked[row], asked[row][:, :, ::-1]))
            for image in training
        ]
        assert found.index[position] == int(np.argmin(table))
        assert found.distance[position] == pytest.approx(min(table), abs=1e-6)
    features = feature_neighbours(asked.reshape(14, -1).astype(np.float32), training.reshape(21, -1).astype(np.float32))
    assert len(features.index) == most


def test_subset_rows_is_a_fixed_random_choice_in_order():
    assert subset_rows(5, 5).tolist() == subset_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    chosen = subset_rows(1000, 300)
    assert torch.equal(chosen, subset_rows(1000, 300))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 300
    assert 400 < chosen.double().mean() < 600  # spread over all, not the first ones
    assert chosen[-1] > 950
    assert set(subset_rows(1000, 20).tolist()) < set(chosen.tolist())  # fewer images are among the more


def test_audit_counts_samples_below_the_quantile_and_wins_with_half_ties():
    test = np.array([4.0, 1.0, 3.0, 2.0, 2.0])
    ours = np.array([0.5, 1.04, 2.0, 9.0])
    found = audit(Neighbours(np.arange(4), ours), Neighbours(np.arange(5), test))
    bound = 1.0 + 0.01 * 4 * (2.0 - 1.0)  # the quantile, interpolated between the two smallest
    assert found.fraction_below == sum(value < bound for value in ours) / 4
    wins = sum(1.0 if o < t else 0.5 if o == t else 0.0 for o in ours for t in test)
    assert found.nearer_than_test == pytest.approx(wins / 20)
    assert found.generated.distance is ours
    assert found.test.distance is test


def test_save_pairs_shows_the_closest_samples_above_their_training_images(tmp_path, monkeypatch):
    monkeypatch.setattr(memorisation, "PAIRS", 2)
    ours, training = (torch.arange(n, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 6) for n in (9, 200))
    by_pixels = Neighbours(np.array([150, 151, 152]), np.array([3.0, 1.0, 2.0]))
    by_features = Neighbours(np.array([180, 181, 182]), np.array([0.5, 9.0, 0.1]))
    rows = np.array([2, 5, 8])
    for _ in range(2):  # an evaluation that is repeated draws it again
        save_pairs(tmp_path / "pairs.png", Images(ours), Images(training), (by_pixels, rows), (by_features, rows))
    picture = np.asarray(Image.open(tmp_path / "pairs.png").convert("L")).astype(int)
    shown = [value for value, _ in itertools.groupby(picture[:, 5].tolist())]
    second = [value for value, _ in itertools.groupby(picture[:, -5].tolist())]
    assert [value for value in shown if value in (5, 151, 8, 182)] == [5, 151, 8, 182]
    assert [value for value in second if value in (8, 152, 2, 180)] == [8, 152, 2, 180]


@pytest.mark.parametrize("chunk", BLOCKS)
def test_small_images_are_those_of_the_rows_at_any_chunk_size(chunk):
    images = torch.randint(0, 256, (21, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([3, 4, 20, 0, 11])
    every, some = Images(images, chunk=chunk), Images(images, chunk=chunk)
    assert torch.equal(small(every), images)
    assert torch.equal(small(some, rows), images[rows])
    assert max(every.asked) <= chunk


def test_normalise_gives_three_channels_of_the_classifiers_size():
    grey = torch.tensor([0, 255, 51, 102], dtype=torch.uint8).reshape(1, 1, 2, 2)
    found = normalise(grey)
    assert found.shape == (1, 3, 32, 32)
    assert torch.equal(found[:, 0], found[:, 2])
    corners = found[0, 1][[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, torch.tensor([-1.0, 1.0, 51 / 127.5 - 1, 102 / 127.5 - 1]))
    stripes = torch.tensor([255, 0, 0], dtype=torch.uint8).repeat(32).expand(1, 1, 96, 96)
    torch.testing.assert_close(normalise(stripes)[..., 2:-2], torch.full((1, 3, 32, 28), -1 / 3), atol=1e-4, rtol=0)
    exact = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(normalise(exact), exact.float() / 127.5 - 1)


def test_classifier_is_two_halvings_each_with_a_residual_block_and_a_mean():
    """He et al. 2016's block, written out in float64 with the statistics that evaluation uses."""
    model = Classifier(5).double().eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.ndim == 1:  # of the norms, and the last bias
                tensor.copy_(torch.rand(len(tensor)) + (0.1 if "var" in name else -0.4))
    weights, x = model.state_dict(), torch.linspace(-20, 30, 2 * 3 * 13 * 10).double().sin().view(2, 3, 13, 10)

    def layer(h, conv, norm, stride):
        h = F.conv2d(h, weights[f"{conv}.weight"], stride=stride, padding=1)
        mean, variance, gain, bias = (
            weights[f"{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (h - mean) / (variance + 1e-5).sqrt() * gain + bias

    h = x
    for first in (0, 2):
        h = layer(h, f"trunk.{first}.0", f"trunk.{first}.1", 2).relu()
        block = f"trunk.{first + 1}"
        inner = layer(h, f"{block}.conv1", f"{block}.norm1", 1).relu()
        h = (h + layer(inner, f"{block}.conv2", f"{block}.norm2", 1)).relu()
    assert h.shape == (2, 64, 4, 3)
    features = h.mean((2, 3))
    assert (features > 0.01).double().mean() > 0.3
    torch.testing.assert_close(model.features(x), features)
    torch.testing.assert_close(model(x), features @ weights["head.weight"].T + weights["head.bias"])


@pytest.mark.parametrize("batch", [1, 4, 9, 100])
def test_predictions_and_accuracy_do_not_depend_on_the_batch(batch):
    torch.manual_seed(0)
    model = Classifier(3).eval()
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    images[::2] //= 5
    single = torch.cat([model(normalise(image[None])).argmax(1) for image in images])
    assert torch.equal(predict(model, images, batch).argmax(1), single)
    labels = single.clone()
    labels[[1, 4]] = (labels[[1, 4]] + 1) % 3
    assert accuracy(model, images, labels) == pytest.approx(7 / 9)


def test_shifted_images_are_crops_of_the_repeated_edge():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    crops = {(dy, dx): padded[..., dy : dy + 32, dx : dx + 32] for dy in range(5) for dx in range(5)}
    generator, seen = torch.Generator().manual_seed(3), set()
    for _ in range(300):
        found = classifier._shifted(x, generator).numpy()
        (shift,) = [at for at, crop in crops.items() if np.array_equal(found, crop)]
        seen.add(shift)
    assert seen == set(crops)


def test_train_classifier_is_adamw_over_shuffled_epochs_with_one_cycle(monkeypatch):
    """Written out: cross-entropy smoothed by 0.05, weight decay 0.01, and a batch of one image is passed over."""
    monkeypatch.setattr(classifier, "_shifted", lambda x, generator: x)
    draw = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        reference = Classifier(3).to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-3, total_steps=6)
    order = torch.Generator().manual_seed(7)
    for _ in range(2):
        shuffled = torch.randperm(9, generator=order)
        for rows in (shuffled[:4], shuffled[4:8]):
            log_p = reference(images[rows] / 127.5 - 1).log_softmax(1)
            truth = torch.full((4, 3), 0.05 / 3)
            truth[range(4), labels[rows]] += 0.95
            adam.zero_grad()
            (-(truth * log_p).sum(1)).mean().backward()
            adam.step()
            cycle.step()
    found = train_classifier(images, labels, 3, epochs=2, batch_size=4, learning_rate=1e-3, seed=7)
    assert not found.training
    for name, tensor in reference.eval().state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_accuracy_score_gives_each_classifier_its_own_images_and_the_test_sets_classes(monkeypatch):
    """Labels follow the names of the test set, rows are thinned alike for images and labels; the budget is fixed."""
    calls = []

    def trained(images, labels, num_classes, **options):
        calls.append((images[:, 0, 0, 0].tolist(), labels.tolist(), num_classes, options))
        return len(calls)

    monkeypatch.setattr(classifier, "train_classifier", trained)
    monkeypatch.setattr(classifier, "accuracy", lambda model, images, labels: model / 10)
    level = torch.arange(12, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    ours = Images(level + 100, torch.arange(12) % 2, ["b", "a"], title="ours")
    real = Images(level[:5] + 50, torch.tensor([0, 1, 1, 0, 2]), ["a", "b", "c"], title="real")
    test = Images(level[:4], torch.tensor([0, 1, 2, 2]), ["c", "b", "a"], title="test")
    score = classifier.classification_accuracy_score(ours, real, test, progress=False)
    assert score == (0.1, 0.2, 5)
    rows = subset_rows(12, 5)
    assert calls[0][0] == (rows + 100).tolist()
    assert calls[0][1] == [1 if row % 2 == 0 else 2 for row in rows.tolist()]  # "b" is 1, "a" is 2
    assert calls[1][:2] == ([50, 51, 52, 53, 54], [2, 1, 1, 2, 0])
    for _, _, classes, options in calls:
        assert classes == 3
        assert (options["epochs"], options["batch_size"]) == (40, 16)
    monkeypatch.setattr(classifier, "small", lambda images, rows=None: torch.zeros(2, 1, 1, 1))
    many = Images(torch.zeros(50_000, 1, 1, 1), torch.zeros(50_000, dtype=torch.long), ["c"])
    classifier.classification_accuracy_score(many, many, test, progress=False)
    assert (calls[-1][3]["epochs"], calls[-1][3]["batch_size"]) == (8, 128)
