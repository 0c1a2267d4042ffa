"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder with real data and reference outputs; where absent, its tests skip and say so."""
    folder = Path(os.environ.get("LLAVAMED_REFERENCE_DATA", "../shared")).resolve()
    if not folder.is_dir():
        if os.environ.get("LLAVAMED_REQUIRE_REFERENCE_DATA") == "1":
            pytest.fail(f"LLAVAMED_REFERENCE_DATA={folder}: no such folder, and it is required")
        pytest.skip(f"no reference data at {folder}; set LLAVAMED_REFERENCE_DATA")
    return folder
