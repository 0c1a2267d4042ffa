"""Find every message in the code, for the page docs/reference/messages.md.

Most messages are the first argument of an error and are found there. `ELSEWHERE` names the modules
that compose a message before it becomes the text of an error, a finding or a state: in these, every
text with a semicolon, which separates the rule from what to do, is a message.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llavamed"

INTRODUCTION = (
    "Every message of an error says which setting or file it is about, the rule that is broken, "
    "and what to do. `…` replaces what the message names at run time. Samples that cannot be used "
    "are not errors: they are in the dataset's quarantine with one of the reasons below. The last "
    "sections list manifests, what `llavamed cluster` finds, and the warnings in the log."
)

DOCTOR = "Findings of `llavamed cluster doctor`"
PENDING = "Reasons why a pod waits, in `llavamed cluster status`"
MANIFESTS = "Manifests of another version"
WARNINGS = "Warnings in the log"
ELSEWHERE = {
    "cluster/checks/environment.py": DOCTOR,
    "cluster/checks/manifests.py": DOCTOR,
    "cluster/checks/services.py": DOCTOR,
    "cluster/explain.py": "ClusterError",
    "cluster/pending.py": PENDING,
    "cluster/probes.py": DOCTOR,
    "cluster/rules.py": DOCTOR,
    "config/load.py": "ConfigError",
    "config/messages.py": "ConfigError",
    "config/model.py": "ConfigError",
    "data/inspect/samples.py": "DataError",
    "errors.py": "InterruptError",
    "llm/client.py": "EndpointError",
    "parallel/failures.py": "TrainingError",
    "processor/pretrained.py": "ConfigError",
    "storage/manifest/typed.py": MANIFESTS,
    "tracking/mlflow_client.py": "TrackingError",
    "train/guard.py": "TrainingError",
}


def sections() -> list[str]:
    """Return the sections of the page, each a title with a list or a table."""
    reasons: dict[str, set[str]] = {}
    messages: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = Module(path)
        for reason, detail in module.refused_samples():
            reasons.setdefault(reason, set()).add(detail)
        for title, text in module.messages():
            messages.setdefault(title, set()).add(text)
    rows = [
        f"| `{reason}` | {'; '.join(sorted(each))} |" for reason, each in sorted(reasons.items())
    ]
    head = "| reason | detail |\n| --- | --- |\n"
    parts = ["## Reasons in the quarantine\n", head + "\n".join(rows) + "\n"]
    last = [MANIFESTS, DOCTOR, PENDING, WARNINGS]
    for title in [*sorted(messages.keys() - {*last}), *last]:
        parts += [f"## {title}\n", *(f"- {text}" for text in sorted(messages[title])), ""]
    return parts


class Module:
    """The messages of one file."""

    def __init__(self, path: Path) -> None:
        """Read the file."""
        self._path = path
        self._tree = _parse(path)
        self._all_calls = [each for each in ast.walk(self._tree) if isinstance(each, ast.Call)]
        self._title = ELSEWHERE.get(path.relative_to(PACKAGE).as_posix())
        self._constants = constants_of(self._tree)
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llavamed."):
                file = ROOT / f"{node.module.replace('.', '/')}.py"
                there = constants_of(_parse(file)) if file.exists() else {}
                names = [each.name for each in node.names if each.name in there]
                self._constants |= {name: there[name] for name in names}

    def refused_samples(self) -> Iterator[tuple[str, str]]:
        """Yield reason and detail of each refusal of a sample."""
        for node in self._calls("SampleError"):
            if len(node.args) == 2:
                reason, detail = (self._words(each) for each in node.args)
                if re.fullmatch("[a-z_]+", reason) and re.search("[a-z]{2}", detail):
                    yield reason, detail

    def messages(self) -> Iterator[tuple[str, str]]:
        """Yield each message with the title of its section."""
        for name in error_names() - {"SampleError"} | {"ValueError"}:
            is_rule = name == "ValueError"
            if is_rule and self._path.parent != PACKAGE / "config":
                continue
            for node in self._calls(name):
                text = self._words(node.args[0]) if node.args else ""
                if len(text) > 20:
                    yield "ConfigError" if is_rule else name, text
        for node in self._calls("warning", of="logger"):
            yield WARNINGS, re.sub(r"%[\d.]*[sdfg]", "…", self._words(node.args[0]))
        if self._title:
            for text in self._sentences():
                yield self._title, text

    def _calls(self, name: str, of: str | None = None) -> Iterator[ast.Call]:
        for node in self._all_calls:
            called = node.func
            if of and isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                if (called.value.id, called.attr) == (of, name):
                    yield node
            elif not of and isinstance(called, ast.Name) and called.id == name:
                yield node

    def _sentences(self) -> Iterator[str]:
        """Yield the texts that have a rule and say what to do, without docstrings and arguments."""
        skipped: set[ast.AST] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                skipped.add(node.value)
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if called in error_names() | {"ValueError"}:
                    skipped.update(node.args)
                if getattr(getattr(node.func, "value", None), "id", "") == "logger":
                    skipped.update(node.args)
            if isinstance(node, ast.JoinedStr):
                skipped.update(node.values)
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Tuple) and len(node.elts) == 3:  # a pattern of errors of MLflow
                pattern, fact, hint = (self._words(each) for each in node.elts)
                if " " in fact and " " in hint and pattern != "…":
                    yield re.sub(r"\{\w+\}", "…", f"…: {fact}; {hint}")
            if node not in skipped and isinstance(node, ast.Constant | ast.JoinedStr):
                text = self._words(node)
                if re.search(r"[^\W\d_]{2}.*;( |$)|; .*[^\W\d_]{2}", text):
                    yield text

    def _words(self, node: ast.expr) -> str:
        """Return the fixed words of an expression in one line, as Markdown shows them."""
        return " ".join(self._text(node).split()).replace("|", "\\|").replace("<", "\\<")

    def _text(self, node: ast.expr) -> str:
        """Return the fixed text of an expression, with `…` for what is only known at run time."""
        match node:
            case ast.Constant():
                return str(node.value)
            case ast.JoinedStr():
                return "".join(self._text(part) for part in node.values)
            case ast.BinOp(op=ast.Add()):
                return self._text(node.left) + self._text(node.right)
            case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
                return self._text(self._constants[name]) if name in self._constants else "…"
        return "…"


def constants_of(tree: ast.Module) -> dict[str, ast.expr]:
    """Return the texts that a module keeps in variables, by name."""
    return {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant | ast.JoinedStr)
        and not isinstance(getattr(node.value, "value", ""), int | float)
    }


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def error_names() -> set[str]:
    """Return the names of our own errors."""
    from llavamed import errors

    return {name for name, value in vars(errors).items() if isinstance(value, type)}
