"""The documentation says what the code does: generated pages, trees, links, variables."""

import re
import tomllib
from pathlib import Path

import pytest

from llavamed.cluster.explain import Call, explain
from llavamed.cluster.kinds import RAY_JOB

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def readme_tree() -> dict[str, set[str]]:
    """The folders that the README's tree names, by the folder they lie in."""
    tree: dict[str, set[str]] = {"": set(), "llavamed": set()}
    for indent, name in re.findall(r"^    ( *)([a-z0-9_]+)/ ", README, re.MULTILINE):
        tree["llavamed" if indent else ""].add(name)
    return tree


def folders(place: Path) -> set[str]:
    """The folders of a place that git would keep."""
    unkept = {"__pycache__", "build", "runs", "mlruns"}
    return {
        each.name
        for each in place.iterdir()
        if each.is_dir() and each.name not in unkept and not each.name.startswith(".")
        if not each.name.endswith(".egg-info")
    }


def test_the_tree_of_the_readme_names_every_folder():
    tree = readme_tree()
    assert tree["llavamed"] == folders(ROOT / "llavamed")
    assert tree[""] | {"llavamed"} == folders(ROOT)


def test_the_readme_fits_on_two_screens():
    assert README.count("\n") <= 120


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_site_lists_every_page():
    site = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]

    def listed(entries):
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                for below in entry.values():
                    yield from listed([below] if isinstance(below, str) else below)

    there = {str(page.relative_to(ROOT / "docs")) for page in PAGES}
    assert set(listed(site["nav"])) == there


def test_every_environment_variable_is_documented():
    page = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    used = {
        name
        for path in [*(ROOT / "llavamed").rglob("*.py"), *(ROOT / "ray_jobs").glob("*.py")]
        for name in re.findall(
            r'environ(?:\.get|\.setdefault)?[\[(]\s*"(\w+)"', path.read_text(encoding="utf-8")
        )
    }
    # DeepSpeed and torch read these; we set them for our own processes.
    used -= {"DS_ACCELERATOR", "LOCAL_RANK", "RAY_raylet_start_wait_time_s"}
    assert {name for name in used if f"`{name}`" not in page} == set()


def test_every_field_of_a_file_is_described():
    page = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| .* \|  \|$", page, re.MULTILINE) == []


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422, 500])
def test_what_kubernetes_refuses_is_among_the_messages(status):
    page = (ROOT / "docs" / "reference" / "messages.md").read_text(encoding="utf-8")
    patterns = [
        re.escape(line[2:]).replace("…", ".+") for line in page.splitlines() if line[:2] == "- "
    ]
    for body in ("", '{"reason": "AlreadyExists", "details": {"name": "demo"}}'):
        said = explain(status, body, Call("get", RAY_JOB, "research", name="demo"))
        assert any(re.search(each, said) for each in patterns if len(each) > 20), said
