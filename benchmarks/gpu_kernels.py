"""Every kernel on small awkward inputs, for benchmarks/gpu_check.sh.

    python gpu_kernels.py check [DEVICE]   results and gradients against plain PyTorch in float64
    python gpu_kernels.py graphs           captured as CUDA graphs and replayed on new values; a call that
                                           synchronises with the host is an error

The tests say more; this is short enough to run under compute-sanitizer.
"""

import math
import sys
from dataclasses import dataclass, field

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast._table import COLUMNS
from gmfast.ops import masked_conv2d

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}


@dataclass
class Call:
    """One operation by name on float64 tensors, of which dtype and layout are still to be chosen."""

    operation: str
    tensors: tuple
    options: dict = field(default_factory=dict)

    def __call__(self, *tensors, module=GF, **more):
        return getattr(module, self.operation)(*tensors, **self.options, **more)

    @property
    def differentiable(self):
        return not self.operation.endswith(("sample", "update"))

    def tolerance(self, dtype):
        """The published likelihood cancels where it changes its branch, at a mass of 1e-5."""
        coarse = 1e-2 if self.options.get("formulation") == "pixelcnnpp" and dtype != torch.float64 else 0
        return max(TOLERANCE[dtype], coarse)

    def __str__(self):
        shapes = ", ".join(str(tuple(t.shape)) for t in self.tensors)
        return f"{self.operation}({shapes}, {self.options})"


class Transform(Call):
    """A call that gives a result and its log-determinant."""

    def __call__(self, *tensors, module=GF):
        y, log_det = super().__call__(*tensors, module=module)
        return torch.cat([y.flatten().to(log_det.dtype), log_det])


class Dequantize(Transform):
    """x, and noise where it is given."""

    def __call__(self, x, noise=None, *, module=GF):
        y, log_det = getattr(module, self.operation)(x, noise=noise, **self.options)
        return torch.cat([y.flatten().to(log_det.dtype), log_det])

    @property
    def differentiable(self):
        return "seed" not in self.options


class Noised(Call):
    """Data with noise and the target, in one tensor; alpha a tensor and sigma a number."""

    def __call__(self, x, noise=None, *, module=GF):
        alpha = torch.linspace(0.2, 0.8, x.shape[0], dtype=x.dtype, device=x.device)
        return torch.cat(module.q_sample(x, alpha, 0.6, noise=noise, **self.options))

    @property
    def differentiable(self):
        return "seed" not in self.options


class Langevin(Call):
    """x and score, and noise where it is given."""

    differentiable = False

    def __call__(self, x, score, noise=None, *, module=GF):
        return torch.cat(module.langevin_step(x, score, noise=noise, return_mean=True, **self.options))


class Noise(Call):
    """As many numbers as its tensor has, of that dtype."""

    differentiable = False

    def __call__(self, like, module=GF):
        shape, device = tuple(like.shape), like.device
        return module.standard_normal(shape, dtype=like.dtype, device=device, **self.options)


class Step(Call):
    """A step on x, the model's output, a history and another tensor, all its results in one. The table, which
    is float64 always, and the row are on the device of the seed already."""

    differentiable = False

    def __init__(self, tensors, seed, **options):
        table = torch.linspace(-0.9, 0.8, 3 * len(COLUMNS), dtype=torch.float64).view(3, -1)
        self.rows = {d.type: (table.to(d), torch.tensor(1, device=d)) for d in {seed.device, table.device}}
        super().__init__("diffusion_step", tensors, {"seed": seed, **options})

    def __call__(self, x, m, history, other, module=GF):
        table, step = self.rows[x.device.type]
        options = {name: other if value is ... else value for name, value in self.options.items()}
        results = module.diffusion_step(
            x, m, table, step=step, history=[history, x], x0=True, kept=True, **options
        )
        return torch.cat([r.flatten() for r in results])


class HybridLoss(Call):
    """Both terms, at time steps 0 and 1; the images follow from the model's output."""

    def __call__(self, output, module=GF):
        x0, noise = output.detach().chunk(2, 1)
        x0 = x0.clamp(-1, 1)
        # after, before, beta and log-variances as of a linear schedule; the other columns count for nothing
        table = torch.zeros(2, 20, dtype=torch.float64, device=output.device)
        for column, values in {0: (1.1, 1.5), 1: (-0.4, -1.1), 2: (0, 0.6), 4: (1, 0.4)}.items():
            table[:, column] = torch.tensor(values, dtype=torch.float64)
        table[:, 18], table[:, 19] = -2, -1
        timestep = torch.arange(output.shape[0], device=output.device) % 2
        losses = getattr(module, self.operation)(
            output, x0, x0 + 0.3 * noise, noise, table, timestep, **self.options
        )
        return torch.cat(losses)


class Update(Call):
    """A call that changes its second argument, which is part of the result."""

    def __call__(self, x, state, *tensors, module=GF, **more):
        state = state.clone()
        y = super().__call__(x, state, *tensors, module=module, **more)
        return torch.cat([y.flatten(), state.flatten()])


class Circular(Update):
    """An update of a circular state, each sample at another position."""

    def __call__(self, x, *tensors, module=GF):
        seen = 5 * torch.arange(len(x), device=x.device)
        return super().__call__(x, *tensors, module=module, cache_seqlens=seen)


class Packed(Call):
    """A convolution of packed sequences and of lengths."""

    def __call__(self, x, *tensors, module=GF):
        batch, _, length = x.shape
        seq_idx = (torch.arange(length, device=x.device) // 7).expand(batch, -1)
        lengths = length - torch.arange(batch, device=x.device)
        return super().__call__(x, *tensors, module=module, seq_idx=seq_idx, lengths=lengths)


class Spline(Call):
    """A transform, its value and log-determinants in one tensor."""

    def tolerance(self, dtype):
        """Rounding moves a knot by an ulp of the bound, which is much of a narrow bin."""
        return 20 * super().tolerance(dtype)

    def __call__(self, *tensors, module=GF):
        y, log_det = super().__call__(*tensors, module=module)
        return torch.cat([y.flatten(), log_det.to(y.dtype)])


class OwnConvolution(Call):
    """gmfast's kernel of the masked convolution, also where torch's would be taken for its speed."""

    def __call__(self, *tensors, module=GF):
        if module is reference:
            return super().__call__(*tensors, module=reference)
        x, weight, _, geometry = masked_conv2d.check(*tensors, None, *self.options.values())
        return masked_conv2d._forward(x, weight, None, *geometry)


def calls(spatial, seed):
    """Every operation, with the options that choose another kernel."""
    random = lambda *shape: torch.randn(shape, dtype=torch.float64)  # noqa: E731
    length = math.prod(spatial)
    for taps, dilation in ((4, 1), (6, 40)):
        options = {"dilation": dilation, "groups": 35, "activation": "silu"}
        weight, state = random(35, 1, taps), random(2, 35, (taps - 1) * dilation)
        yield Call("causal_conv1d", (random(2, 35, length), weight), options)
        yield Update("causal_conv1d_update", (random(2, 35, 3), state, weight), options)
        yield Packed("causal_conv1d", (random(2, 35, length), weight), options)
        yield Circular("causal_conv1d_update", (random(2, 35, 3), state, weight), options)
        dense = random(4, 35, taps)
        yield Update("causal_conv1d_update", (random(2, 35, 3), state, dense), {"dilation": dilation})
    if len(spatial) == 2:
        for mask_type, groups, dilation in (("A", 3, 1), ("B", 1, (2, 3))):
            options = {"mask_type": mask_type, "channel_groups": groups, "dilation": dilation}
            for in_channels, out_channels in ((3, 36), (33, 6), (48, 72)):
                tensors = random(2, in_channels, *spatial), random(out_channels, in_channels, 3, 5) / 8
                yield Call("masked_conv2d", tensors, options)
                yield OwnConvolution("masked_conv2d", tensors, options)
    else:
        weight = random(12, 35, 2) / 4
        yield Call("causal_conv1d", (random(2, 35, length), weight), {"dilation": 4, "activation": "gated"})
    for bins, inverse in ((8, False), (8, True), (3, True)):
        params = random(2, 6, 3 * bins - 1, *spatial).movedim(2, -1).split([bins, bins, bins - 1], -1)
        yield Spline("rational_quadratic_spline", (random(2, 6, *spatial), *params), {"inverse": inverse})
    params = random(2, 6, 23, *spatial).movedim(2, -1)
    packed = {"heights": None, "derivatives": None, "packed": True}
    yield Spline("rational_quadratic_spline", (random(2, 6, *spatial), params), packed)
    for components, inverse in ((5, False), (3, True)):
        params = random(2, 6, 3 * components, *spatial).movedim(2, -1).split(components, -1)
        yield Transform("logistic_mixture_cdf", (random(2, 6, *spatial), *params), {"inverse": inverse})
    x = random(2, 6, *spatial)
    for scale_map, shift_first, inverse in (("exp", 0, 0), ("sigmoid", 1, 1), ("tanh", 0, 1), ("atan", 1, 0)):
        options = {"scale_map": scale_map, "shift_first": bool(shift_first), "inverse": bool(inverse)}
        half = random(2, 3, *spatial), random(2, 3, *spatial)
        yield Transform("affine_coupling", (x, *half), options | {"recompute": not inverse})
    packed = {"scale": None, "packed": "chunk", "scale_map": "softclip"}
    yield Transform("affine_coupling", (x, random(2, 6, *spatial)), packed)
    ones = [1] * len(spatial)
    per_channel = random(1, 6, *ones) / 2, random(1, 6, *ones) / 2  # float16 holds their gradients' sums
    for inverse in (False, True):
        yield Transform("actnorm", (x, *per_channel), {"inverse": inverse})
    yield Call("gaussian_log_prob", (x,))
    yield Call("gaussian_log_prob", (x, *random(2, 12, *spatial).chunk(2, 1)))
    yield Call("gaussian_log_prob", (x, *per_channel))
    levels = torch.randint(32, x.shape).double()
    yield Dequantize("dequantize_logit", (levels, torch.rand(x.shape).double()), {"num_levels": 32})
    yield Dequantize("dequantize_logit", (levels,), {"num_levels": 32, "seed": seed})
    yield Dequantize("dequantize_logit", (x,), {"inverse": True, "quantize": False})
    yield Noise("standard_normal", (x,), {"seed": seed})
    four = tuple(random(2, 6, *spatial) for _ in range(4))
    yield Step(four, seed, clip=0.5)
    yield Step(four, seed, variance=...)
    yield Step(four, seed, noise=...)
    yield Step(four, seed, unconditional=..., guidance=2.0, guidance_rescale=0.7)
    yield Step(four, seed, threshold=0.9, threshold_max=2.0)
    yield Noised("q_sample", (x,), {"seed": seed, "target": "epsilon"})
    yield Noised("q_sample", (x, random(2, 6, *spatial)), {"target": "v"})
    for step in ({"step_size": 0.1}, {"snr": 0.2}):
        yield Langevin("langevin_step", (x, random(2, 6, *spatial)), {"seed": seed, "draw": 1} | step)
        yield Langevin("langevin_step", (x, random(2, 6, *spatial), random(2, 6, *spatial)), step)
    yield Call("gaussian_kl", [random(2, 6, *spatial) for _ in range(4)])
    broadcast = random(2, *[1] * (1 + len(spatial))) / 2, random(6, *ones) / 2
    yield Call("gaussian_kl", (x, broadcast[0], x.flip(1), broadcast[1]))
    levels = torch.randint(32, x.shape).double() * (2 / 31) - 1
    for formulation in ("exact", "improved_ddpm"):
        options = {"num_classes": 32, "formulation": formulation}
        near = levels + random(*x.shape) / 20, random(*x.shape) / 4 - 1
        yield Call("discretized_gaussian_nll", (levels, *near), options)
        yield HybridLoss("diffusion_hybrid_loss", (random(2, 12, *spatial) / 2,), options)
    yield Call("concat_elu", (x,))
    yield Call("concat_elu", (x,), {"dim": 0})
    yield Call("gated_activation", (x,))
    yield Call("gated_activation", (x, random(2, 3, *spatial)))
    for channels, mixtures in ((1, 5), (3, 2)):
        pixels = torch.randint(256, (2, channels, *spatial)).double() / 127.5 - 1
        params = random(2, (3 if channels == 1 else 10) * mixtures, *spatial)
        for reduction in ("none", "batch", "sum"):
            yield Call("discretized_logistic_mixture_nll", (pixels, params), {"reduction": reduction})
        yield Call("discretized_logistic_mixture_nll", (pixels, params), {"formulation": "pixelcnnpp"})
        options = {"channels": channels, "seed": seed, "quantize": False}
        yield Call("discretized_logistic_mixture_sample", (params,), options)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def sliced(t):
    """Every other element of the inside of a larger buffer, which is NaN elsewhere."""
    buffer = t.new_full((t.shape[0], t.shape[1] + 2, *t.shape[2:-1], 2 * t.shape[-1] + 1), float("nan"))
    return buffer[:, 1:-1, ..., 1::2].copy_(t)


# One pixel; off every tile; a multiple of every vector; more than one block.
PLACES = [
    *((torch.Tensor.contiguous, spatial) for spatial in ((1,), (7, 5), (8, 16), (1134,))),
    *((layout, spatial) for layout in (channels_last, sliced) for spatial in ((7, 5), (8, 16))),
]


def results(call, tensors, weight=None, module=GF):
    """The result and, where there are, the gradients of its sum under `weight`."""
    if not call.differentiable:
        return (call(*tensors, module=module),)
    tensors = [t.detach().requires_grad_() for t in tensors]
    y = call(*tensors, module=module)
    return (y.detach(), *torch.autograd.grad(y, tensors, weight(y)))


def check(device):
    torch.manual_seed(0)
    count = 0
    for layout, spatial in PLACES:
        for call in calls(spatial, torch.tensor(7, device=device)):
            for dtype in TOLERANCE:
                inputs = [t.to(dtype) for t in call.tensors]
                exact = [t.double() for t in inputs]
                weights = (
                    torch.randn(call(*exact).shape, dtype=torch.float64).to(dtype)
                    if call.differentiable
                    else None
                )
                weight = lambda y, w=weights: w.to(y.device, y.dtype)  # noqa: E731
                got = results(call, [layout(t.to(device)) for t in inputs], weight)
                if call.differentiable:
                    want = results(call, exact, weight, reference)
                elif "seed" in call.options:  # its noise depends on the dtype, and is every device's
                    call.options["seed"] = torch.tensor(7)
                    want = results(call, inputs)
                    call.options["seed"] = torch.tensor(7, device=device)
                else:
                    want = results(call, inputs)
                for index, (g, w) in enumerate(zip(got, want, strict=True)):
                    error = (g.cpu().double() - w.double()).abs() / (1 + w.double().abs().max())
                    # A draw that rounding moves across a threshold picks another component.
                    enough = 1 if call.differentiable else 0.99
                    if not (error <= call.tolerance(dtype)).double().mean() >= enough:
                        what = f"{call} {dtype} {getattr(layout, '__name__', layout)}, result {index}"
                        sys.exit(
                            f"{what}: error {error.max():.2g}, expected at most {call.tolerance(dtype):g}"
                        )
                count += 1
    print(f"{count} calls agree with plain PyTorch in float64")


def graphs():
    torch.manual_seed(0)
    count = 0
    for spatial in ((7, 5), (8, 16), (1134,)):
        seed = torch.tensor(7, device="cuda")
        for call in calls(spatial, seed):
            for dtype in (torch.float32, torch.bfloat16):
                static = [t.to("cuda", dtype) for t in call.tensors]
                weight = torch.ones_like
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                graph = torch.cuda.CUDAGraph()
                torch.cuda.synchronize()
                torch.cuda.set_sync_debug_mode("error")
                try:
                    with torch.cuda.stream(stream):
                        results(call, static, weight)
                    torch.cuda.current_stream().wait_stream(stream)
                    with torch.cuda.graph(graph):
                        captured = results(call, static, weight)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                for t in static:  # other values in the same memory, within the domain of pixels
                    t.copy_(t.flip(0) * 0.5)
                seed += 1
                graph.replay()
                for index, (g, w) in enumerate(zip(captured, results(call, static, weight), strict=True)):
                    if not torch.equal(g, w):
                        sys.exit(f"{call} {dtype}, result {index}: the replay differs from the call")
                count += 1
    print(f"{count} calls captured without a synchronisation; their replays give the same bits")


if __name__ == "__main__":
    if sys.argv[1] == "graphs":
        graphs()
    else:
        check(torch.device(sys.argv[2] if len(sys.argv) > 2 else "cuda"))
