"""Decode programs on a GPU, for benchmarks/gpu_check.sh.

python gpu_decode.py check [DEVICE]   draws and parameters against the plain loop on the CPU in float64
python gpu_decode.py times [DEVICE]   PixelCNN++ (32x32, batch 16) and WaveNet (batch 1): naive and cached
"""

import sys
import time
from statistics import median

import torch

from gmfast import decode, models

SEED = 5


def small_models():
    """Each with what `sample` takes besides."""
    label, local = torch.arange(3) % 2, torch.randn(3, 2, 40)
    yield models.PixelCNNPP((3, 4, 8), 1, 40, 3, num_levels=32, num_labels=2), {"label": label}
    yield models.GatedPixelCNN((3, 3, 5), 2, 12, 3, 24, "categorical", 1, 8, num_labels=2), {"label": label}
    yield models.PixelCNN((1, 3, 5), 2, 12, 24, "mixture", 3, 32), {}
    wavenet = models.WaveNet(40, 2, 5, 2, 40, 70, "mixture", 3, 64, num_labels=2, local_channels=2)
    yield wavenet, {"label": label, "local": local}
    yield models.MADE((1, 5, 6), (80, 80), 1, "bernoulli", 1, num_levels=2), {}


def sample(model, device, dtype, naive, label=None, local=None):
    """Samples like `naive`, by a decode program; and what it says about each position of `naive`, where that
    is one step."""
    model = model.to(device, dtype)
    program = decode.compile(model)
    local = None if local is None else local.to(device, dtype)
    label = None if label is None else label.to(device)
    x = torch.zeros_like(naive.flatten(2), dtype=dtype, device=device)
    x = x.flatten(1).unsqueeze(1).contiguous() if isinstance(model, models.MADE) else x
    program.start(len(x), label)
    program.sample(x, seed=SEED, local=local)
    said = []
    if isinstance(model, (models.PixelCNNPP, models.WaveNet)):
        given = naive.flatten(2).to(device, dtype)
        program.start(len(x), label)
        for t in range(given.shape[2]):
            own = None if local is None else local[:, :, t]
            said.append(program.step(given[:, :, t - 1] if t else None, own).cpu().double())
    return x.cpu().double().reshape(naive.shape), torch.stack(said, 2) if said else None


@torch.no_grad()
def check(device):
    torch.manual_seed(0)
    for model, conditions in small_models():
        model.eval()
        for parameter in model.parameters():  # also those that begin at zero
            parameter += 0.1 * torch.randn_like(parameter)
        exact = model.double().cpu()
        wide = {k: v.double() if v.is_floating_point() else v for k, v in conditions.items()}
        order = {"order": 0} if isinstance(model, models.MADE) else {}
        naive = exact.sample(3, seed=SEED, method="naive", **wide, **order)
        expected = exact(naive, **wide).flatten(2)
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
            x, said = sample(model, device, dtype, naive, **wide)
            name = f"{type(model).__name__} in {str(dtype)[6:]} on {device}"
            if dtype == torch.float64 and not torch.allclose(x, naive, rtol=0, atol=1e-6):
                sys.exit(f"{name}: draws differ from the plain loop's by {(x - naive).abs().max():.2g}")
            if said is None:
                continue
            error = ((said - expected).abs() / (1 + expected.abs())).max()
            if not error <= tolerance:
                sys.exit(f"{name}: parameters err by {error:.2g}, expected at most {tolerance:g}")
        print(f"{type(model).__name__}: draws and parameters agree with the plain loop")


def seconds(run, device, repeats):
    """The median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[1:])


@torch.no_grad()
def times(device):
    torch.manual_seed(0)
    batch, size = 16, 32
    model = models.PixelCNNPP((3, size, size), num_levels=256).to(device).eval()
    x = torch.zeros(batch, 3, size, size, device=device)
    loop = size * size * seconds(lambda: model(x), device, 5)
    print(f"PixelCNN++ {size}x{size}, batch {batch}: naive {loop:.2f} s ({size * size} times one pass)")
    for weights in (None, "bfloat16"):
        program = decode.compile(model, weights=weights)
        flat = x.flatten(2)
        cached = seconds(lambda p=program, f=flat: p.start(batch).sample(f, seed=SEED), device, 2)
        print(f"  cached, weights in {weights or 'float32'}: {cached:.3f} s, {loop / cached:.0f} times")

    model = models.WaveNet().to(device).eval()
    few, many = 64, 16000
    loop = few / seconds(lambda: model.sample(1, seed=SEED, method="naive", length=few), device, 1) / 1e3
    print(f"WaveNet, batch 1: naive {loop:.3f} kHz")
    for weights in (None, "bfloat16"):
        program, x = decode.compile(model, weights=weights), torch.zeros(1, 1, many, device=device)
        cached = seconds(lambda p=program, x=x: p.start(1).sample(x, seed=SEED), device, 2)
        khz = many / cached / 1e3
        print(f"  cached, weights in {weights or 'float32'}: {khz:.2f} kHz, {khz / loop:.0f} times")


if __name__ == "__main__":
    {"check": check, "times": times}[sys.argv[1]](torch.device(sys.argv[2] if len(sys.argv) > 2 else "cuda"))
