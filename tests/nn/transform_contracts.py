"""What every `gmfast.nn.Transform` must do, as tests.

A test file derives a class from `Contracts`, and says how to build a transform and what its input looks like.
"""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gmfast.nn import Sequential

#: |inverse(forward(x)) - x| relative to the largest x.
ROUND_TRIP = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])

SYNCHRONISING = {"_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2"}


class NoSynchronisation(TorchDispatchMode):
    """Fails where the host would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().split("::")[-1].split(".")[0]
        assert name not in SYNCHRONISING, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


class Conditioner(nn.Module):
    """Parameters at each position from what is seen there, and from a context where there is one.
    `positions`: how many dimensions positions have."""

    def __init__(self, inputs, outputs, *, positions=0, context=0, scale=1.0, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(inputs + context, 8)
        self.out = nn.Linear(8, outputs)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn_like(p) * scale * 0.5)

    def forward(self, x, context=None):
        x = x.movedim(1, -1)
        if context is not None:
            context = context.view(len(x), *[1] * (x.dim() - 2), context.shape[-1]).expand(*x.shape[:-1], -1)
            x = torch.cat([x, context], -1)
        return self.out(self.dropout(torch.tanh(self.hidden(x)))).movedim(-1, 1)


def jacobian_log_det(function, x):
    """log|det| of a function of one sample (1, …), by autograd."""
    jacobian = torch.autograd.functional.jacobian(
        lambda flat: function(flat.view(x.shape)).flatten(), x.flatten()
    )
    return jacobian.slogdet().logabsdet


def directed(transform, inverse):
    return transform.inverse if inverse else transform


class Contracts:
    #: Of one sample, and of its context.
    shape = (4, 2, 2)
    context_shape = None
    keeps_volume = False
    keeps_values = False
    round_trip = ROUND_TRIP

    def build(self):
        raise NotImplementedError

    @pytest.fixture
    def transform(self, device):
        torch.manual_seed(1)
        transform = self.build().double().to(device)
        for p in transform.parameters():
            p.data += 0.1 * torch.randn_like(p)
        # No first batch changes the parameters.
        for module in transform.modules():
            if hasattr(module, "initialized"):
                module.initialized.fill_(True)
        return transform

    def inputs(self, batch, device, dtype=torch.float64):
        x = torch.randn(batch, *self.shape, dtype=torch.float64)
        context = None if self.context_shape is None else torch.randn(batch, *self.context_shape).double()
        return tuple(None if t is None else t.to(device, dtype) for t in (x, context))

    @DIRECTIONS
    def test_log_det_is_that_of_the_jacobian(self, transform, device, inverse):
        x, context = self.inputs(3, device)
        _, log_det = directed(transform, inverse)(x, context)
        assert log_det.shape == (3,) and (self.keeps_volume or log_det.abs().min() > 1e-3)
        for i in range(3):
            own = None if context is None else context[i : i + 1]
            expected = jacobian_log_det(
                lambda x, own=own: directed(transform, inverse)(x, own)[0], x[i : i + 1]
            )
            torch.testing.assert_close(log_det[i], expected, rtol=1e-9, atol=1e-9)

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", list(ROUND_TRIP), ids=str)
    @DIRECTIONS
    def test_round_trip(self, transform, device, dtype, inverse):
        transform = transform.to(dtype)
        x, context = self.inputs(5, device, dtype)
        y, log_det = directed(transform, inverse)(x, context)
        back, log_det_back = directed(transform, not inverse)(y, context)
        assert y.dtype == back.dtype == dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert log_det.dtype == log_det_back.dtype == wide
        assert self.keeps_values or x.shape != y.shape or not torch.equal(x, y)
        bound = self.round_trip[dtype] * x.abs().max()
        assert (back - x).abs().max() <= bound
        assert (log_det + log_det_back).abs().max() <= bound * x[0].numel()

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_inputs_with_float32_parameters(self, transform, device, dtype):
        """As autocast makes them; what they say is what float64 says to the rounding of the type."""
        transform = transform.float()
        x, context = self.inputs(5, device, dtype)
        with torch.autocast(device.type, dtype):
            y, log_det = transform(x, context)
        assert y.dtype == dtype and log_det.dtype == torch.float32
        expected, expected_log_det = transform.double()(
            x.double(), None if context is None else context.double()
        )
        rounding = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), expected, rtol=rounding, atol=rounding * expected.abs().max())
        atol = rounding * x[0].numel()
        torch.testing.assert_close(log_det.double(), expected_log_det, rtol=rounding, atol=atol)

    @DIRECTIONS
    def test_gradcheck(self, transform, device, inverse):
        x, context = self.inputs(2, device)
        named = dict(transform.named_parameters())
        names, parameters = list(named), list(named.values())

        def call(x, context, *parameters):
            module = Directed(transform, inverse)
            named = {f"transform.{n}": p for n, p in zip(names, parameters, strict=True)}
            return torch.func.functional_call(module, named, (x, context))

        leaves = [None if t is None else t.detach().requires_grad_() for t in (x, context, *parameters)]
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True)

    @DIRECTIONS
    def test_reversible_training(self, transform, device, inverse):
        """Gradients without stored activations are those with."""
        results = []
        for reversible in (False, True):
            stack = Sequential(copy.deepcopy(transform), reversible=reversible)
            torch.manual_seed(3)
            x, context = (None if t is None else t.requires_grad_() for t in self.inputs(3, device))
            y, log_det = directed(stack, inverse)(x, context)
            leaves = [t for t in (x, context, *stack.parameters()) if t is not None]
            torch.manual_seed(4)
            total = (y * torch.randn_like(y)).sum() + (log_det * torch.randn_like(log_det)).sum()
            results.append((y, log_det, *torch.autograd.grad(total, leaves)))
        for expected, actual in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)

    def test_empty_batch(self, transform, device):
        x, context = self.inputs(0, device)
        y, log_det = transform(x, context)
        assert y.shape[0] == 0 and log_det.shape == (0,)
        assert transform.inverse(y, context)[0].shape == x.shape

    @torch.no_grad()
    def test_samples_do_not_meet(self, transform, device):
        x, context = self.inputs(5, device)
        whole = transform(x, context)
        for i in range(5):
            one = transform(x[i : i + 1], None if context is None else context[i : i + 1])
            for a, e in zip(one, whole, strict=True):
                torch.testing.assert_close(a[0], e[i])

    def test_any_strides(self, transform, device):
        x, context = self.inputs(3, device)
        expected = transform(x, context)
        for strided in (
            x.movedim(1, -1).contiguous().movedim(-1, 1),
            x.transpose(0, -1).contiguous().transpose(0, -1),
            torch.stack([x, -x], -1)[..., 0],
        ):
            for a, e in zip(transform(strided, context), expected, strict=True):
                torch.testing.assert_close(a, e)

    @torch.no_grad()
    def test_state_dict(self, transform, device, tmp_path):
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_model(transform, str(tmp_path / "transform"))
        torch.manual_seed(7)
        other = self.build().double().to(device)
        x, context = self.inputs(3, device)
        expected = transform(x, context)
        other(x, context)
        assert other.load_state_dict(transform.state_dict()) == ([], [])
        third = self.build().double().to(device)
        safetensors.load_model(third, str(tmp_path / "transform"))
        for loaded in (other, third):
            for again in (loaded(x, context), loaded.eval()(x, context)):
                for a, e in zip(again, expected, strict=True):
                    assert torch.equal(a, e)
            z, _ = expected
            torch.testing.assert_close(loaded.inverse(z, context)[0], x)

    @torch.no_grad()
    def test_copies(self, transform, device):
        x, context = self.inputs(3, device)
        expected = transform(x, context)
        for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
            for a, e in zip(other(x, context), expected, strict=True):
                assert torch.equal(a, e)
            for p in other.parameters():
                p.zero_()
            for a, e in zip(transform(x, context), expected, strict=True):
                assert torch.equal(a, e)

    @DIRECTIONS
    def test_no_synchronisation(self, transform, device, inverse):
        x, context = self.inputs(3, device)
        transform(x, context)  # knows now that it was initialised
        x.requires_grad_()
        for stack in (transform, Sequential(transform, reversible=True)):
            with NoSynchronisation():
                y, log_det = directed(stack, inverse)(x, context)
            # The first backward of a reversible flow may look at its graph.
            (y.sum() + log_det.sum()).backward()
            with NoSynchronisation():
                y, log_det = directed(stack, inverse)(x, context)
                (y.sum() + log_det.sum()).backward()
        with NoSynchronisation(), torch.no_grad():
            directed(transform.eval(), inverse)(x, context)

    @DIRECTIONS
    def test_torch_compile(self, transform, device, inverse):
        x, context = self.inputs(3, device)
        transform(x, context)
        expected = directed(transform, inverse)(x, context)
        torch.compiler.reset()
        compiled = torch.compile(Directed(transform, inverse), fullgraph=True, backend="aot_eager")
        for a, e in zip(compiled(x, context), expected, strict=True):
            torch.testing.assert_close(a, e)

    def test_torch_func(self, transform, device):
        """Gradients of each sample, by vmap."""
        if not list(transform.parameters()):
            pytest.skip("no parameters")
        x, context = self.inputs(3, device)
        transform(x, context)
        parameters = dict(transform.named_parameters())

        def loss(parameters, x, context):
            y, log_det = torch.func.functional_call(
                transform, parameters, (x[None], None if context is None else context[None])
            )
            return y.square().sum() + log_det.sum()

        each = torch.func.vmap(torch.func.grad(loss), (None, 0, None if context is None else 0))
        actual = each({n: p.detach() for n, p in parameters.items()}, x, context)
        for i in range(3):
            value = loss(parameters, x[i], None if context is None else context[i])
            for name, e in zip(parameters, torch.autograd.grad(value, parameters.values()), strict=True):
                torch.testing.assert_close(actual[name][i], e)


class Directed(nn.Module):
    """A direction as a module's forward."""

    def __init__(self, transform, inverse):
        super().__init__()
        self.transform, self.inverse = transform, inverse

    def forward(self, x, context=None):
        return directed(self.transform, self.inverse)(x, context)
