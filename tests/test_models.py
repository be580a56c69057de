"""Models: what a plain torch.nn model computes, for many rows at once and for each row by itself.

Rounding: `forward` carries a running bound of the error along the reference, so that a tolerance is
the sum of what both sides can lose. Where the arithmetic is exact (small whole numbers) or the same
(the same shapes), results are compared bit by bit.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from teleport_bench.errors import UserError
from teleport_bench.models import layers
from teleport_bench.registry import MODELS

U = 2.0**-53
MNIST = (1, 28, 28)
REGISTERED = MODELS.names()

PLAIN = {
    "logistic": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)),
    "lenet": lambda: nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(2, 6)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(4, 16)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, 10),
    ),
}


CIFAR = (3, 32, 32)


def plain_vgg11(width=64, n_classes=10):
    """Configuration A of Simonyan and Zisserman, read off its list."""
    modules, channels = [], 3
    for filters in (1, "M", 2, "M", 4, 4, "M", 8, 8, "M", 8, 8, "M"):
        if filters == "M":
            modules.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.Conv2d(channels, filters * width, 3, padding=1)
        modules += [conv, nn.GroupNorm(8, filters * width), nn.ReLU()]
        channels = filters * width
    return nn.Sequential(*modules, nn.Flatten(), nn.Linear(channels, n_classes))


class BasicBlock(nn.Module):
    def __init__(self, channels, filters):
        super().__init__()
        self.channels, self.filters = channels, filters
        stride = filters // channels
        self.conv1 = nn.Conv2d(channels, filters, 3, stride=stride, padding=1)
        self.norm1 = nn.GroupNorm(8, filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, filters)

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.filters > self.channels:
            zeros = torch.zeros(len(y), (self.filters - self.channels) // 2, *y.shape[2:])
            x = torch.cat([zeros.to(x), F.max_pool2d(x, 1, stride=2), zeros.to(x)], dim=1)
        return F.relu(x + y)


def plain_resnet20(channels=3, n_classes=10):
    blocks = [BasicBlock(a, b) for a, b in pairwise((16, 16, 16, 16, 32, 32, 32, 64, 64, 64))]
    stem = nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.ReLU()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, n_classes)
    return nn.Sequential(*stem, *blocks, *head)


DEEP = {
    "vgg11": ({"name": "vgg11", "width": 8}, CIFAR, lambda: plain_vgg11(8)),
    "resnet20": ({"name": "resnet20"}, CIFAR, plain_resnet20),
    "resnet20 in grey": ({"name": "resnet20"}, MNIST, lambda: plain_resnet20(1)),
}


def build(name, input_shape=MNIST, n_classes=10, **options):
    return MODELS.build(MODELS.resolve({"name": name, **options}), input_shape, n_classes)


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def whole_numbers(*shape, seed=0):
    """Small integers: their sums of products are exact in float32, whatever the order."""
    drawn = np.random.default_rng(seed).integers(-3, 4, shape)
    return torch.from_numpy(drawn.astype(np.float32))


def parameters(network, rows, seed=0):
    """(rows, P) float64, near the initial values but different in each row, norm layers too."""
    start = torch.from_numpy(network.init(np.random.default_rng(seed)))
    return start + 0.1 * random(rows, network.n_params, seed=seed)


def fill(plain, row):
    """Copy a flat row into a torch.nn model, whose Linear keeps its weights transposed."""
    at = 0
    with torch.no_grad():
        for p in plain.parameters():
            part = row[at : at + p.numel()]
            p.copy_(part.view(p.shape[::-1]).T if p.ndim == 2 else part.view(p.shape))
            at += p.numel()
    assert at == len(row)
    return plain


def gamma(n):
    """Relative error of n rounded operations in a row (Higham 2002, section 3.1)."""
    return n * U / (1 - n * U)


def forward(plain, x):
    """The output of a torch.nn chain, and what any float64 evaluation of it can be off by."""
    error = torch.zeros_like(x)
    for module in plain:
        y = module(x)
        if isinstance(module, nn.Linear | nn.Conv2d):
            terms = module.weight[0].numel() + 1
            weight, bias = module.weight.abs(), module.bias.abs()
            op = F.linear if isinstance(module, nn.Linear) else F.conv2d
            error = op(error, weight) + gamma(terms) * op(x.abs() + error, weight, bias)
        elif isinstance(module, nn.GroupNorm):
            error = group_norm_error(module, x, error)
        elif isinstance(module, nn.MaxPool2d | nn.Flatten):
            error = module(error)
        else:
            assert isinstance(module, nn.ReLU)
        x = y
    return x, error


def group_norm_error(norm, x, error):
    parts, e = (v.view(len(x), norm.num_groups, -1) for v in (x, error))
    m = parts.shape[-1]
    worst = e.amax(-1, keepdim=True)
    largest = parts.abs().amax(-1, keepdim=True) + worst
    mean = parts.mean(-1, keepdim=True)
    std = (parts.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    d_mean = worst + gamma(m + 1) * largest
    # std is 1-Lipschitz in the maximum norm; its variance is two sums of m squares at worst
    d_std = worst + 4 * gamma(m + 4) * largest**2 / std
    smallest = std - d_std
    assert (smallest > 0).all()
    d = (
        e + d_mean + (parts - mean).abs() / std * d_std + 4 * U * (largest + mean.abs())
    ) / smallest
    normal, d = ((parts - mean) / std).view_as(x), d.view_as(x)
    weight, bias = (p.abs().view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return weight * d + gamma(3) * (weight * (normal.abs() + d) + bias)


@pytest.fixture(params=REGISTERED)
def network(request):
    """Every registered model, on images that are large enough for all of them."""
    return build(request.param, (3, 32, 32), 7)


# What every model promises


def test_the_views_of_a_parameter_tensor_cover_each_row_exactly_once(network):
    x = torch.arange(3 * network.n_params, dtype=torch.float64).view(3, -1)
    views = network.views(x)
    assert torch.equal(torch.cat([v.flatten(1) for v in views], dim=1), x)
    for view in views:
        view.fill_(-1)
    assert (x == -1).all()  # views, not copies


def test_the_logits_have_one_number_a_class_for_every_sample_of_every_row(network):
    x = parameters(network, 2).float()
    logits = network.logits(network.views(x), random(2, 5, 3, 32, 32).float())
    assert logits.shape == (2, 5, 7)
    assert logits.isfinite().all()


def test_a_row_does_not_feel_the_other_rows(network):
    x, inputs = parameters(network, 3).float(), random(3, 4, 3, 32, 32).float()
    before = network.logits(network.views(x), inputs)
    x[[0, 2]], inputs[[0, 2]] = -x[[0, 2]], 7 * inputs[[0, 2]]
    after = network.logits(network.views(x), inputs)
    assert torch.equal(after[1], before[1])
    assert (after[[0, 2]] != before[[0, 2]]).any(-1).all()


def test_a_sample_does_not_feel_the_other_samples_of_its_batch(network):
    params, inputs = network.views(parameters(network, 2).float()), random(2, 5, 3, 32, 32).float()
    before = network.logits(params, inputs)
    others = [0, 1, 2, 4]
    inputs[:, others] = 7 - inputs[:, others]
    after = network.logits(params, inputs)
    assert torch.equal(after[:, 3], before[:, 3])
    assert (after[:, others] != before[:, others]).any(-1).all()


def test_initial_parameters_are_reproducible_and_differ_between_seeds(network):
    first, same, other = (network.init(np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (network.n_params,)
    assert first.dtype == np.float32
    assert (first == same).all()
    assert (first != other).any()


def test_initial_parameters_fill_the_default_bounds_of_pytorch(network):
    views = iter(network.views(torch.from_numpy(network.init(np.random.default_rng(0)))[None]))
    for layer in leaves(network.layers):
        values = [next(views)[0] for _ in layer.shapes]
        if isinstance(layer, layers.GroupNorm):
            scale, shift = values
            assert (scale == 1).all()
            assert (shift == 0).all()
            continue
        for v in values:
            # torch.nn.Linear and Conv2d: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), weight and bias
            fan_in = layer.inputs if isinstance(layer, layers.Linear) else values[0][0].numel()
            bound, m = 1 / math.sqrt(fan_in), v.numel()
            assert v.abs().max() <= np.float32(bound)
            # all m below (1 - 25/m) of the bound: probability under exp(-25)
            assert v.abs().max() >= bound * (1 - 25 / m)
            # Hoeffding: a larger mean has a probability under 2 exp(-25)
            assert abs(v.double().mean()) <= bound * math.sqrt(2 * 25 / m)


def leaves(chain):
    for layer in chain:
        yield from leaves(layer.body) if isinstance(layer, layers.Residual) else [layer]


# Parameter counts


@pytest.mark.parametrize(
    ("name", "count", "plain"),
    [("vgg11", 9_231_114, plain_vgg11), ("resnet20", 270_410, plain_resnet20)],
)
def test_the_parameter_count_on_cifar_is(name, count, plain):
    assert build(name, CIFAR).n_params == count
    assert sum(p.numel() for p in plain().parameters()) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [("lenet", 44_470), ("logistic", 7_850), ("mlp", 784 * 64 + 64 + 64 * 10 + 10)],
)
def test_the_parameter_count_on_mnist_is(name, count):
    network = build(name)
    assert network.n_params == count
    assert network.init(np.random.default_rng(0)).shape == (count,)
    assert sum(p.numel() for p in PLAIN[name]().parameters()) == count


@settings(deadline=None, max_examples=30)
@given(
    hidden=st.lists(st.integers(1, 9), max_size=3),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    n_classes=st.integers(2, 5),
)
def test_the_parameter_count_of_an_mlp_follows_from_its_widths(hidden, shape, n_classes):
    widths = [math.prod(shape), *hidden, n_classes]
    count = sum((a + 1) * b for a, b in pairwise(widths))
    assert build("mlp", shape, n_classes, hidden=hidden).n_params == count


@settings(deadline=None, max_examples=30)
@given(channels=st.integers(1, 3), height=st.integers(16, 40), width=st.integers(16, 40))
def test_lenet_takes_every_image_of_at_least_16x16(channels, height, width):
    network = build("lenet", (channels, height, width))
    x = parameters(network, 2).float()
    logits = network.logits(network.views(x), random(2, 1, channels, height, width).float())
    assert logits.shape == (2, 1, 10)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 15, 28), (1, 28, 15)])
def test_lenet_refuses_smaller_images_and_names_their_size(shape):
    with pytest.raises(UserError, match=f"16x16, got {shape[1]}x{shape[2]}"):
        build("lenet", shape)


@settings(deadline=None, max_examples=10)
@given(height=st.integers(32, 70), width=st.integers(32, 70))
def test_vgg11_takes_every_image_of_at_least_32x32(height, width):
    network = build("vgg11", (1, height, width), width=8)
    x = parameters(network, 2).float()
    logits = network.logits(network.views(x), random(2, 1, 1, height, width).float())
    assert logits.shape == (2, 1, 10)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 31, 32), (3, 32, 31)])
def test_vgg11_refuses_smaller_images_and_says_what_fits(shape):
    with pytest.raises(UserError, match=f"32x32, got {shape[1]}x{shape[2]}: take resnet20"):
        build("vgg11", shape)


@pytest.mark.parametrize("width", [0, 4, 12, 64.5])
def test_the_width_of_vgg11_is_in_whole_groups(width):
    with pytest.raises(ValidationError, match="width"):
        build("vgg11", CIFAR, width=width)


def products(plain, shape):
    """Multiplications by weights, counted where torch makes them: one an output and input of it."""
    counts = []

    def count(module, _, y):
        counts.append(y[0].numel() * module.weight[0].numel())

    for module in plain.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    plain(torch.zeros(1, *shape))
    return counts


@pytest.mark.parametrize("name", sorted(DEEP))
def test_operations_are_two_a_product_in_each_of_three_passes_but_the_first_layer_s_third(name):
    choice, shape, plain = DEEP[name]
    first, *others = products(plain(), shape)
    assert build(**choice, input_shape=shape).operations(shape) == 4 * first + 6 * sum(others)


# Against torch.nn


@pytest.mark.parametrize("name", sorted(DEEP))
def test_deep_models_and_their_gradients_are_those_of_torch_nn(name):
    choice, shape, plain = DEEP[name]
    network, rows, batch = build(**choice, input_shape=shape), 2, 3
    x = parameters(network, rows).requires_grad_()
    inputs = random(rows, batch, *shape, seed=1)
    labels = torch.from_numpy(np.random.default_rng(2).integers(10, size=(rows, batch)))
    logits = network.logits(network.views(x), inputs)
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for a in range(rows):
        other = fill(plain().double(), x[a].detach())
        expected = other(inputs[a])
        F.cross_entropy(expected, labels[a], reduction="sum").backward()
        gradient = torch.cat(
            [(p.grad.T if p.ndim == 2 else p.grad).flatten() for p in other.parameters()]
        )
        # float64 loses 1e-13 here; a layer that is wrong anywhere moves the first digits
        for found, wanted in ((logits[a], expected), (x.grad[a], gradient)):
            assert (found - wanted).norm() <= 1e-10 * wanted.norm()


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_logits_are_those_of_a_plain_model_with_the_same_parameters(name):
    network, rows, batch = build(name), 3, 4
    x, inputs = parameters(network, rows), random(rows, batch, *MNIST, seed=1)
    logits = network.logits(network.views(x), inputs)
    for a in range(rows):
        expected, error = forward(fill(PLAIN[name]().double(), x[a]), inputs[a])
        assert error.max() < 1e-6  # worst cases multiply up, yet any mistake is larger
        assert ((logits[a] - expected).abs() <= 2 * error).all()


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_a_row_among_other_rows_equals_the_row_alone(name):
    network, rows = build(name), 4
    x, inputs = parameters(network, rows), random(rows, 3, *MNIST, seed=1)
    logits = network.logits(network.views(x), inputs)
    for a in range(rows):
        alone = network.logits(network.views(x[a : a + 1]), inputs[a : a + 1])[0]
        _, error = forward(fill(PLAIN[name]().double(), x[a]), inputs[a])
        assert ((logits[a] - alone).abs() <= 2 * error).all()


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_permuting_the_batch_permutes_the_logits(name):
    network = build(name)
    x, inputs = parameters(network, 1), random(1, 8, *MNIST, seed=1)
    order = torch.from_numpy(np.random.default_rng(0).permutation(8))
    logits = network.logits(network.views(x), inputs)[0]
    permuted = network.logits(network.views(x), inputs[:, order])[0]
    _, error = forward(fill(PLAIN[name]().double(), x[0]), inputs[0])
    assert ((permuted - logits[order]).abs() <= 2 * error[order]).all()


@settings(deadline=None, max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 20), max_size=2),
    rows=st.integers(1, 4),
    batch=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_fully_connected_models_are_exact_in_whole_numbers(hidden, rows, batch, seed):
    """So rows alone, rows among others and permuted batches agree in every bit."""
    network = build("mlp", (2, 3, 4), 5, hidden=hidden)
    x = whole_numbers(rows, network.n_params, seed=seed)
    inputs = whole_numbers(rows, batch, 2, 3, 4, seed=seed + 1)
    logits = network.logits(network.views(x), inputs)

    widths = [24, *hidden, 5]
    for a in range(rows):
        y, at = inputs[a].flatten(1).long().numpy(), 0
        flat = x[a].long().numpy()
        for layer, (m, n) in enumerate(pairwise(widths)):
            y = np.maximum(y, 0) if layer else y
            y = y @ flat[at : at + m * n].reshape(m, n) + flat[at + m * n : at + m * n + n]
            at += m * n + n
        assert logits[a].long().tolist() == y.tolist()
        assert torch.equal(logits[a], logits[a].round())
        alone = network.logits(network.views(x[a : a + 1]), inputs[a : a + 1])[0]
        assert torch.equal(logits[a], alone)
    assert torch.equal(network.logits(network.views(x), inputs.flip(1)), logits.flip(1))


def test_logistic_regression_is_an_mlp_without_hidden_layers():
    logistic, mlp = build("logistic"), build("mlp", hidden=())
    x, inputs = parameters(logistic, 2), random(2, 3, *MNIST)
    assert logistic.sizes == mlp.sizes
    assert torch.equal(logistic.logits(logistic.views(x), inputs), mlp.logits(mlp.views(x), inputs))


# Layers, each against torch.nn


def apply(layer, x, seed=0, draw=whole_numbers):
    """The layer on x (rows, batch, ...) with parameters of its own for each row, and these."""
    params = [draw(len(x), *s, seed=seed + i).double() for i, s in enumerate(layer.shapes)]
    return layer(x, *params), params


sizes = st.integers(1, 4)


@settings(deadline=None, max_examples=40)
@given(
    rows=sizes,
    batch=sizes,
    channels=sizes,
    filters=sizes,
    kernel=st.integers(1, 3),
    padding=st.integers(0, 2),
    stride=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    seed=st.integers(0, 2**32),
)
def test_conv2d_is_torchs_for_every_row_exactly_in_whole_numbers(
    rows, batch, channels, filters, kernel, padding, stride, height, width, seed
):
    x = whole_numbers(rows, batch, channels, height, width, seed=seed).double()
    layer = layers.Conv2d(channels, filters, kernel, padding, stride)
    y, (weight, bias) = apply(layer, x, seed + 1)
    assert y.shape[2:] == layer.output((channels, height, width))
    assert torch.equal(layer.grouped(x, weight, bias), y)
    assert torch.equal(layer.row_by_row(x, weight, bias), y)
    for a in range(rows):
        expected = F.conv2d(x[a], weight[a], bias[a], padding=padding, stride=stride)
        assert torch.equal(y[a], expected)


@settings(deadline=None, max_examples=40)
@given(
    rows=sizes,
    batch=sizes,
    channels=sizes,
    more=st.integers(0, 3),
    stride=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
    seed=st.integers(0, 2**32),
)
def test_a_residual_adds_its_input_at_every_stride_th_place_and_nothing_to_new_channels(
    rows, batch, channels, more, stride, height, width, seed
):
    x = whole_numbers(rows, batch, channels, height, width, seed=seed).double()
    body = layers.Conv2d(channels, channels + more, 3, 1, stride)
    residual = layers.Residual([body], stride)
    y, params = apply(residual, x, seed + 1)
    assert y.shape[2:] == residual.output((channels, height, width))
    added = y - body(x, *params)
    for r in range(added.shape[3]):
        for c in range(added.shape[4]):
            expected = torch.zeros(rows, batch, channels + more)
            first = more // 2
            expected[..., first : first + channels] = x[..., r * stride, c * stride]
            assert torch.equal(added[..., r, c], expected.double())


@settings(deadline=None, max_examples=20)
@given(rows=sizes, batch=sizes, channels=sizes, side=st.sampled_from([1, 2, 4, 8]))
def test_the_mean_of_a_channel_is_exact_in_whole_numbers(rows, batch, channels, side):
    x = whole_numbers(rows, batch, channels, side, side)
    y = layers.GlobalAvgPool2d()(x)
    assert y.shape == (rows, batch, channels)
    assert (y.numpy() == x.numpy().sum((3, 4)) / side**2).all()


@settings(deadline=None, max_examples=40)
@given(
    rows=sizes,
    batch=sizes,
    channels=sizes,
    size=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
)
def test_max_pool_is_torchs_for_every_row(rows, batch, channels, size, height, width):
    x = random(rows, batch, channels, height, width)
    y, _ = apply(layers.MaxPool2d(size), x)
    for a in range(rows):
        assert torch.equal(y[a], nn.MaxPool2d(size)(x[a]))


@settings(deadline=None, max_examples=40)
@given(
    rows=sizes,
    batch=sizes,
    groups=sizes,
    per_group=sizes,
    side=st.integers(2, 6),
    offset=st.floats(-10, 10),
    seed=st.integers(0, 2**32),
)
def test_group_norm_is_torchs_for_every_row(rows, batch, groups, per_group, side, offset, seed):
    channels = groups * per_group
    x = random(rows, batch, channels, side, side, seed=seed) + offset
    y, (scale, shift) = apply(layers.GroupNorm(groups, channels), x, seed + 1, random)
    for a in range(rows):
        norm = nn.GroupNorm(groups, channels).double()
        fill(norm, torch.cat([scale[a], shift[a]]))
        expected, error = forward([norm], x[a])
        assert ((y[a] - expected).abs() <= 2 * error).all()


def test_group_norm_gives_each_group_of_each_sample_mean_0_and_variance_1():
    x = 3 * random(2, 3, 6, 5, 5) + 1
    y = layers.GroupNorm(2, 6)(x, torch.ones(2, 6).double(), torch.zeros(2, 6).double())
    groups, raw = (v.view(2, 3, 2, -1) for v in (y, x))
    variance = raw.var(-1, correction=0)
    # means of 150 numbers below 5, and of squares below 25
    assert groups.abs().max() < 5
    assert groups.mean(-1).abs().max() <= 5 * gamma(200)
    expected = variance / (variance + 1e-5)
    assert (groups.var(-1, correction=0) - expected).abs().max() <= 25 * gamma(200)
