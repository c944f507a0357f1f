"""The package's import graph: no circles, and the reference implementations stay an oracle and a fallback."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gmfast"

#: Modules that may import from `gmfast.reference`, as prefixes of their names: the operations, which fall
#: back to it; the decode programs' executor, likewise; and benchmarks, which time it.
USERS_OF_REFERENCE = ("gmfast.ops.", "gmfast.decode.", "gmfast.benchmarks.", "gmfast.reference")


def module_files():
    """Path of each module's file by the module's dotted name."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported_names(tree, package):
    """Dotted names that a module's source imports, at any depth, but for `if TYPE_CHECKING`.

    Args:
        tree: the parsed source.
        package: name of the package that relative imports start from.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imported_names(other, package)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package.split(".")
                base = ".".join([*start[: len(start) - node.level + 1], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from imported_names(node, package)


def import_graph(files):
    """The modules that each module imports from directly.

    `from package import name` is an edge to the submodule of that name where there is one, else to the
    package; the compiled module `gmfast._C` has no source and no edge. That importing a module runs the
    `__init__` of its parents is no edge either.
    """
    graph = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        edges = graph[module] = set()
        for name in imported_names(ast.parse(path.read_text()), package):
            while name and name not in files and name != "gmfast._C":
                name = name.rpartition(".")[0]
            if name in files and name != module:
                edges.add(name)
    return graph


def find_cycles(graph):
    """A shortest cycle through each module that is on one, each cycle once."""
    cycles = {}
    for module in sorted(graph):
        cycle = shortest_cycle(graph, module)
        if cycle:
            cycles.setdefault(frozenset(cycle), cycle)
    return list(cycles.values())


def shortest_cycle(graph, start):
    """Modules from `start` back to `start` (breadth-first search), or None."""
    paths, seen = [[start]], set()
    for path in paths:
        for other in sorted(graph[path[-1]]):
            if other == start:
                return [*path, start]
            if other not in seen:
                seen.add(other)
                paths.append([*path, other])
    return None


def test_no_module_imports_itself_through_others():
    cycles = find_cycles(import_graph(module_files()))
    assert not cycles, "import cycles:\n" + "\n".join(" -> ".join(cycle) for cycle in cycles)


def test_only_operations_import_the_reference():
    users = {
        module
        for module, imported in import_graph(module_files()).items()
        if any(name.startswith("gmfast.reference") for name in imported)
        and not module.startswith(USERS_OF_REFERENCE)
    }
    assert users <= {"gmfast"}, f"modules that import from gmfast.reference: {sorted(users)}"


def test_operations_import_functions_of_the_reference_only_by_its_public_names():
    """`reference.OP(...)`: no constant and no helper of one of its modules."""
    for module, imported in import_graph(module_files()).items():
        if module.startswith("gmfast.ops."):
            assert not any(name.startswith("gmfast.reference.") for name in imported), module


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b", "a"]]),
        ({"a": {"b", "d"}, "b": {"c"}, "c": {"a"}, "d": set()}, [["a", "b", "c", "a"]]),
    ],
)
def test_cycles_are_found(graph, expected):
    assert find_cycles(graph) == expected


def test_imports_are_found_at_any_depth():
    source = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import hidden\n"
        "def f():\n    from ..nn import Flow\n    import gmfast.data\n"
    )
    names = set(imported_names(ast.parse(source), "gmfast.models"))
    assert names == {"typing.TYPE_CHECKING", "gmfast.nn.Flow", "gmfast.data"}
