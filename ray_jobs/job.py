"""What the drivers beside this file share: llavamed's command line, found where the job lies."""

import os
import sys
from pathlib import Path


def run_command(command: str) -> None:
    """Run a command with this process's arguments; without a config it takes the demo's."""
    here = Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parent))  # the job's working directory holds the package too
    from llavamed.cli.main import main

    os.environ.setdefault("LLAVAMED_CONFIG", str(here / "configs" / "demo.yaml"))
    main([command, *sys.argv[1:]])
