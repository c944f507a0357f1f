import pytest
import torch
from ops.contracts import FlowContracts, assert_same, results, threads

import gmfast.functional as GF
from gmfast import reference


class TestContracts(FlowContracts):
    summed = (1, 3, 4)  # log_det, and the gradients by shift and log_scale
    shared = (1, 2)
    headroom = 1e-6

    def forward(self, x, shift, log_scale, inverse=False):
        return GF.actnorm(x, shift, log_scale, inverse=inverse)

    def plain_forward(self, x, shift, log_scale, inverse=False):
        return reference.actnorm(x, shift, log_scale, inverse=inverse)

    def inputs(self, shape, dtype, device):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        tensors = (2 * torch.randn(batch, 10, *spatial, generator=generator),)
        tensors += tuple(torch.randn(10, generator=generator) for _ in range(2))
        return [t.to(device, dtype) for t in tensors]

    def operators(self, x, shift, log_scale):
        y, log_det = (t.detach().requires_grad_() for t in GF.actnorm(x, shift, log_scale))
        gradient = torch.ops.gmfast.actnorm_backward.default
        return [
            (torch.ops.gmfast.actnorm.default, (x, shift, log_scale, self.inverse)),
            (gradient, (y, log_det, x, shift, log_scale, self.inverse, True, True)),
        ]


class TestInverse(TestContracts):
    inverse = True


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(513, 2), (70, 6), (3, 300), (40, 12, 8, 8), (2, 3, 130, 70), (5, 7, 1, 1), (4, 1, 9), (9, 520, 2)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_channels(device, shape, channels_last, inverse):
    """Sums over many samples and pixels, few and many channels, in every way that they are walked: the bits
    depend on nothing but the sizes and the memory order, and are those of a sum in double."""
    generator = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, *shape, generator=generator).to(device).unbind(0)
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    shift, log_scale = torch.randn(2, shape[1], generator=generator).to(device).unbind(0)
    inputs = [x, shift, log_scale]

    def call(x, shift, log_scale):
        return GF.actnorm(x, shift, log_scale, inverse=inverse)

    def incoming(y):
        return grad.to(y) if y.dim() > 1 else torch.full_like(y, 0.5)

    ours = results(call, inputs, incoming)
    exact = results(lambda *t: reference.actnorm(*t, inverse=inverse), [t.double() for t in inputs], incoming)
    for a, e in zip(ours, exact, strict=True):
        # Each term is rounded, and their sum once: the bound grows as a random walk.
        scale = (x.numel() / shape[1]) ** 0.5 * log_scale.abs().max().exp() * 4
        assert ((a - e).abs() <= 1e-6 * (e.abs() + scale)).all()
    for count in (1, 2, 5):
        with threads(count):
            assert_same(results(call, inputs, incoming), ours)


def test_only_one_output_is_used(device):
    x, shift, log_scale = TestContracts().inputs((3, 5), torch.float64, device)
    for used in (0, 1):
        for wanted in ([0], [1], [2], [0, 1, 2]):
            gradients = []
            for function in (GF.actnorm, reference.actnorm):
                leaves = [t.detach().requires_grad_(i in wanted) for i, t in enumerate((x, shift, log_scale))]
                # Added: everything there is, times 0, so that plain PyTorch has a graph too.
                total = function(*leaves)[used].sum() + 0 * sum(t.sum() for t in leaves)
                gradients.append(torch.autograd.grad(total, [leaves[i] for i in wanted]))
            torch.testing.assert_close(*gradients)


def test_parameters_in_the_shape_of_a_module(device):
    x, shift, log_scale = TestContracts().inputs((3, 5, 4), torch.float32, device)
    expected = results(GF.actnorm, [x, shift, log_scale])
    actual = results(GF.actnorm, [x, shift.view(1, 10, 1, 1), log_scale.view(1, 10, 1, 1)])
    assert_same([t.flatten() for t in actual], [t.flatten() for t in expected])
    assert actual[-1].shape == (1, 10, 1, 1)


@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float16),
        (torch.float16, torch.float64, torch.float32),
    ],
)
def test_mixed_dtypes(device, dtypes):
    tensors = TestContracts().inputs((3, 5, 4), torch.float32, device)
    tensors = [t.to(dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    y, log_det, *grads = results(GF.actnorm, tensors)
    computed = torch.float64 if torch.float64 in dtypes else torch.float32
    assert y.dtype == dtypes[0] and log_det.dtype == computed
    expected = results(GF.actnorm, [t.to(computed) for t in tensors])
    assert_same([y, log_det, *grads], [e.to(t) for e, t in zip(expected, [y, log_det, *grads], strict=True)])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("x", torch.ones(2), torch.ones(2)), TypeError, r"x: expected a torch\.Tensor, got str"),
        ((torch.ones(2), torch.ones(2), torch.ones(2)), ValueError, r"x: expected shape \(B, C, \*S\)"),
        ((torch.ones(2, 3), torch.ones(2), torch.ones(3)), ValueError, r"shift: .* \(3,\), got \(2,\)"),
        ((torch.ones(2, 3), torch.ones(3), torch.ones(1, 2)), ValueError, r"log_scale: .* got \(1, 2\)"),
        ((torch.ones(2, 3), torch.ones(3), 0.5), TypeError, r"log_scale: expected a torch\.Tensor"),
        (
            (torch.ones(2, 3), torch.ones(3, dtype=torch.int64), torch.ones(3)),
            TypeError,
            r"shift: expected float32, .* got int64",
        ),
        ((torch.ones(2, 3), torch.ones(3, device="meta"), torch.ones(3)), ValueError, "one device"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GF.actnorm(*arguments)


@pytest.mark.parametrize("shape", [(2, 0), (2, 0, 3), (0, 0, 3)])
def test_no_channels(device, shape):
    x, channels = torch.ones(shape, device=device), torch.ones(0, device=device)
    for function in (GF.actnorm, reference.actnorm):
        y, log_det = function(x, channels, channels)
        assert y.shape == x.shape and torch.equal(log_det, torch.zeros(shape[0], device=device))
