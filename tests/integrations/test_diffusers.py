"""Every configuration of every accelerated scheduler beside diffusers' own."""

import inspect

import pytest
import torch
from integrations import diffusers_cases as cases

pytestmark = pytest.mark.peers
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("scipy")  # of the betas' and the linear multistep's options

from gmfast.integrations.diffusers import accelerate, install  # noqa: E402
from gmfast.integrations.diffusers.rule import RULES  # noqa: E402

LATEST = diffusers.__version__.split(".")[:2] >= ["0", "42"]


@pytest.mark.parametrize("case", cases.EVERY, ids=str)
@cases.quiet
def test_results_are_those_of_diffusers(case):
    """To 1e-5 of the largest; or, where diffusers' own rounding is more than that (and for halves), no
    further from its results in float64 than its own."""
    try:
        cases.make(case)
    except (TypeError, NotImplementedError):
        if LATEST:
            raise
        pytest.skip("an option of later versions")
    for dtype in cases.DTYPES:
        for theirs, ours, exact in zip(*cases.run(case, dtype, accelerate), strict=True):
            finite = theirs.isfinite() & exact.isfinite()
            if not finite.any():
                continue
            largest = exact[finite].abs().max()
            apart, error, their_error = (
                (v - w)[finite].abs().max() / largest
                for v, w in ((ours, theirs), (ours, exact), (theirs, exact))
            )
            if dtype.itemsize < 4:
                assert error <= max(their_error, torch.finfo(dtype).eps)
            else:  # their float64 has float32 in it: the coefficients, and what they round x to
                assert (
                    apart <= (1e-5 if dtype == torch.float32 else 3e-6) or error <= 1.5 * their_error < 1e-3
                )


@pytest.mark.parametrize("scheduler", cases.OPTIONS)
def test_every_option_is_decided_on(scheduler):
    """A new version's option fails here until somebody adds it to the cases, and to the rule's `known`."""
    parameters = inspect.signature(getattr(diffusers, scheduler).__init__).parameters.values()
    options = {p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
    tried = set(cases.OPTIONS[scheduler])
    tried |= {option for name, _, option in cases.REFUSED if name == scheduler}
    assert options <= tried
    assert options <= install.find(getattr(diffusers, scheduler)).rule.known


def test_every_rule_has_cases():
    assert set(RULES) == set(cases.OPTIONS)


@pytest.mark.parametrize("scheduler, config, option", cases.REFUSED)
@cases.quiet
def test_what_is_not_done_is_refused_by_name(scheduler, config, option):
    made = getattr(diffusers, scheduler)(**config)
    with pytest.raises(ValueError, match=f"expected another {option} than {config[option]!r}"):
        accelerate(made)
    assert "step" not in vars(made)


def test_the_documentation_has_every_configuration():
    """`python tests/integrations/diffusers_cases.py` writes it."""
    lines = cases.PAGE.read_text().partition(cases.MARK)[2].split("\n")[4:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line]
    assert [tuple(c[:2]) for c in cells] == list(cases.labels())
    for i, c in enumerate(cells):
        assert c[2].startswith("equal" if i < len(cases.EVERY) else "refused")
