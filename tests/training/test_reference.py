"""The generated pages of the documentation are as the code would write them now."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pages():
    spec = spec_from_file_location("make_reference", ROOT / "scripts" / "make_reference.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_reference_is_up_to_date(pages):
    for name, text in pages.items():
        there = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
        assert there == text, f"{name} is out of date; run `make reference`"


def test_every_setting_command_metric_and_value_has_a_sentence(pages):
    for name in ("config.md", "cli.md", "metrics.md", "helm.md"):
        rows = [line for line in pages[name].splitlines() if line.startswith("| `")]
        assert rows, name
        for row in rows:
            assert row.rstrip(" |").rpartition(" | ")[2].strip("` "), f"{name}: {row}"
            assert not row.endswith("|  |"), f"{name}: {row}"
