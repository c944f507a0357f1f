import pytest
import torch
from models.flow_contracts import FlowContracts, Reversible

from gmfast.models import RealNVP


class TestRealNVP(FlowContracts, Reversible):
    model = RealNVP
    smallest = (1, 2, 4)

    def tiny(self):
        return {"num_blocks": 1, "num_filters": 6}

    def test_reversible_training_saves_the_same_at_any_depth(self):
        """The number of blocks is the depth of a network; that of scales adds couplings."""
        shape = (1, 8, 8)
        stored = [self.saved_bytes(False, image_shape=shape, num_scales=n) for n in (1, 3)]
        recomputed = [self.saved_bytes(True, image_shape=shape, num_scales=n) for n in (1, 3)]
        assert stored[1] > 1.5 * stored[0] and recomputed[1] < 1.1 * recomputed[0] < 0.2 * stored[0]


class TestRealNVPOfArctangents(TestRealNVP):
    image_shape = (1, 4, 6)

    def tiny(self):
        return super().tiny() | {"scale_map": "atan", "num_blocks": 0, "num_scales": 2}


def test_couplings_change_the_fields_of_a_checkerboard_in_turns():
    """Then halves of the squeezed channels; half of the values leave before the last scale."""
    model = RealNVP((1, 4, 4), num_blocks=0, num_filters=4).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    even = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    steps = list(model.transform)
    x = torch.randn(1, 1, 4, 4, dtype=torch.double)
    for i in (0, 2, 4):
        y, _ = steps[i](x)
        kept = even if i % 4 == 0 else ~even
        assert (
            torch.equal(x[..., kept], y[..., kept]) and not torch.isclose(x[..., ~kept], y[..., ~kept]).any()
        )
    assert steps[-2].kept == 2 and len(steps[-2].transform) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (1, 8, 9)},
            r"image_shape: expected H and W to be multiples of 2, which are halved 1 times, got \(1, 8, 9\)",
        ),
        ({"num_scales": 0}, "num_scales: expected at least 1, got 0"),
        (
            {"image_shape": (1, 4, 4), "num_scales": 3},
            r"num_scales: expected the last scale of \(1, 4, 4\) to have two pixels or more, got 3",
        ),
        ({"scale_map": "exp"}, "scale_map: expected tanh or atan, got 'exp'"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        RealNVP(**options)
