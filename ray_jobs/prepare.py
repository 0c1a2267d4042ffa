"""Prepare the datasets of a config: `ray job submit --working-dir . -- python ray_jobs/prepare.py`.

Without `--config` it takes the file that LLAVAMED_CONFIG names, else the demo.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's working directory

from llavamed.cli.main import main

if __name__ == "__main__":
    os.environ.setdefault("LLAVAMED_CONFIG", str(Path(__file__).parent / "configs" / "demo.yaml"))
    main(["prepare", *sys.argv[1:]])
