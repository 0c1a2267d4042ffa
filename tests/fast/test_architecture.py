"""The walls between the rooms of the house: who may import whom, and how large a file may grow."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "llavamed"
MODULES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
SCRIPTS = [
    *(*ROOT.glob("ray_jobs/*.py"), *ROOT.glob("k8s/*.py")),
    *(*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/**/*.py")),
]

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
LONGER_FUNCTIONS = {("train/worker.py", "train_stage"): 100}
"""The loop itself, which is to be read from top to bottom."""

ONLY_IN = {
    # What hides Ray from the loop and what runs on the cluster; nothing else needs one.
    "ray": {
        *("data/prepare/ray_data.py", "data/prepare/job.py", "evaluate/answers.py"),
        *("run/ray_cluster.py", "run/fit.py", "train/context.py"),
    },
    # The engine is DeepSpeed. The context may reach for the groups that DeepSpeed keeps in module
    # variables (`NOTHING_BUT` below), for it makes the process group and must end it.
    "deepspeed": {"train/engine.py", "train/context.py"},
    "mlflow": {"run/tracking.py"},
    "peft": {"model/adapters.py"},
    "bitsandbytes": {"model/quantize.py"},
    "kubernetes": set(),
    "moto": set(),
    "pytest": set(),
}
NOTHING_BUT = {
    ("train/context.py", "deepspeed"): {"deepspeed.comm.comm", "deepspeed.utils.groups"},
}
LIGHT = {
    # Read by every command before it does anything, and by whatever only checks a config.
    "errors.py": {"torch", "ray", "transformers", "numpy", "pyarrow", "yaml", "pydantic"},
    "config/": {"torch", "ray", "transformers", "deepspeed", "mlflow", "numpy", "pyarrow"},
    "storage/location.py": {"torch", "ray", "transformers", "deepspeed", "mlflow"},
    # Pure: the same on any machine, with nothing of the training stack.
    "data/record.py": {"torch", "ray", "transformers"},
    "data/prepared/content.py": {"torch", "ray", "transformers"},
    "data/prepared/decontaminate.py": {"torch", "ray", "transformers"},
    "processor/images.py": {"torch", "ray", "transformers"},
    "data/feed/order.py": {"torch", "ray", "transformers", "pyarrow"},
    "data/feed/packing.py": {"torch", "ray", "transformers", "pyarrow"},
    "data/prepared/mixture.py": {"torch", "ray", "transformers"},
    "data/prepared/dataset.py": {"torch", "ray", "transformers"},
    "data/sources/": {"torch", "ray", "transformers"},
}


def imports(tree):
    """Dotted names of all that is imported anywhere in a file, also for types alone."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_of(module, package):
    return {name for name in imports(MODULES[module]) if name.split(".")[0] == package}


def reached(module, seen):
    """A module's own imports and those of every module of ours that it imports when it loads."""
    if module in seen:
        return set()
    seen.add(module)
    names = set()
    for node in MODULES[module].body:  # a function's imports come when it is called
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= imports(ast.Module([node], []))
    for name in [name for name in names if name.startswith("llavamed.")]:
        for depth in range(len(name.split(".")), 1, -1):
            path = "/".join(name.split(".")[1:depth])
            for candidate in (f"{path}.py", f"{path}/__init__.py"):
                if candidate in MODULES:
                    names |= reached(candidate, seen)
    return names


@pytest.mark.parametrize("package", ONLY_IN)
def test_an_outside_system_is_known_to_few_files(package):
    users = {module for module in MODULES if imports_of(module, package)}
    assert users == ONLY_IN[package]


@pytest.mark.parametrize(("module", "package"), NOTHING_BUT, ids=str)
def test_an_exception_reaches_no_further_than_it_says(module, package):
    assert imports_of(module, package) <= NOTHING_BUT[module, package]


@pytest.mark.parametrize("room", LIGHT)
def test_a_light_room_loads_nothing_heavy(room):
    modules = [module for module in MODULES if module.startswith(room)]
    assert modules
    for module in modules:
        loaded = {name.split(".")[0] for name in reached(module, set())}
        assert not loaded & LIGHT[room], module


def test_nothing_but_the_command_line_imports_it():
    users = {module for module in MODULES if "llavamed.cli" in " ".join(imports(MODULES[module]))}
    assert {module for module in users if not module.startswith("cli")} == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_file_and_its_functions_fit_a_reader(module):
    lines = (PACKAGE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= LONGER_FUNCTIONS.get((module, node.name), MAX_FUNCTION_LINES), (
                node.name
            )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_script_or_test_fits_a_reader(path):
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_FILE_LINES


def test_nothing_prints():
    calls = {
        (module, node.lineno)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if node.func.id in {"print", "breakpoint", "eval", "exec"}
    }
    assert calls == set()


def test_every_module_says_what_it_is_for():
    assert [module for module, tree in MODULES.items() if not ast.get_docstring(tree)] == []


def test_no_file_is_a_drawer_for_anything():
    drawers = {"utils", "util", "common", "helpers", "misc", "registry", "base", "constants"}
    assert [module for module in MODULES if drawers & set(Path(module).with_suffix("").parts)] == []


def test_a_driver_holds_no_logic():
    for path in ROOT.glob("ray_jobs/*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8").count("\n") <= 25
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
