"""Fetch a folder of weights from object storage: the arguments are its URI and where to put it."""

import sys
from pathlib import Path

from llavamed.storage.location import locate

locate(sys.argv[1]).download(Path(sys.argv[2]))
