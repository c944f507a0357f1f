"""Slices that cover a tensor: the gradient in one piece equals that of copies, whoever asks for it, and how."""

import gc

import pytest
import torch
from torch import nn

from gmfast import functional as GF
from gmfast._library import devices
from gmfast.ops import _views

SIZES = 4, 6, 5, 7


def coupling(x, parts):
    y, log_det = GF.affine_coupling(x, *parts)
    return y.sin().sum() + log_det.sum()


def spline(x, parts):
    y, log_det = GF.rational_quadratic_spline(x, *parts)
    return y.sin().sum() + log_det.sum()


CASES = {
    "chunk": (coupling, (4, 12, 5, 7), lambda p: p.chunk(2, 1)),
    "slices": (coupling, (4, 12, 5, 7), lambda p: (p[:, :6], p[:, 6:])),
    "in turns": (coupling, (4, 12, 5, 7), lambda p: (p[:, ::2], p[:, 1::2])),
    "channels last": (coupling, (4, 5, 7, 12), lambda p: p.permute(0, 3, 1, 2).chunk(2, 1)),
    "unbind": (coupling, (4, 12), lambda p: p.view(4, 6, 2).unbind(2)),
    "spline": (spline, (4, 48, 5, 7), lambda p: p.unflatten(1, (6, 8)).movedim(2, -1).split([3, 3, 2], -1)),
    "spline rows": (
        spline,
        (4, 6 * 35 * 8),
        lambda p: [p.view(4, 6, 5, 7, 8)[..., a:b] for a, b in ((0, 3), (3, 6), (6, 8))],
    ),
    # not in one of the layouts, or with something between
    "scale first": (coupling, (4, 12, 5, 7), lambda p: p.chunk(2, 1)[::-1]),
    "not all": (coupling, (4, 13, 5, 7), lambda p: (p[:, :6], p[:, 6:12])),
    "overlapping": (coupling, (4, 12, 5, 7), lambda p: (p[:, :6], p[:, 3:9])),
    "twice": (coupling, (4, 6, 5, 7), lambda p: (p, p)),
    "reversed gradient": (coupling, (4, 12, 5, 7), lambda p: Reversed.apply(p).chunk(2, 1)),
    "one detached": (coupling, (4, 12, 5, 7), lambda p: (p[:, :6], p[:, 6:].detach())),
    "changed": (coupling, (4, 12, 5, 7), lambda p: (p[:, :6].mul_(2), p[:, 6:])),
}
JOINED = ("chunk", "slices", "in turns", "channels last", "unbind", "spline", "spline rows")


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


@pytest.fixture(autouse=True)
def joins(monkeypatch):
    """Tensors of any size are joined; the list of what was."""
    if not devices:
        pytest.skip("no compiled library")
    monkeypatch.setattr(_views, "_LEAST", 0)
    found = []
    apply = _views._Join.apply
    monkeypatch.setattr(_views._Join, "apply", lambda *args: found.append(1) or apply(*args))
    return found


def tensors(case):
    function, shape, split = CASES[case]
    generator = torch.Generator().manual_seed(0)
    sizes = SIZES[: len(shape)] if function is coupling else SIZES
    x = torch.randn(sizes, generator=generator, dtype=torch.float64).requires_grad_()
    params = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    return function, split, x, params


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leaf", [True, False])
def test_gradients_are_those_of_copies(case, leaf, joins):
    function, split, x, params = tensors(case)
    if case == "changed" and leaf:
        pytest.skip("a leaf is not changed in place")
    found = []
    for copies in (False, True):
        base = params if leaf else params * 1.0
        parts = split(base)
        parts = [part.clone() for part in parts] if copies else parts
        loss = function(x, parts)
        del parts
        first = torch.autograd.grad(loss, (x, params), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, params))
        found.append((loss, *first, *second))
    torch.testing.assert_close(*found)
    assert len(joins) == (case in JOINED)


@pytest.mark.parametrize("case", JOINED)
def test_slices_that_are_held_get_their_gradients(case):
    function, split, x, params = tensors(case)
    expected = None
    for way in ("copies", "grad", "retain", "hook", "later hook", "backward", "second"):
        x.grad = params.grad = None
        base = params * 1.0
        parts = split(base)
        used = [part.clone() for part in parts] if way == "copies" else parts
        got = {}
        if way == "retain":
            parts[1].retain_grad()
        if way == "hook":
            parts[1].register_hook(lambda grad, got=got: got.update(grad=grad))
        loss = function(x, used)
        if way in ("copies", "grad"):
            grads = torch.autograd.grad(loss, (used[1], params))
        elif way == "second":
            gradient = torch.autograd.grad(loss, x, create_graph=True)[0]
            again = torch.autograd.grad(gradient.square().sum(), parts[1], retain_graph=True)[0]
            whole = torch.autograd.grad(gradient.square().sum(), base)[0]
            torch.testing.assert_close(split(whole)[1], again)
            continue
        else:
            if way == "later hook":
                parts[1].register_hook(lambda grad, got=got: got.update(grad=grad))
            loss.backward()
            grads = (
                (got["grad"] if "hook" in way else parts[1].grad if way == "retain" else None),
                params.grad,
            )
        expected = grads if expected is None else expected
        for ours, right in zip(grads, expected, strict=True):
            if ours is not None:
                torch.testing.assert_close(ours, right)


def test_the_base_gets_its_gradient_in_one_piece(joins):
    x, net = torch.randn(4, 6, 5, 7), nn.Conv2d(6, 12, 1)
    output = net(x)
    base = output.grad_fn
    seen = []
    base.register_prehook(lambda grads: seen.append(grads[0]._base is not None or grads[0].is_contiguous()))
    sliced = []
    first, second = output.chunk(2, 1)
    first.grad_fn.register_prehook(lambda grads: sliced.append(any(g is not None for g in grads)))
    y, log_det = GF.affine_coupling(x, first, second)
    (y.sum() + log_det.sum()).backward()  # held, but nobody asks
    assert joins and seen == [True] and not any(sliced)
    del first, second
    gc.collect()


def test_without_gradients_and_in_transforms_nothing_is_joined(joins):
    x, params = torch.randn(4, 6), torch.randn(4, 12)
    GF.affine_coupling(x, *params.chunk(2, 1))
    params.requires_grad_()
    with torch.no_grad():
        GF.affine_coupling(x, *params.chunk(2, 1))
    expected = torch.autograd.grad(GF.affine_coupling(x, *params.chunk(2, 1))[0].square().sum(), params)[0]
    assert len(joins) == 1
    loss = lambda p: GF.affine_coupling(x, *p.chunk(2, 1))[0].square().sum()  # noqa: E731
    torch.testing.assert_close(torch.func.grad(loss)(params.detach()), expected)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(params), params)[0], expected)
    assert len(joins) == 1
