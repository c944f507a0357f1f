"""Every module of `gmfast.nn`, transforms in both directions, as the matrix of transforms has it."""

import torch
from torch import nn
from transforms.harness import Subject

import gmfast.nn as gnn


class Inverse(nn.Module):
    """A transform's inverse as a module's forward."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, z, context=None):
        return self.transform.inverse(z, context)


class LogProb(nn.Module):
    """A flow's log-density as a module's forward."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x, context=None):
        return self.flow.log_prob(x, context)


class ByPasses(nn.Module):
    """The inverse of a masked autoregressive transform by D passes of the network, through which autograd
    goes."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def forward(self, z):
        transform, x = self.transform, torch.zeros_like(z)
        for index in transform.order.tolist():
            y = transform.transform(z, transform._run(x, None)[0], inverse=True)[0]
            x = torch.where(torch.arange(z.shape[1]) == index, y, x)
        return x, -transform(x)[1]


def _conditioner(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


def _stack(reversible=False):
    return gnn.Sequential(
        gnn.AffineCoupling(_conditioner(2, 4), scale_map="tanh"),
        gnn.Permute.reverse(4),
        gnn.AffineCoupling(_conditioner(2, 4), scale_map="tanh"),
        reversible=reversible,
    )


def _actnorm():
    actnorm = gnn.ActNorm(4)
    actnorm.initialize(torch.randn(8, 4, 3) * 2 + 1)
    return actnorm


def _split():
    return gnn.Split(gnn.AffineCoupling(nn.Conv2d(1, 2, 1)))


def _vectors(values=4):
    return lambda b, n: (torch.randn(b, values, dtype=torch.float64),)


def _sequences(channels=4):
    return lambda b, n: (torch.randn(b, channels, n, dtype=torch.float64),)


def _images(channels=4):
    return lambda b, n: (torch.randn(b, channels, n, 4, dtype=torch.float64),)


def _transform(name, build, inputs, forward_plain=None, inverse_plain=None, inverse_inputs=None):
    """Both directions of a transform."""
    yield Subject(name, lambda: build().eval(), inputs, plain=forward_plain)
    yield Subject(
        f"{name}.inverse", lambda: Inverse(build()).eval(), inverse_inputs or inputs, plain=inverse_plain
    )


def _elementwise(name, **options):
    """An elementwise transform both ways, the inverse of numbers that the transform has for normal ones."""

    def inverse_inputs(b, n):
        x = torch.randn(b, 4, n, dtype=torch.float64)
        return (getattr(gnn, name)(**options).double().eval()(x)[0].detach(),)

    return _transform(
        name,
        lambda: getattr(gnn, name)(**options),
        _positive if name == "Logit" else _sequences(),
        inverse_inputs=_sequences() if name == "Logit" else inverse_inputs,
    )


def _positive(b, n):
    return (torch.rand(b, 4, n, dtype=torch.float64) * 0.9 + 0.05,)


def _on(base):
    """A flow's density with a base distribution."""
    return lambda: LogProb(gnn.Flow(base(), _stack()))


def _autoregressive(name, **options):
    def build():
        transform = getattr(gnn, name)(4, (6,), activation="tanh", **options)
        for parameter in transform.parameters():
            nn.init.normal_(parameter, std=0.5)
        return transform

    return _transform(name, build, _vectors(), inverse_plain=lambda: ByPasses(build()))


SUBJECTS = [
    Subject("CausalConv1d", lambda: gnn.CausalConv1d(1, 4, 2), _sequences(1)),
    Subject(
        "CausalConv1d(groups)",
        lambda: gnn.CausalConv1d(4, 4, 3, groups=4, activation="silu"),
        _sequences(),
    ),
    Subject(
        "CausalConv1d, Conv1d",
        lambda: nn.Sequential(gnn.CausalConv1d(1, 4, 2), nn.Conv1d(4, 5, 1)),
        _sequences(1),
    ),
    Subject("MaskedConv2d", lambda: gnn.MaskedConv2d(3, 6, 3, channel_groups=3), _images(3)),
    Subject("GatedActivation", gnn.GatedActivation, _sequences()),
    Subject("ConcatELU", gnn.ConcatELU, _sequences()),
    Subject(
        "MaskedLinear",
        lambda: gnn.MaskedLinear(4, 6),
        lambda b, n: (torch.randn(b, 4, dtype=torch.float64), torch.ones(6, 4).tril() > 0),
        shared=(1,),
    ),
    Subject(
        "MaskedMLP",
        lambda: gnn.MaskedMLP(4, (6,), 2),
        lambda b, n: (torch.randn(b, 4, dtype=torch.float64), torch.tensor([2, 0, 1, 3])),
        shared=(1,),
    ),
    *_transform("ActNorm", _actnorm, _sequences()),
    *_transform("InvertibleConv1x1", lambda: gnn.InvertibleConv1x1(4), _sequences()),
    *_transform("InvertibleConv1x1(lu=False)", lambda: gnn.InvertibleConv1x1(4, lu=False), _sequences()),
    *_transform("AffineCoupling", lambda: gnn.AffineCoupling(_conditioner(2, 4), clamp=1.0), _vectors()),
    *_transform("SplineCoupling", lambda: gnn.SplineCoupling(_conditioner(2, 22), num_bins=4), _vectors()),
    *_transform(
        "LogisticMixtureCoupling",
        lambda: gnn.LogisticMixtureCoupling(_conditioner(2, 16), num_components=2),
        _vectors(),
    ),
    *_autoregressive("MaskedAffineAutoregressive"),
    *_autoregressive("MaskedSplineAutoregressive", num_bins=4),
    *_transform("Sequential", _stack, _vectors()),
    *_transform(
        "Sequential(reversible=True)",
        lambda: _stack(reversible=True),
        _vectors(),
        _stack,
        lambda: Inverse(_stack()),
    ),
    *_transform("Permute", lambda: gnn.Permute([2, 0, 3, 1]), _sequences()),
    *_transform("Squeeze2d", gnn.Squeeze2d, lambda b, n: _images()(b, 2 * n)),
    *_transform("Split", _split, _images(4)),
    *_transform("Inverse", lambda: gnn.Inverse(_actnorm()), _sequences()),
    *_transform("Spline", lambda: gnn.Spline(4, 3, identity_init=False), _sequences()),
    *_transform(
        "Spline(kind='quadratic')",
        lambda: gnn.Spline(4, 3, kind="quadratic", identity_init=False),
        _sequences(),
    ),
    *_transform("PeriodicShift", lambda: gnn.PeriodicShift(4, [1], shift=0.3), _sequences()),
    *_transform("Householder", lambda: gnn.Householder(4), _sequences()),
    *_transform("Planar", lambda: gnn.Planar(4), _vectors()),
    *_transform("Radial", lambda: gnn.Radial(4), _vectors()),
    *_elementwise("Affine", shift=0.5, scale=2.0),
    *_elementwise("Sigmoid"),
    *_elementwise("Logit"),
    *_elementwise("Tanh"),
    *_elementwise("Exp"),
    *_elementwise("Softplus"),
    *_elementwise("LeakyReLU"),
    *_elementwise("Cubic"),
    *_elementwise("SignedPower", exponent=1.5),
    *_elementwise("CauchyCDF"),
    *_elementwise("Softclip", bound=2.0),
    Subject("Flow", lambda: LogProb(gnn.Flow((4,), _stack())), _vectors()),
    Subject("Flow(StandardNormal)", _on(lambda: gnn.StandardNormal((4,))), _vectors()),
    Subject("Flow(DiagonalNormal)", _on(lambda: gnn.DiagonalNormal((4,))), _vectors()),
    Subject("Flow(GaussianMixture)", _on(lambda: gnn.GaussianMixture((4,), 3)), _vectors()),
    Subject("Flow(BoxUniform)", _on(lambda: gnn.BoxUniform(-50.0, 50.0, (4,))), _vectors()),
    Subject(
        "Flow(ConditionalDiagonalNormal)",
        lambda: LogProb(gnn.Flow(gnn.ConditionalDiagonalNormal((4,), nn.Linear(2, 8)), gnn.Householder(4))),
        lambda b, n: (*_vectors()(b, n), torch.randn(b, 2, dtype=torch.float64)),
    ),
]
