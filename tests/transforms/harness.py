"""A matrix of what torch does with a function or a module: trace, compile, export, differentiate, copy.

Each cell is "works", the sentence of a refusal, or "" where the transform does not apply. The matrix of some
subjects is a CSV in benchmarks/results, from which `tools/docs_tables.py` writes the table of
docs/transforms.md; `python -m transforms.harness transforms.operations` (in tests/) writes the CSV again.
"""

import contextlib
import copy
import csv
import importlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import gmfast

TESTS = Path(__file__).parents[1]
WORKS, DOES_NOT_APPLY = "works", ""
#: Sizes of a batch and of the other open dimension.
FIRST, SECOND = (3, 6), (5, 10)
#: The same for compilers, which take a size that equals another, of the weights too, for the same number.
OPEN = (7, 37), (9, 41)


@dataclass(frozen=True)
class Subject:
    """A function or a module, and what it is called with.

    Attributes:
        name: of the row in the matrix.
        build: makes the module, in evaluation mode, after a manual seed; `Function` makes one of a function.
        inputs: of a batch size and another open size, makes the positional inputs, floating ones in float64.
        wanted: inputs, by number, that have a derivative.
        shared: inputs, by number, without a batch dimension.
        plain: makes a module of the same parameters that plain PyTorch computes; None: the same module, with
            the operations' plain PyTorch forms.
        additive: whether each sample's results are its own, as data parallelism is tested by.
        backend: of torch.compile; "eager" where code generation takes long and is torch's alone.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], tuple]
    wanted: tuple[int, ...] = (0,)
    shared: tuple[int, ...] = ()
    plain: Callable[[], nn.Module] | None = None
    additive: bool = True
    backend: str = "aot_eager"

    def make(self, sizes=FIRST, seed=1):
        """Make the module and its inputs."""
        torch.manual_seed(0)
        module = self.build().double()
        torch.manual_seed(seed)
        return module, self.inputs(*sizes)


class Function(nn.Module):
    """A function as a module without parameters."""

    def __init__(self, function, **options):
        super().__init__()
        self.function, self.options = function, options

    def forward(self, *inputs):
        return self.function(*inputs, **self.options)


# ---- What plain PyTorch gives -------------------------------------------------------------------------


@contextlib.contextmanager
def plain_form(subject, module):
    """The module that computes what is expected of `module`."""
    if subject.plain is None:
        with gmfast.plain_pytorch():
            yield module
    else:
        torch.manual_seed(0)
        yield subject.plain().double()


def tensors(result):
    """Flatten what a call returns to a tuple of tensors."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def clones(inputs):
    return tuple(t.clone() if isinstance(t, Tensor) else t for t in inputs)


def expected_results(subject, module, inputs):
    with plain_form(subject, module) as plain, torch.no_grad():
        return tensors(plain(*clones(inputs)))


def assert_equal(actual, expected):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-8)


def differentiable(subject, module):
    return bool(subject.wanted) or any(True for _ in module.parameters())


def closed(subject, module, inputs):
    """Return a function of the wanted inputs and the parameters, and those."""
    names = [name for name, _ in module.named_parameters()]
    leaves = [inputs[i].detach() for i in subject.wanted]
    leaves += [p.detach() for p in module.parameters()]

    def function(*leaves):
        given = list(inputs)
        for i, leaf in zip(subject.wanted, leaves, strict=False):
            given[i] = leaf
        parameters = dict(zip(names, leaves[len(subject.wanted) :], strict=True))
        results = tensors(torch.func.functional_call(module, parameters, tuple(given)))
        return tuple(y for y in results if y.is_floating_point())

    return function, leaves


def weights(y):
    """Constants by which a result counts in the sum that is differentiated."""
    return torch.cos(torch.arange(y.numel(), dtype=y.dtype, device=y.device)).view(y.shape)


def score(results):
    """One number of some results, by which all of them count."""
    return sum((y * weights(y)).sum() for y in results)


def gradients(function, leaves, create_graph=False):
    """The gradients of `score` by autograd; zeros for a leaf that nothing depends on."""
    total = score(y for y in function(*leaves) if y.requires_grad)
    return torch.autograd.grad(total, leaves, create_graph=create_graph, materialize_grads=True)


def require_grad(leaves):
    return [leaf.detach().clone().requires_grad_() for leaf in leaves]


def expected_of(subject, module, inputs, compute):
    """`compute(function, leaves)` of the plain form."""
    with plain_form(subject, module) as plain:
        return compute(*closed(subject, plain, inputs))


def expected_gradients(subject, module, inputs):
    return expected_of(subject, module, inputs, lambda f, leaves: gradients(f, require_grad(leaves)))


# ---- The transforms: each raises what a user would see, or AssertionError for a wrong number ----------


def check_compiled(compiled, subject, module, inputs, with_gradients):
    """Results, and gradients where there are any, of a compiled module."""
    with torch.no_grad():
        results = tensors(compiled(*clones(inputs)))
    assert_equal(results, expected_results(subject, module, inputs))
    if with_gradients and differentiable(subject, module):
        leaves = [*(inputs[i].requires_grad_() for i in subject.wanted), *module.parameters()]
        torch.manual_seed(0)
        total = score(y for y in tensors(compiled(*inputs)) if y.requires_grad)
        actual = torch.autograd.grad(total, leaves, materialize_grads=True)
        assert_equal(actual, expected_gradients(subject, module, inputs))


def compile_open_sizes(subject):
    """torch.compile, sizes open: other sizes, forward and backward, need no new code."""
    torch._dynamo.reset()
    module, inputs = subject.make(OPEN[0])
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=subject.backend)
    check_compiled(compiled, subject, module, inputs, True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_compiled(compiled, subject, module, subject.make(OPEN[1])[1], True)


def compile_fullgraph(subject):
    """torch.compile as one graph, in a process that has called nothing before."""
    torch._dynamo.reset()
    module, inputs = subject.make()
    compiled = torch.compile(module, fullgraph=True, backend=subject.backend)
    check_compiled(compiled, subject, module, inputs, False)


def export_open_batch(subject):
    """torch.export, batch open: the program runs with another batch size."""
    module, inputs = subject.make()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({} if i in subject.shared else {0: batch} for i in range(len(inputs)))
    if isinstance(module, Function):
        shapes = (shapes,)  # of *inputs
    program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False).module()
    for batch_size in (FIRST[0], SECOND[0]):
        _, inputs = subject.make((batch_size, FIRST[1]))
        with torch.no_grad():
            results = tensors(program(*clones(inputs)))
        assert_equal(results, expected_results(subject, module, inputs))


def jit_trace(subject):
    """torch.jit.trace with gradients enabled; the trace is saved, loaded and called with other numbers."""
    module, inputs = subject.make()
    given = clones(inputs)
    for i in subject.wanted:
        given[i].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, given, check_trace=False)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    _, inputs = subject.make(seed=2)
    with torch.no_grad():
        results = tensors(loaded(*clones(inputs)))
    assert_equal(results, expected_results(subject, module, inputs))


def fx_trace(subject):
    """torch.fx.symbolic_trace: operations are nodes of the graph."""
    module, inputs = subject.make()
    names = [f"x{i}" for i in range(len(inputs))]
    if isinstance(module, Function):  # of as many arguments
        scope = {"module": module}
        source = f"lambda {', '.join(names)}: module.function({', '.join(names)}, **module.options)"
        root = eval(source, scope)  # symbolic_trace reads the signature
    else:
        root = module
    traced = torch.fx.symbolic_trace(root)
    with torch.no_grad():
        results = tensors(traced(*clones(inputs)))
    assert_equal(results, expected_results(subject, module, inputs))


def func_vjp(subject):
    """torch.func.vjp."""
    module, inputs = subject.make()
    function, leaves = closed(subject, module, inputs)
    results, pull = torch.func.vjp(function, *leaves)
    actual = pull(tuple(weights(y) for y in results))
    assert_equal(actual, expected_gradients(subject, module, inputs))


def func_jacrev(subject):
    """torch.func.jacrev, by all inputs and parameters."""
    module, inputs = subject.make()
    function, leaves = closed(subject, module, inputs)
    actual = torch.func.jacrev(function, tuple(range(len(leaves))))(*leaves)

    def jacobians(function, leaves):
        return torch.autograd.functional.jacobian(function, tuple(leaves))

    expected = expected_of(subject, module, inputs, jacobians)
    assert_equal([t for row in actual for t in row], [t for row in expected for t in row])


def func_vmap_grad(subject):
    """torch.func.vmap, and of torch.func.grad: the gradients of each sample."""
    module, inputs = subject.make()
    batched = [i not in subject.shared for i in subject.wanted]

    def per_sample(function_of, constants):
        """`function_of` of one sample's inputs as a batch of one."""

        def call(index, *leaves):
            given = [
                t if i in subject.shared or not isinstance(t, Tensor) else t[index][None]
                for i, t in enumerate(constants)
            ]
            function, own = closed(subject, module, tuple(given))
            own[: len(batched)] = [
                leaf[None] if is_batched else leaf for leaf, is_batched in zip(leaves, batched, strict=True)
            ]
            return function_of(function, own)

        return call

    leaves = [inputs[i] for i in subject.wanted]
    dims = (0, *(0 if is_batched else None for is_batched in batched))
    samples = torch.arange(FIRST[0])

    def of_each(transform, *, mapped):
        call = per_sample(transform, inputs)
        if mapped:
            return torch.func.vmap(call, dims, randomness="same")(samples, *leaves)
        rows = [
            call(i, *(t[i] if is_batched else t for t, is_batched in zip(leaves, batched, strict=True)))
            for i in range(FIRST[0])
        ]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

    def results(function, leaves):
        return function(*leaves)

    def gradient(function, leaves):
        return torch.func.grad(lambda *t: score(function(*t)), tuple(range(len(leaves))))(*leaves)

    def plain_gradient(function, leaves):
        return gradients(function, require_grad(leaves))

    actual = of_each(results, mapped=True)
    with plain_form(subject, module) as plain:
        module, ours = plain, module
        assert_equal(actual, of_each(results, mapped=False))
        module = ours
    if differentiable(subject, module):
        actual = of_each(gradient, mapped=True)
        with plain_form(subject, module) as module:
            assert_equal(actual, of_each(plain_gradient, mapped=False))


def second_derivative(subject):
    """The gradient of a penalty on the gradient, by autograd and by torch.func."""
    module, inputs = subject.make()

    def penalty(first):
        return sum(g.square().sum() for g in first)

    def again(function, leaves):
        leaves = require_grad(leaves)
        first = penalty(gradients(function, leaves, create_graph=True))
        if not first.requires_grad:
            return [torch.zeros_like(leaf) for leaf in leaves]
        return torch.autograd.grad(first, leaves, materialize_grads=True)

    expected = expected_of(subject, module, inputs, again)
    function, leaves = closed(subject, module, inputs)
    inputs = clones(inputs)
    own = [*(inputs[i].requires_grad_() for i in subject.wanted), *module.parameters()]
    first = penalty(gradients(lambda *_: tensors(module(*inputs)), own, create_graph=True))
    if first.requires_grad:
        assert_equal(torch.autograd.grad(first, own, materialize_grads=True), expected)
    else:
        assert not any(e.any() for e in expected), "a second derivative dropped silently"
    argnums = tuple(range(len(leaves)))
    first = torch.func.grad(lambda *t: score(function(*t)), argnums)
    assert_equal(torch.func.grad(lambda *t: penalty(first(*t)), argnums)(*leaves), expected)


def _checkpoint(subject, use_reentrant):
    module, inputs = subject.make()
    leaves = [*(inputs[i].requires_grad_() for i in subject.wanted), *module.parameters()]
    results = tensors(torch_checkpoint(module, *inputs, use_reentrant=use_reentrant))
    total = score(y for y in results if y.requires_grad)
    total.backward()
    actual = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    assert_equal(actual, expected_gradients(subject, module, inputs))


def checkpoint(subject):
    """torch.utils.checkpoint with use_reentrant=False, as torch recommends."""
    _checkpoint(subject, False)


def checkpoint_reentrant(subject):
    """torch.utils.checkpoint with use_reentrant=True."""
    _checkpoint(subject, True)


def copies(subject):
    """copy.deepcopy, pickle and torch.save, after a call with gradients and one without."""
    module, inputs = subject.make()
    if isinstance(module, Function):
        return DOES_NOT_APPLY
    results = tensors(module(*clones(inputs)))
    if any(y.requires_grad for y in results):
        score(y for y in results if y.requires_grad).backward()
    with torch.no_grad():
        expected = tensors(module(*clones(inputs)))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
        with torch.no_grad():
            assert_equal(tensors(other(*clones(inputs))), expected)


def _shapes_and_types(results):
    return [(tuple(y.shape), y.dtype) for y in results]


def _without_numbers(subject, make_tensor, mode):
    module, inputs = subject.make()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    wants = {name: t.requires_grad for name, t in state.items()}
    state = {name: t.detach() for name, t in state.items()}
    with mode:
        state = {name: make_tensor(t).requires_grad_(wants[name]) for name, t in state.items()}
        given = [make_tensor(t) if isinstance(t, Tensor) else t for t in inputs]
        leaves = [given[i].requires_grad_() for i in subject.wanted]
        leaves += [state[name] for name, _ in module.named_parameters()]
        results = tensors(torch.func.functional_call(module, state, tuple(given)))
        found = _shapes_and_types(results)
        if leaves:
            total = sum(y.sum() for y in results if y.requires_grad)
            torch.autograd.grad(total, leaves, allow_unused=True)
    assert found == _shapes_and_types(expected_results(subject, module, inputs))


def meta_tensors(subject):
    """Tensors on the meta device give shapes, forward and backward."""
    _without_numbers(subject, lambda t: t.to("meta"), contextlib.nullcontext())


def fake_tensors(subject):
    """Fake tensors give shapes, forward and backward."""
    mode = FakeTensorMode()
    _without_numbers(subject, mode.from_tensor, mode)


def data_parallel(subject):
    """DistributedDataParallel over two processes: the gradients of the whole batch."""
    module, inputs = subject.make((2 * FIRST[0], FIRST[1]))
    parameters = list(module.parameters())
    if not (parameters and subject.additive):
        return DOES_NOT_APPLY
    rank = torch.distributed.get_rank()
    part = slice(rank * FIRST[0], (rank + 1) * FIRST[0])
    own = [t if i in subject.shared else t[part] for i, t in enumerate(inputs)]
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel = DistributedDataParallel(module)
        results = tensors(parallel(*own))
        sum(y.square().sum() for y in results if y.requires_grad).backward()

    def of_squares(function, leaves):
        leaves = require_grad(leaves)
        total = sum(y.square().sum() for y in function(*leaves))
        return torch.autograd.grad(total, leaves, materialize_grads=True)

    expected = expected_of(subject, module, inputs, of_squares)
    assert_equal([2 * p.grad for p in parameters], expected[len(subject.wanted) :])


#: By the column's title: here, in a fresh process, and in two.
HERE = {
    "export": export_open_batch,
    "jit.trace": jit_trace,
    "fx": fx_trace,
    "vjp": func_vjp,
    "jacrev": func_jacrev,
    "vmap(grad)": func_vmap_grad,
    "second order": second_derivative,
    "checkpoint": checkpoint,
    "reentrant": checkpoint_reentrant,
    "copies": copies,
    "meta": meta_tensors,
    "fake": fake_tensors,
}
FRESH = {"fullgraph": compile_fullgraph, "open sizes": compile_open_sizes}
PROCESSES = {"DDP": data_parallel}
TRANSFORMS = FRESH | HERE | PROCESSES
#: What applies to something with a derivative only.
OF_DERIVATIVES = {"vjp", "jacrev", "second order", "checkpoint", "reentrant", "DDP"}


# ---- The matrix ---------------------------------------------------------------------------------------


def outcome(title, subject):
    """The cell of a subject: "works", a refusal's sentence, "" or what is wrong."""
    if title in OF_DERIVATIVES and not differentiable(subject, subject.make()[0]):
        return DOES_NOT_APPLY
    try:
        found = TRANSFORMS[title](subject)
        return WORKS if found is None else found
    except Exception as error:
        if os.environ.get("TRANSFORMS_RAISE"):
            raise
        return _refusal(error) or f"fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _refusal(error):
    """The sentence of an error in the package's form, "argument: expected this, got that", or None."""
    while error is not None:
        # As it is, or as Dynamo quotes the reason to leave a graph.
        found = re.search(r"(?:\A|\bMessage: )([\w, ]+: expected .*)", str(error))
        if found:
            return found[1]
        error = error.__cause__ or error.__context__
    return None


def _command(*arguments):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "transforms.harness", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def in_processes(module, count, first=0, step=1):
    """Cells of SUBJECTS[first::step] that need processes of their own: {row: {column: outcome}}."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [_command("run", module, rank, count, f"{folder}/store", first, step) for rank in range(count)]
        outputs = [job.communicate()[0] for job in jobs]
    assert not any(job.returncode for job in jobs), outputs
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    merged = found[0]
    for other in found[1:]:
        for row, cells in other.items():
            merged[row] |= {t: cell for t, cell in cells.items() if cell not in (WORKS, DOES_NOT_APPLY)}
    return merged


def _run_process(module, rank, count, store, first, step):
    torch.set_num_threads(1)
    subjects = importlib.import_module(module).SUBJECTS[first::step]
    titles = FRESH
    if count > 1:
        titles = PROCESSES
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count
        )
    print(json.dumps({s.name: {title: outcome(title, s) for title in titles} for s in subjects}))
    if count > 1:
        torch.distributed.destroy_process_group()


def matrix(module):
    """The whole matrix of a module's SUBJECTS: {row: {column: outcome}}."""
    subjects = importlib.import_module(module).SUBJECTS
    fresh, parallel = in_processes(module, 1), in_processes(module, 2)
    return {
        s.name: {
            title: fresh[s.name].get(title) or parallel[s.name].get(title) or DOES_NOT_APPLY
            if title not in HERE
            else outcome(title, s)
            for title in TRANSFORMS
        }
        for s in subjects
    }


def path_of(module):
    return TESTS.parent / "benchmarks" / "results" / f"{module.replace('.', '_')}.csv"


def read(module):
    """The matrix that the documentation shows."""
    with path_of(module).open(newline="") as file:
        return {row.pop("subject"): row for row in csv.DictReader(file)}


def write(module):
    """Write the matrix; wrong and failing cells are printed instead."""
    found = matrix(module)
    with path_of(module).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", *TRANSFORMS], lineterminator="\n")
        writer.writeheader()
        writer.writerows({"subject": name, **cells} for name, cells in found.items())
    for name, cells in found.items():
        for title, cell in cells.items():
            if cell.startswith("fails: "):
                print(f"{name}, {title}: {cell}")


if __name__ == "__main__":
    from transforms.harness import _run_process, write  # the module that subjects import, not this copy of it

    if sys.argv[1] == "run":
        _run_process(sys.argv[2], *map(int, sys.argv[3:5]), sys.argv[5], *map(int, sys.argv[6:]))
    else:
        write(sys.argv[1])
