"""The Dockerfile, read."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions() -> list[list[str]]:
    """The instructions as words, comments dropped, continued lines joined, arguments filled in."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)\n", text, flags=re.MULTILINE))
    text = re.sub(r"^ARG .*\n", "", text, flags=re.MULTILINE)
    for name, value in arguments.items():
        text = text.replace(f"${{{name}}}", value)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line.strip()]


def copied() -> list[str]:
    """All that it copies into the image."""
    return [source for word, *rest in instructions() if word == "COPY" for source in rest[:-1]]


def kept() -> list[str]:
    """The patterns of what .dockerignore lets into the build, which is nothing else."""
    text = (ROOT / ".dockerignore").read_text("utf-8")
    ignored, *rest = [line for line in text.splitlines() if not line.startswith("#")]
    assert ignored == "*"
    return [line[1:] for line in rest if line.startswith("!")]
