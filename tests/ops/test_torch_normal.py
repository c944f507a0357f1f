"""Against `torch.randn`: the same numbers to rounding, and the generator's state to the last byte."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.contracts import threads

from gmfast import _library
from gmfast.ops import torch_normal as module
from gmfast.ops.torch_normal import torch_normal

#: of torch's rounding of the angle without AVX2, times the largest radius; else of log, cos and sin
TOLERANCE = 6.8e-6 if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") else 1e-6


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """The kernel makes as few numbers as it can."""
    monkeypatch.setattr(module, "FEWEST", 16)


def pair(seed):
    return tuple(torch.Generator().manual_seed(seed) for _ in range(2))


def same_state(ours, theirs):
    return torch.equal(ours.get_state(), theirs.get_state())


def close(numbers, expected):
    assert ((numbers - expected).abs() <= TOLERANCE * (1 + expected.abs())).all()


def same(ours, theirs, shape):
    numbers = torch_normal(shape, generator=ours)
    expected = torch.randn(shape, generator=theirs)
    assert numbers.shape == expected.shape and numbers.dtype == torch.float32 and numbers.is_contiguous()
    close(numbers, expected)
    assert same_state(ours, theirs)


def test_this_torch_is_a_known_one():
    """Else everything here compares torch with itself."""
    if _library._C is None:
        pytest.skip("no compiled library")
    assert module._is_the_same()


def test_sizes():
    """One after another, so that each begins somewhere else in the words of a twist."""
    ours, theirs = pair(3)
    for size in (*range(1, 1300), *range(1300, 5001, 37), 9984, 9985, 624, 625, 623):
        same(ours, theirs, (size,))


@pytest.mark.parametrize(
    "shape", [(1, 4, 64, 64), (3, 1, 5, 7), [2, 3, 111, 113], (2, 1, 1_000_003)], ids=str
)
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 + 17, -9])
def test_shapes_and_seeds(shape, seed):
    ours, theirs = pair(seed)
    for _ in range(2):
        same(ours, theirs, shape)


BETWEEN = {
    "rand": lambda g: torch.rand(5, generator=g),
    "rand in double": lambda g: torch.rand(3, generator=g, dtype=torch.float64),
    "randint": lambda g: torch.randint(2**40, (7,), generator=g),
    "randperm": lambda g: torch.randperm(11, generator=g),
    "normal in double": lambda g: torch.empty(5, dtype=torch.float64).normal_(generator=g),
    "randn in half": lambda g: torch.randn(33, generator=g, dtype=torch.float16),
    "a few": lambda g: torch.randn(3, generator=g),  # leaves a number behind
    "not contiguous": lambda g: torch.empty(9, 8).t().normal_(generator=g),
    "exponential": lambda g: torch.empty(6).exponential_(generator=g),
    "bernoulli": lambda g: torch.empty(6).bernoulli_(0.5, generator=g),
    "multinomial": lambda g: torch.multinomial(torch.ones(8), 3, generator=g),
    "seed": lambda g: g.manual_seed(11) and torch.tensor(0),
    "state": lambda g: g.set_state(torch.Generator().manual_seed(4).get_state()) and torch.tensor(0),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_other_draws_before_and_after(name):
    ours, theirs = pair(7)
    for size in (16, 17, 100, 619, 2500, 30, 1):
        assert torch.equal(BETWEEN[name](ours), BETWEEN[name](theirs))
        same(ours, theirs, (size,))


def test_the_global_generator():
    torch.manual_seed(5)
    expected, after = torch.randn(100), torch.rand(3)
    torch.manual_seed(5)
    close(torch_normal((100,)), expected)
    assert torch.equal(torch.rand(3), after)


def test_the_same_bits_with_any_threads():
    expected = torch_normal((300, 301), generator=torch.Generator().manual_seed(2))
    for count in (1, 2, 5):
        with threads(count):
            numbers = torch_normal((300, 301), generator=torch.Generator().manual_seed(2))
        assert torch.equal(numbers, expected)


def test_the_kernel_is_used(monkeypatch):
    """From `FEWEST` numbers on, and only there."""
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(module, "_is_the_same", lambda: calls.append(1))
    for size in (16, module.FEWEST - 1):
        torch_normal((size,))
    assert not calls
    torch_normal((module.FEWEST,))
    assert calls


def test_extremes():
    """Words whose radius is the largest and 0, and angles at the quadrants' borders, put into the state."""
    words = [0xFFFFFF, 0, 1, 0xFFFFFE, 0xFFFFFF, 0x800000, 0, 0xFFFFFF]
    words += [0, 0x400000, 0x3FFFFF, 0x400001, 0xC00000, 0xBFFFFF, 0xFFFFFF, 0x800000]
    ours, theirs = pair(0)
    state = ours.get_state()
    numbers = state[24 : 24 + 624 * 8].view(torch.int64)
    numbers[:16] = torch.tensor([untempered(w) for w in words])
    state[8:12].view(torch.int32)[0] = 624  # 623 are left
    state[16:24].view(torch.int64)[0] = 0
    for generator in (ours, theirs):
        generator.set_state(state)
    drawn = torch_normal((16,), generator=ours)
    expected = torch.randn(16, generator=theirs)
    assert drawn.isfinite().all() and drawn.abs().max() > 5.7
    close(drawn, expected)
    assert same_state(ours, theirs)


def untempered(word):
    word ^= word >> 18
    word ^= (word << 15) & 0xEFC60000
    bits = word
    for _ in range(5):
        bits = word ^ ((bits << 7) & 0x9D2C5680)
    word = bits
    for _ in range(3):
        bits = word ^ (bits >> 11)
    return bits & 0xFFFFFFFF


def test_threads_share_a_generator():
    """Each call has numbers of its own: together those of the calls in turn."""
    ours, theirs = pair(9)
    if not module._is_the_same():
        pytest.skip("torch's own does so")
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: torch_normal((1000,), generator=ours), range(200)))
    expected = torch.stack([torch_normal((1000,), generator=theirs) for _ in range(200)])
    order = torch.stack(drawn)[:, 0].argsort(), expected[:, 0].argsort()
    assert torch.equal(torch.stack(drawn)[order[0]], expected[order[1]])
    assert same_state(ours, theirs)


def test_what_is_left_to_torch():
    """Tensors that nothing computes, compiled code, functorch, and another torch."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        assert isinstance(torch_normal((4, 8)), FakeTensor)
    noise = torch.vmap(lambda x: x + torch_normal((20,)), randomness="different")(torch.zeros(3))
    assert noise.shape == (3, 20) and noise[0].ne(noise[1]).all()
    ours, theirs = pair(1)
    with pytest.raises(RuntimeError):
        torch_normal((-1, 20), generator=ours)
    assert torch_normal((0, 20), generator=ours).shape == (0, 20) and same_state(ours, theirs)


def test_torch_compile():
    draw = torch.compile(lambda x: x + torch_normal(tuple(x.shape)), fullgraph=True, backend="aot_eager")
    assert draw(torch.zeros(5, 8)).std() > 0.5


def test_another_torch_is_not_imitated(monkeypatch):
    """The first call finds out; a machine without the library has none."""
    calls = []
    module._is_the_same.cache_clear()
    monkeypatch.setattr(module, "_draw", lambda state, size: calls.append(1) or torch.zeros(size))
    try:
        ours, theirs = pair(1)
        assert torch.equal(torch_normal((50,), generator=ours), torch.randn(50, generator=theirs))
        assert same_state(ours, theirs) and len(calls) <= 1
    finally:
        module._is_the_same.cache_clear()


@pytest.mark.skipif(_library._C is None, reason="no compiled library")
def test_states_that_are_none():
    draw = torch.ops.gmfast.torch_normal
    good = torch.Generator().get_state()
    assert draw(good.clone(), [16]).shape == (16,)
    for change in (slice(8, 12), slice(16, 24)):
        bad = good.clone()
        bad[change] = 255
        with pytest.raises(RuntimeError, match="state"):
            draw(bad, [16])
    for bad in (good[:100], good.float(), good.repeat(2)[::2]):
        with pytest.raises(RuntimeError, match="state"):
            draw(bad, [16])
    with pytest.raises(RuntimeError, match="16 numbers"):
        draw(good, [15])
