"""The rules of docs/architecture.md that a machine can check, over every module of the package and its entry points."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xmodal_dist import errors, modalities

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "xmodal_dist"
JOBS = REPOSITORY / "jobs"

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70
UNSAFE_IMPORTS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"torch.load", "yaml.load", "yaml.full_load", "yaml.unsafe_load", "ray.cloudpickle"}

PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))
ALL_FILES = sorted([*PACKAGE_FILES, *JOBS.rglob("*.py")])
TREES = {path.relative_to(REPOSITORY).as_posix(): ast.parse(path.read_bytes()) for path in ALL_FILES}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _trees(prefix: str = "") -> Iterator[tuple[str, ast.Module]]:
    return ((name, tree) for name, tree in TREES.items() if name.startswith(prefix))


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, dotted module or module.name) of every import, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _fail_with(findings: list[str]) -> None:
    assert not findings, "\n" + "\n".join(findings)


# --- size ------------------------------------------------------------------------------------------------------------


def test_modules_are_small() -> None:
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in ALL_FILES}
    _fail_with(
        [
            f"{p.relative_to(REPOSITORY)}: {n} lines > {MAX_MODULE_LINES}"
            for p, n in lines.items()
            if n > MAX_MODULE_LINES
        ]
    )


def test_functions_are_small() -> None:
    lengths = [
        (f"{name}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    _fail_with(
        [f"{where}: {n} lines > {MAX_FUNCTION_LINES}" for where, n in lengths if n > MAX_FUNCTION_LINES]
    )


# --- imports ---------------------------------------------------------------------------------------------------------


def test_import_contract() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


def test_modalities_do_not_know_each_other() -> None:
    kinds = modalities.available()
    assert kinds, "no modality found"
    names = {kind: f"xmodal_dist.modalities.{kind}" for kind in kinds}
    _fail_with(
        [
            f"modalities/{kind}.py:{line} imports {module}"
            for kind in kinds
            for line, module in _imported(TREES[f"xmodal_dist/modalities/{kind}.py"])
            for other in kinds
            if other != kind and (module == names[other] or module.startswith(names[other] + "."))
        ]
    )


# --- kinds -----------------------------------------------------------------------------------------------------------


def _is_kind(node: ast.AST) -> bool:
    """``kind``, ``x.kind``, ``x["kind"]`` or ``x.get("kind")``."""
    match node:
        case ast.Name(id="kind") | ast.Attribute(attr="kind"):
            return True
        case ast.Subscript(slice=ast.Constant(value="kind")):
            return True
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value="kind"), *_]):
            return True
    return False


def _has_string(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in ast.walk(node))


def _compares_kind(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        return any(map(_is_kind, sides)) and any(_has_string(side) for side in sides if not _is_kind(side))
    if isinstance(node, ast.Match):
        return _is_kind(node.subject) and any(_has_string(case.pattern) for case in node.cases)
    return False


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("field.kind == 'image'", True),
        ("'image' != field['kind']", True),
        ("kind in ('image', 'audio')", True),
        ("match x.kind:\n    case 'image': pass", True),
        ("field.get('kind', '') == 'image'", True),
        ("field.kind == other.kind", False),
        ("name == 'image'", False),
    ],
)
def test_kind_check_sees(source: str, found: bool) -> None:
    assert any(map(_compares_kind, ast.walk(ast.parse(source)))) is found


def test_only_modalities_compare_kinds() -> None:
    _fail_with(
        [
            f"{name}:{node.lineno} compares a kind with a literal: ask the modality instead"
            for name, tree in _trees()
            if not name.startswith("xmodal_dist/modalities/")
            for node in ast.walk(tree)
            if _compares_kind(node) and isinstance(node, ast.Compare | ast.Match)
        ]
    )


# --- errors and safe formats -----------------------------------------------------------------------------------------

ERROR_CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error_class", ERROR_CLASSES, ids=errors.__all__)
def test_errors_cross_processes(error_class: type[errors.XmodalError]) -> None:
    assert issubclass(error_class, errors.XmodalError)
    assert "__init__" not in vars(error_class)
    error = error_class("media_truncated", "row 7 of a.csv ends early")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert (copy.args, str(copy), copy.exit_code) == (error.args, str(error), error.exit_code)


@pytest.mark.parametrize("error_class", ERROR_CLASSES, ids=errors.__all__)
def test_error_tree_shows_every_class_with_its_exit_code(error_class: type[errors.XmodalError]) -> None:
    lines = [line.split() for line in (errors.__doc__ or "").splitlines()]
    codes = [words[words.index(error_class.__name__) + 1] for words in lines if error_class.__name__ in words]
    assert codes == [str(error_class.exit_code)]


def test_errors_stand_in_one_file() -> None:
    _fail_with(
        [
            f"{name}:{node.lineno} class {node.name}: errors belong in xmodal_dist/errors.py"
            for name, tree in _trees()
            if name != "xmodal_dist/errors.py"
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and any(_dotted(b).endswith(("Error", "Exception")) for b in node.bases)
        ]
    )


def test_nothing_is_read_by_executing_it() -> None:
    imports = [
        f"{name}:{line} imports {module}"
        for name, tree in _trees()
        for line, module in _imported(tree)
        if module.split(".")[0] in UNSAFE_IMPORTS or module in UNSAFE_CALLS
    ]
    uses = [
        f"{name}:{node.lineno} uses {_dotted(node)}"
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and _dotted(node) in UNSAFE_CALLS
    ]
    allowed_pickles = [
        f"{name}:{node.lineno} allow_pickle"
        for name, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and getattr(node.value, "value", None) is not False
    ]
    _fail_with(imports + uses + allowed_pickles)


# --- what is written down --------------------------------------------------------------------------------------------


def _assigned(node: ast.stmt) -> list[str]:
    match node:
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_command(node: ast.stmt) -> bool:
    """Whether a decorator registers the function, as ``@app.command()`` does: it is reached there, not by its name."""
    return isinstance(node, Function) and any(
        isinstance(d, ast.Call) and _dotted(d.func).endswith((".command", ".callback"))
        for d in node.decorator_list
    )


def _is_type_variable(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and _dotted(node.value.func) == "TypeVar"
    )


def _public_names(tree: ast.Module) -> set[str]:
    """Public functions, classes and constants that a module defines at its top level."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not _is_command(node):
            names.add(node.name)
        if not _is_type_variable(node):
            names.update(_assigned(node))
    return {name for name in names if not name.startswith("_")}


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and _assigned(node) == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


# That __all__ is sorted is ruff's rule RUF022.
@pytest.mark.parametrize("name", [name for name, _ in _trees("xmodal_dist/")])
def test_all_is_complete(name: str) -> None:
    tree = TREES[name]
    public, exported = _public_names(tree), _exported(tree)
    if exported is None:
        assert not public, f"no __all__, but public names: {sorted(public)}"
        return
    assert len(exported) == len(set(exported)), "a name twice in __all__"
    assert public <= set(exported), f"not in __all__: {sorted(public - set(exported))}"
    module = importlib.import_module(name.removesuffix("/__init__.py").removesuffix(".py").replace("/", "."))
    assert [n for n in exported if not hasattr(module, n)] == []


def _readme_map() -> dict[str, str]:
    """Path -> description, from the code block of README's section "Map of the code"."""
    section = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## Map of the code", 1)[1]
    block = section.split("```", 2)[1]
    rows = [line.split(maxsplit=1) for line in block.splitlines()[1:] if line.strip()]
    assert all(len(row) == 2 for row in rows), "a line of the map is: path, spaces, description"
    return {path: description for path, description in rows}


def _map_entry(path: Path) -> str:
    """A package is listed as its folder, with a slash at the end; any other module as its file."""
    relative = path.relative_to(REPOSITORY).as_posix()
    return relative.removesuffix("__init__.py")


def test_readme_maps_every_module() -> None:
    modules = {_map_entry(path) for path in PACKAGE_FILES}
    mapped = {path for path in _readme_map() if path.startswith("xmodal_dist/")}
    assert sorted(modules - mapped) == [], "not in README's map"
    assert sorted(mapped - modules) == [], "in README's map, but not there"


RECIPES = sorted((JOBS / "recipes").glob("*.yaml"))


def test_recipes_exist() -> None:
    if importlib.util.find_spec("xmodal_dist.config") is None:
        pytest.skip("xmodal_dist.config is not there yet")
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_validates(recipe: Path) -> None:
    if importlib.util.find_spec("xmodal_dist.config") is None:
        pytest.skip("xmodal_dist.config is not there yet")
    from xmodal_dist import config

    config.load(recipe)
