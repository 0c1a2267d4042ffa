"""Which outside system is known to which file, and how large a file may grow.

Which room and which module may import which is kept by import-linter (`make lint`, contracts in
pyproject.toml).
"""

import ast
import tomllib
from collections import Counter
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
ONLY_IN = {
    # What hides Ray from the loop and what runs on the cluster; nothing else needs one.
    "ray": {
        *(
            "parallel/pipeline.py",
            "parallel/failures.py",
            "parallel/logs.py",
            "data/prepare/job.py",
        ),
        *("corpus/pmc/job.py", "corpus/select/job.py"),
        *("evaluate/ray_workers.py", "run/resources.py"),
        *("run/ray_cluster.py", "run/fit.py", "train/context.py", "train/prometheus.py"),
        "serve/cluster.py",
    },
    # The engine is DeepSpeed. The context may reach for the groups that DeepSpeed keeps in module
    # variables (`NOTHING_BUT` below), for it makes the process group and must end it.
    "deepspeed": {"train/engine.py", "train/context.py"},
    "mlflow": {"tracking/mlflow_client.py", "run/tracking.py", "serve/traces.py"},
    "peft": {"model/adapters.py"},
    "bitsandbytes": {"model/quantize.py"},
    "openai": {"llm/client.py"},
    "pydicom": {"processor/dicom.py", "processor/dicom_limits.py", "processor/gdcm_process.py"},
    "nibabel": {"processor/nifti.py"},
    "lxml": {"corpus/pmc/jats.py"},
    "kubernetes": {"cluster/client.py"},
    "moto": set(),
    "pytest": set(),
}
NOTHING_BUT = {("train/context.py", "deepspeed"): {"deepspeed.comm.comm", "deepspeed.utils.groups"}}


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


@pytest.mark.parametrize("package", ONLY_IN)
def test_an_outside_system_is_known_to_few_files(package):
    users = {module for module in MODULES if imports_of(module, package)}
    assert users == ONLY_IN[package]


@pytest.mark.parametrize(("module", "package"), NOTHING_BUT, ids=str)
def test_an_exception_reaches_no_further_than_it_says(module, package):
    assert imports_of(module, package) <= NOTHING_BUT[module, package]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_and_its_functions_fit_a_reader(module):
    lines = (PACKAGE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, node.name


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
        functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        # Beside the drivers lies what they share: one function, which calls the command line.
        assert functions == (["run_command"] if path.name == "job.py" else [])


def test_a_public_class_has_a_name_of_its_own():
    """One word for one thing: no two classes that other files can import share a name."""
    names = Counter(
        node.name
        for tree in MODULES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_the_name_of_an_exception_ends_in_error():
    names = {
        node.name
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if ast.unparse(base).endswith(("Error", "Exception"))
    }
    assert {name for name in names if not name.endswith("Error")} == set()


def test_every_room_has_its_modules_in_layers():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    layered = {
        name
        for contract in settings["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract.get("exhaustive")
        for name in contract["containers"]
    }
    modules = Counter(
        path.relative_to(PACKAGE).parts[0]
        for path in [*PACKAGE.glob("*/[!_]*.py"), *PACKAGE.glob("*/*/__init__.py")]
    )
    rooms = {f"llavamed.{room}" for room, number in modules.items() if number > 1}
    assert len(rooms) > 10
    assert rooms <= layered
