"""Decode DICOM files by GDCM in a process of its own, because some damaged files end it.

GDCM throws past Python, which nothing can catch: a service would end with the file of one client.
The process is started at the first file, is used for all, and ends with this one, whose end closes
its input.
"""

import io
import json
import os
import struct
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

_HEAD = struct.Struct("<QQ")
"""Size of a file, and the frame to decode."""


class _Decoder:
    """The process, which is started again after it has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, data: bytes, index: int) -> npt.NDArray[Any]:
        with self._lock:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(_HEAD.pack(len(data), index))
                process.stdin.write(data)
                process.stdin.flush()
                facts = json.loads(process.stdout.readline())
                pixels = process.stdout.read(facts["size"])
            except (OSError, ValueError):
                process.kill()
                process.wait()
                self._process = None
                raise RuntimeError("GDCM has ended") from None
        if facts["error"]:
            raise RuntimeError(facts["error"])
        return np.frombuffer(pixels, facts["type"]).reshape(facts["shape"])


_DECODER = _Decoder()


def decode_apart(data: bytes, index: int) -> npt.NDArray[Any]:
    """Return the stored values of a frame of a DICOM file, colours as RGB. Raises: RuntimeError.

    Args:
        index: Position of the frame, from 0.
    """
    return _DECODER.decode(data, index)


def _start() -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _answer(data: bytes, index: int) -> tuple[dict[str, Any], bytes]:
    from pydicom.pixels import pixel_array

    try:
        pixels = pixel_array(io.BytesIO(data), index=index, decoding_plugin="gdcm")
    except Exception as error:  # pydicom passes on whatever a decoder raises
        return {"error": f"{type(error).__name__}: {error}", "size": 0}, b""
    facts = {"error": "", "size": pixels.nbytes, "type": pixels.dtype.str, "shape": pixels.shape}
    return facts, pixels.tobytes()


def _main() -> None:
    """Answer until the input ends. What libraries print goes another way than the answers."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while head := sys.stdin.buffer.read(_HEAD.size):
        size, index = _HEAD.unpack(head)
        facts, pixels = _answer(sys.stdin.buffer.read(size), index)
        answers.write(json.dumps(facts).encode() + b"\n" + pixels)
        answers.flush()


if __name__ == "__main__":
    _main()
