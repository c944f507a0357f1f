import mpmath
import pytest
import torch
import torch.nn.functional as F
from ops.contracts import LAYOUTS, Contracts, assert_accurate, assert_same, results

import gmfast.functional as GF
from gmfast import reference


class TestContracts(Contracts):
    def call(self, x):
        return GF.concat_elu(x)

    def plain(self, x):
        return reference.concat_elu(x)

    def inputs(self, shape, dtype, device, channels=6):
        batch, *spatial = shape
        generator = torch.Generator().manual_seed(0)
        return [(2 * torch.randn(batch, channels, *spatial, generator=generator)).to(device, dtype)]

    def operators(self, x):
        y = GF.concat_elu(x)
        return [
            (torch.ops.gmfast.concat_elu.default, (x, 1)),
            (torch.ops.gmfast.concat_elu_backward.default, (y.detach().requires_grad_(), x, 1)),
        ]


class TestOtherDimension(TestContracts):
    """The last dimension, whose halves interleave in memory; (B, S, C) is laid out as any tensor."""

    def call(self, x):
        return GF.concat_elu(x.movedim(1, -1), -1).movedim(-1, 1)

    def plain(self, x):
        return reference.concat_elu(x.movedim(1, -1), -1).movedim(-1, 1)

    def operators(self, x):
        last = x.detach().movedim(1, -1).requires_grad_()
        return [(torch.ops.gmfast.concat_elu.default, (last, x.dim() - 1))]

    test_layout_of_results = None  # movedim's, not the operation's


@pytest.mark.parametrize("dtype, ulps", [(torch.float32, 4), (torch.float64, 4)])
def test_against_mpmath(device, dtype, ulps):
    """Relative accuracy down to the smallest numbers: elu(x) is x there, not a difference."""
    x = torch.cat([-(10.0 ** torch.arange(-37, 5)), -torch.rand(200) * 20]).to(device, dtype)[None]
    with mpmath.workdps(60):
        exact = torch.tensor(
            [[float(mpmath.expm1(mpmath.mpf(v))) for v in x[0].tolist()]], dtype=torch.float64
        )
    elu, linear = GF.concat_elu(x).chunk(2, 1)
    assert torch.equal(linear, -x)
    assert ((elu.double().cpu() - exact) / exact).abs().max() <= ulps * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_against_torch_elu(device, dtype):
    x = (3 * torch.randn(4, 5, 7, 9)).to(device, dtype)
    for dim in (-4, -1, 0, 1, 2, 3):
        assert_accurate(
            lambda x, dim=dim: GF.concat_elu(x, dim), lambda x, dim=dim: F.elu(torch.cat([x, -x], dim)), [x]
        )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dim", range(4))
def test_every_dimension_of_every_layout(device, layout, dim):
    x = torch.randn(3, 4, 5, 6, device=device)
    expected = results(lambda x: GF.concat_elu(x, dim), [x])
    assert_same(results(lambda x: GF.concat_elu(x, dim), [LAYOUTS[layout](x)]), expected)
    assert torch.equal(expected[0] > 0, torch.cat([x > 0, x < 0], dim))


def test_zero_and_infinity(device):
    """The slope at 0 is 1 for both halves, from below as torch has it."""
    x = torch.tensor([[0.0, -0.0, torch.inf, -torch.inf]], device=device, requires_grad=True)
    y = GF.concat_elu(x)
    assert y.tolist() == [[0, 0, torch.inf, -1, 0, 0, -1, torch.inf]]
    (grad,) = torch.autograd.grad(y, x, torch.tensor([[5.0, 5, 5, 5, 3, 3, 3, 3]], device=device))
    assert grad.tolist() == [[2, 2, 5, -3]]


def test_one_dimension(device):
    x = torch.randn(1001, device=device)
    torch.testing.assert_close(GF.concat_elu(x, 0), F.elu(torch.cat([x, -x])))
    assert GF.concat_elu(x[:0], 0).shape == (0,)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([1.0, 2.0],), TypeError, r"x: expected a torch\.Tensor, got list"),
        ((torch.ones(2, 2, dtype=torch.int32),), TypeError, r"x: expected float32, .* got int32"),
        ((torch.ones(2, 2, dtype=torch.complex64),), TypeError, r"x: expected float32, .* got complex64"),
        ((torch.ones(2),), ValueError, r"dim: expected a dimension in \[-1, 0\], got 1"),
        ((torch.ones(2, 2), 2), ValueError, r"dim: expected a dimension in \[-2, 1\], got 2"),
        ((torch.ones(2, 2), -3), ValueError, r"dim: expected a dimension in \[-2, 1\], got -3"),
        ((torch.ones(()), 0), ValueError, "x: expected at least one dimension"),
        ((torch.ones(2, 2), 1.0), TypeError, r"dim: expected an int, got float"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GF.concat_elu(*arguments)
