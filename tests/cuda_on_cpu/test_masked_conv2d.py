"""The CUDA kernels of masked_conv2d, run as C++."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from cuda_on_cpu.emulator import DTYPES, SANITIZERS, image, run

from gmfast import reference
from gmfast.reference.masked_conv2d import conv_mask

pytestmark = pytest.mark.cuda_on_cpu

FORWARD, GRAD_INPUT, GRAD_WEIGHT = range(3)


@dataclass
class Conv:
    """One convolution; channels are those of one of `groups`. A causal one has a weight of 1 x width whose
    last column is the current pixel's."""

    batch: int
    size: tuple
    channels: tuple
    kernel: tuple
    mask_type: str = "B"
    colours: int = 1
    dilation: tuple = (1, 1)
    groups: int = 1
    left: int = 0
    causal: bool = False
    bias: bool = True

    @property
    def full_kernel(self):
        return (1, 2 * self.kernel[1] - 1) if self.causal else self.kernel

    def mask(self):
        out_channels = self.groups * self.channels[1]
        shape = (self.channels[1], self.channels[0], *self.full_kernel)
        mask = conv_mask(shape, self.mask_type, self.colours)[..., : self.kernel[1]]
        return mask.repeat(self.groups, 1, 1, 1).reshape(out_channels, self.channels[0], *self.kernel)

    def __call__(self, x, weight, bias):
        """The reference. x has `left` columns more than the result."""
        if 0 in self.size:  # which F.conv2d does not take
            return (x.sum() + weight.sum()) * x.new_zeros(
                self.batch, self.groups * self.channels[1], *self.size
            )
        weight = torch.nn.functional.pad(weight, (0, self.full_kernel[1] - self.kernel[1]))
        options = {"mask_type": self.mask_type, "channel_groups": self.colours, "dilation": self.dilation}
        parts = zip(x.chunk(self.groups, 1), weight.chunk(self.groups), strict=True)
        y = torch.cat([reference.masked_conv2d(x, w, **options) for x, w in parts], 1)[..., self.left :]
        return y if bias is None else y + bias[:, None, None]

    def numbers(self):
        sizes = self.batch, *self.size, self.left, self.groups, *self.channels
        return *sizes, *self.full_kernel, *self.dilation, self.colours, self.mask_type == "B"


CONVOLUTIONS = [
    Conv(1, (1, 1), (1, 1), (3, 3)),
    Conv(2, (3, 5), (2, 3), (1, 1), "A"),  # sees nothing
    Conv(2, (3, 5), (2, 3), (1, 1), "A", bias=False),
    Conv(2, (5, 6), (3, 6), (7, 7), "A", colours=3),
    Conv(1, (5, 8), (24, 48), (3, 3), "A", colours=3),
    Conv(1, (4, 7), (15, 9), (3, 3), colours=3, bias=False),
    Conv(2, (9, 8), (8, 70), (3, 3)),  # several tiles in each direction
    Conv(2, (9, 8), (72, 16), (3, 1), "A"),
    Conv(3, (4, 5), (4, 5), (5, 3), dilation=(2, 1), groups=2),
    Conv(1, (4, 5), (2, 2), (3, 5), dilation=(30, 30)),  # looks out of the image
    Conv(2, (1, 40), (4, 6), (1, 4), dilation=(1, 2), groups=2, left=6, causal=True),
    Conv(1, (1, 33), (3, 5), (1, 2), left=2, causal=True, bias=False),
    Conv(0, (3, 3), (2, 2), (3, 3)),
    Conv(2, (0, 3), (2, 2), (3, 3)),
]


def layouts():
    """Functions that lay a contiguous tensor out otherwise, its values kept; what lies between is NaN."""

    def contiguous(t):
        return t.clone()

    def channels_last(t):
        return t.contiguous(memory_format=torch.channels_last)

    def sliced(t):
        b, c, h, w = t.shape
        return torch.full((b, c + 2, h + 1, 2 * w + 3), float("nan"), dtype=t.dtype)[
            :, 1:-1, :-1, 1 : 2 * w + 1 : 2
        ].copy_(t)

    return [contiguous, channels_last, sliced]


def case(conv, kernel, layout, dtype, generator):
    """The items of a case; the tensors that it fills, what is to be in them, and how far off they may be."""
    (i, o), (h, w) = conv.channels, conv.size

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    x = random(conv.batch, conv.groups * i, h, conv.left + w)
    weight = random(conv.groups * o, i, *conv.kernel)
    bias = random(conv.groups * o) if conv.bias else None
    y = random(conv.batch, conv.groups * o, h, w)
    expanded = kernel != FORWARD and dtype == torch.float32  # as the gradient of a sum is
    if expanded:
        y = random(conv.batch, 1, 1, 1).expand_as(y)

    def exact(function):
        inputs = [
            t if t is None else function(t.double()).clone().requires_grad_() for t in (x, weight, bias)
        ]
        result = conv(*inputs)
        if kernel == FORWARD:
            return [result.detach()]
        wanted = inputs[:1] if kernel == GRAD_INPUT else [t for t in inputs[1:] if t is not None]
        grads = torch.autograd.grad(result, wanted, function(y.double()), materialize_grads=True)
        return [g.detach() for g in grads]

    expected, magnitude = exact(lambda t: t), exact(torch.abs)
    x, y, weight = layout(x), y if expanded else layout(y), layout(weight)
    bias = None if bias is None or kernel == GRAD_INPUT else layout(bias[None, :, None, None])
    if kernel == FORWARD:
        written = [y]
    else:
        written = [x] if kernel == GRAD_INPUT else [t for t in (weight, bias) if t is not None]
    for t in written:
        t.fill_(float("nan"))
    if kernel != GRAD_WEIGHT:  # masked entries are never read
        weight.masked_fill_(~conv.mask(), float("nan"))
    unit, stored = torch.finfo(torch.promote_types(dtype, torch.float32)).eps, torch.finfo(dtype)
    allowed = [
        8 * unit * m + stored.eps / 2 * (e.abs() + stored.tiny)
        for e, m in zip(expected, magnitude, strict=True)
    ]
    operands = map(image, (x[..., conv.left :], weight, bias, y))
    items = [kernel, conv.kernel[1], *conv.numbers(), *itertools.chain(*operands)]
    return items, written, expected, allowed


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_masked_conv2d(sanitizer):
    generator = torch.Generator().manual_seed(0)
    used = layouts()[:1] if sanitizer == "thread" else layouts()  # strides share nothing between threads
    cases = [
        (conv, case(conv, kernel, layout, dtype, generator))
        for n, conv in enumerate(CONVOLUTIONS)
        for kernel in range(3)
        for d, dtype in enumerate(DTYPES)
        for j, layout in enumerate(used)
        if (n + kernel + d + j) % 3 == 0
    ]
    run("masked_conv2d", sanitizer, [items for _, (items, *_) in cases])
    for conv, (items, written, expected, allowed) in cases:
        for tensor, e, tolerance in zip(written, expected, allowed, strict=True):
            got = tensor.double().reshape(e.shape)
            wrong = ~((got - e).abs() <= tolerance)
            assert not wrong.any(), (conv, items[0], tensor.dtype, tensor.stride(), got[wrong], e[wrong])
            if (whole := tensor._base) is not None:
                assert whole.isnan().sum() == whole.numel() - tensor.numel(), "written beside the result"
        if items[0] == GRAD_WEIGHT:
            assert not written[0][~conv.mask()].any(), "masked entries have a gradient of exactly zero"
