"""What a call costs when there is nothing to compute: 16 elements, by the host's clock.

"recorded" is a call that autograd records; "forward+backward" adds autograd's way back through Python.
"""

from dataclasses import replace
from functools import partial

import torch

import gmfast.functional as GF
from gmfast import reference
from gmfast.benchmark import Case, Target, normal


def one_input(case, device):
    return (normal(case, device),)


def pixels_and_params(case, device):
    return torch.zeros(case.shape, device=device), normal(case, device, (1, 3, 4, 4))


CALLS = [
    Case(
        operation="call overhead: discretized_logistic_mixture_nll",
        shape=(1, 1, 4, 4),
        inputs=pixels_and_params,
        gmfast=partial(GF.discretized_logistic_mixture_nll, reduction="sum"),
        baselines={"exact": partial(reference.discretized_logistic_mixture_nll, reduction="sum")},
        wrt=(1,),
        host_clock=True,
    ),
    Case(
        operation="call overhead: gated_activation",
        shape=(1, 4, 2, 2),
        inputs=one_input,
        gmfast=GF.gated_activation,
        baselines={"textbook": reference.gated_activation},
        host_clock=True,
    ),
    Case(
        operation="call overhead: concat_elu",
        shape=(1, 4, 2, 2),
        inputs=one_input,
        gmfast=GF.concat_elu,
        baselines={"textbook": reference.concat_elu},
        host_clock=True,
    ),
]

DIRECTIONS = {"forward": {"cpu": Target(us=6)}, "recorded": {"cpu": Target(us=15)}, "forward+backward": {}}

CASES = [
    replace(call, direction=direction, targets=targets)
    for call in CALLS
    for direction, targets in DIRECTIONS.items()
]
