"""Every operation of `gmfast.functional`, as the matrix of transforms has it."""

import torch
from transforms.harness import Function, Subject

import gmfast.functional as GF
from gmfast import diffusion


def _normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def _pixels(*shape):
    return torch.randint(0, 256, shape).double() / 127.5 - 1


def _operation(name, inputs, function=None, *, wanted=(0,), shared=(), **options):
    def operation(*inputs, **options):  # looked up in its module, where torch.fx finds it
        return getattr(GF, name.split()[0])(*inputs, **options)

    function = function or operation
    return Subject(name, lambda: Function(function, **options), inputs, wanted, shared)


def _hybrid_loss_inputs(batch, size):
    return (
        _normal(batch, 4, size),
        _pixels(batch, 2, size),
        _normal(batch, 2, size),
        _normal(batch, 2, size),
        diffusion.training_table(),
        torch.arange(batch),
    )


def _step_inputs(batch, size):
    return _normal(batch, 2, size), _normal(batch, 2, size), diffusion.plan("ddpm", steps=10).table("cpu")


def _update(x, state, weight):
    state = state.clone()
    return GF.causal_conv1d_update(x, state, weight, groups=weight.shape[0]), state


SUBJECTS = [
    _operation(
        "actnorm", lambda b, n: (_normal(b, 4, n), _normal(4), _normal(4)), wanted=(0, 1, 2), shared=(1, 2)
    ),
    _operation(
        "actnorm inverse",
        lambda b, n: (_normal(b, 4, n), _normal(4), _normal(4)),
        wanted=(0, 1, 2),
        shared=(1, 2),
        inverse=True,
    ),
    _operation(
        "affine_coupling",
        lambda b, n: (_normal(b, 4, n), _normal(b, 2, n), _normal(b, 2, n)),
        wanted=(0, 1, 2),
        scale_map="tanh",
    ),
    _operation(
        "affine_coupling packed",
        lambda b, n: (_normal(b, 4, n), _normal(b, 4, n)),
        lambda x, params, **options: GF.affine_coupling(x, params, None, **options),
        wanted=(0, 1),
        packed="chunk",
        inverse=True,
    ),
    _operation(
        "causal_conv1d",
        lambda b, n: (_normal(b, 1, n), _normal(4, 1, 2), _normal(4)),
        wanted=(0, 1, 2),
        shared=(1, 2),
    ),
    _operation(
        "causal_conv1d depthwise",
        lambda b, n: (_normal(b, 4, n), _normal(4, 1, 3), _normal(4)),
        wanted=(0, 1, 2),
        shared=(1, 2),
        groups=4,
        activation="silu",
    ),
    _operation(
        "causal_conv1d_update",
        lambda b, n: (_normal(b, 4, n), _normal(b, 4, 2), _normal(4, 1, 3)),
        _update,
        wanted=(),
        shared=(2,),
    ),
    _operation("concat_elu", lambda b, n: (_normal(b, 4, n),)),
    _operation("dequantize_logit", lambda b, n: (torch.randint(0, 256, (b, 2, n)).double(),), seed=3),
    _operation("dequantize_logit inverse", lambda b, n: (_normal(b, 2, n),), inverse=True, quantize=False),
    _operation("diffusion_hybrid_loss", _hybrid_loss_inputs, shared=(4,)),
    _operation("diffusion_step", _step_inputs, wanted=(0, 1), shared=(2,), clip=1.0),
    _operation("diffusion_step with noise", _step_inputs, wanted=(0, 1), shared=(2,), step=3, seed=3),
    _operation(
        "discretized_gaussian_nll",
        lambda b, n: (_pixels(b, 2, n), _normal(b, 2, n), _normal(b, 2, n)),
        wanted=(1, 2),
    ),
    _operation(
        "discretized_logistic_mixture_nll",
        lambda b, n: (_pixels(b, 1, n), _normal(b, 6, n)),
        wanted=(0, 1),
    ),
    _operation(
        "discretized_logistic_mixture_nll of colours",
        lambda b, n: (_pixels(b, 3, n), _normal(b, 20, n)),
        wanted=(1,),
        reduction="batch",
    ),
    _operation(
        "discretized_logistic_mixture_sample",
        lambda b, n: (_normal(b, 20, n),),
        wanted=(),
        channels=3,
        seed=3,
    ),
    _operation("gated_activation", lambda b, n: (_normal(b, 4, n), _normal(b, 2, n)), wanted=(0, 1)),
    _operation("gaussian_kl", lambda b, n: tuple(_normal(b, 2, n) for _ in range(4)), wanted=(0, 1, 2, 3)),
    _operation("gaussian_log_prob", lambda b, n: tuple(_normal(b, 2, n) for _ in range(3)), wanted=(0, 1, 2)),
    _operation(
        "langevin_step",
        lambda b, n: (_normal(b, 2, n), _normal(b, 2, n)),
        lambda x, score, **options: GF.langevin_step(x, score, **options),
        wanted=(0, 1),
        step_size=0.1,
        seed=3,
    ),
    _operation(
        "logistic_mixture_cdf",
        lambda b, n: (_normal(b, n), *(_normal(b, n, 2) for _ in range(3))),
        wanted=(0, 1, 2, 3),
    ),
    _operation(
        "logistic_mixture_cdf inverse",
        lambda b, n: (_normal(b, n), *(_normal(b, n, 2) for _ in range(3))),
        wanted=(0, 1, 2, 3),
        inverse=True,
    ),
    _operation(
        "masked_conv2d",
        lambda b, n: (_normal(b, 3, n, 4), _normal(6, 3, 3, 3), _normal(6)),
        wanted=(0, 1, 2),
        shared=(1, 2),
        channel_groups=3,
    ),
    _operation("q_sample", lambda b, n: (_normal(b, 2, n), _normal(b), _normal(b)), wanted=(0, 1, 2), seed=3),
    _operation(
        "rational_quadratic_spline",
        lambda b, n: (_normal(b, n), _normal(b, n, 4), _normal(b, n, 4), _normal(b, n, 3)),
        wanted=(0, 1, 2, 3),
    ),
    _operation(
        "rational_quadratic_spline inverse, packed",
        lambda b, n: (_normal(b, n), _normal(b, n, 11)),
        lambda x, params, **options: GF.rational_quadratic_spline(x, params, None, None, **options),
        wanted=(0, 1),
        packed=True,
        inverse=True,
    ),
    _operation(
        "standard_normal",
        lambda b, n: (_normal(b, n),),
        lambda x: GF.standard_normal(x.shape, seed=3, dtype=torch.float64),
        wanted=(),
    ),
]
