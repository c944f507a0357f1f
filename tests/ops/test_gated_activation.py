import mpmath
import pytest
import torch
from ops.contracts import LAYOUTS, Contracts, assert_accurate, assert_same, results

import gmfast.functional as GF
from gmfast import reference


class TestContracts(Contracts):
    def call(self, x):
        return GF.gated_activation(x)

    def plain(self, x):
        return reference.gated_activation(x)

    def inputs(self, shape, dtype, device, channels=10):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [(2 * torch.randn(batch, channels, *spatial, generator=generator)).to(device, dtype)]

    def operators(self, x):
        y = GF.gated_activation(x)
        return [
            (torch.ops.gmfast.gated_activation.default, (x, None, 1)),
            (torch.ops.gmfast.gated_activation_backward.default, (y.detach().requires_grad_(), x, 1)),
        ]


class TestResidual(TestContracts):
    conditioned = (0, 1)

    def call(self, x, residual):
        return GF.gated_activation(x, residual)

    def plain(self, x, residual):
        return reference.gated_activation(x, residual)

    def inputs(self, shape, dtype, device):
        (x,) = super().inputs(shape, dtype, device)
        return [x, torch.randn(x[:, ::2].shape, generator=torch.Generator().manual_seed(3)).to(x)]

    def operators(self, x, residual):
        return [(torch.ops.gmfast.gated_activation.default, (x, residual, 1))]

    def test_layout_of_results(self, device):
        """The residual's gradient is the incoming one; x decides the output's layout."""
        x, residual = (LAYOUTS["channels_last"](t) for t in self.inputs((3, 5, 19), torch.float32, device))
        assert GF.gated_activation(x, residual.contiguous()).movedim(1, -1).is_contiguous()
        assert GF.gated_activation(x.contiguous(), residual).is_contiguous()


class TestOtherDimension(TestContracts):
    """The last dimension, whose halves interleave in memory; (B, S, C) is laid out as any tensor."""

    def call(self, x):
        return GF.gated_activation(x.movedim(1, -1), dim=-1).movedim(-1, 1)

    def plain(self, x):
        return reference.gated_activation(x.movedim(1, -1), dim=-1).movedim(-1, 1)

    def operators(self, x):
        last = x.detach().movedim(1, -1).requires_grad_()
        return [(torch.ops.gmfast.gated_activation.default, (last, None, x.dim() - 1))]

    test_layout_of_results = None  # movedim's, not the operation's


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_against_mpmath(device, dtype):
    """Relative accuracy, also where tanh and sigmoid are small: about 2 ulp each, and two roundings."""
    small = 10.0 ** -torch.arange(0.0, 30)
    a = torch.cat([small, -small, torch.randn(200) * 4])
    b = torch.cat([torch.randn(60), torch.rand(200) * 80 - 50])
    x = torch.stack([a, b]).T.to(device, dtype)
    with mpmath.workdps(60):
        exact = [float(mpmath.tanh(a) / (1 + mpmath.exp(-mpmath.mpf(b)))) for a, b in x.tolist()]
    exact = torch.tensor(exact, dtype=torch.float64)[:, None]
    y = GF.gated_activation(x).double().cpu()
    assert ((y - exact) / exact).abs().max() <= 6 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_dimension(device, dtype):
    x, residual = torch.randn(4, 6, 8, 10).to(device, dtype), torch.randn(4, 6, 8, 10).to(device, dtype)
    for dim in (-4, -1, 0, 1, 2, 3):
        assert_accurate(
            lambda x, r, dim=dim: GF.gated_activation(x, r, dim=dim),
            lambda x, r, dim=dim: torch.add(
                torch.tanh(x.chunk(2, dim)[0]) * torch.sigmoid(x.chunk(2, dim)[1]), r
            ),
            [x, residual.narrow(dim, 0, x.shape[dim] // 2)],
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", range(4))
def test_every_dimension_of_every_layout(device, layout, dim):
    x = torch.randn(4, 6, 2, 10, device=device)
    expected = results(lambda x: GF.gated_activation(x, dim=dim), [x])
    assert_same(results(lambda x: GF.gated_activation(x, dim=dim), [LAYOUTS[layout](x)]), expected)


def test_saturation(device):
    """Far out, both functions are at their ends and every gradient is 0 (or that of the other)."""
    x = torch.tensor(
        [[1e4, 1e4], [-1e4, 1e4], [1e4, -1e4], [1e4, 0.0], [0.0, 1e4], [0.0, -1e4]], device=device
    )
    y, grad = results(GF.gated_activation, [x], torch.ones_like)
    # What the sigmoid leaves at -1e4 is below 1e-26: it stops at -60, where no sum can tell it from 0.
    torch.testing.assert_close(y.flatten().cpu(), torch.tensor([1, -1, 0, 0.5, 0, 0]), rtol=0, atol=1e-26)
    expected = torch.tensor([[0, 0], [0, 0], [0, 0], [0, 0.25], [1, 0], [0, 0]])
    torch.testing.assert_close(grad.cpu(), expected, rtol=0, atol=1e-7)


def test_infinity(device):
    inf = torch.inf
    x = torch.tensor([[inf, inf], [-inf, inf], [inf, -inf], [inf, 0.0]], device=device)
    torch.testing.assert_close(
        GF.gated_activation(x).flatten().cpu(), torch.tensor([1, -1, 0, 0.5]), rtol=0, atol=1e-26
    )


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("x",), TypeError, r"x: expected a torch\.Tensor, got str"),
        ((torch.ones(2, 2, dtype=torch.int64),), TypeError, r"x: expected float32, .* got int64"),
        ((torch.ones(2, 3),), ValueError, r"x: expected an even size along dim 1, got \(2, 3\)"),
        ((torch.ones(2),), ValueError, r"dim: expected a dimension in \[-1, 0\], got 1"),
        (
            (torch.ones(2, 4), torch.ones(2, 4)),
            ValueError,
            r"residual: expected shape \(2, 2\), got \(2, 4\)",
        ),
        (
            (torch.ones(2, 4), torch.ones(2, 1)),
            ValueError,
            r"residual: expected shape \(2, 2\), got \(2, 1\)",
        ),
        ((torch.ones(2, 4), 1.0), TypeError, r"residual: expected a torch\.Tensor, got float"),
        ((torch.ones(2, 4), torch.ones(2, 2, device="meta")), ValueError, r"one device, got cpu and meta"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GF.gated_activation(*arguments)


def test_bad_dim():
    with pytest.raises(ValueError, match=r"dim: expected a dimension in \[-2, 1\], got 2"):
        GF.gated_activation(torch.ones(2, 2), dim=2)
    with pytest.raises(TypeError, match=r"dim: expected an int, got str"):
        GF.gated_activation(torch.ones(2, 2), dim="1")


def test_residual_of_another_dtype_promotes(device):
    x, residual = torch.randn(2, 6, 5, device=device).bfloat16(), torch.randn(2, 3, 5, device=device)
    y = GF.gated_activation(x, residual)
    assert y.dtype == torch.float32
    assert torch.equal(y, GF.gated_activation(x) + residual)
