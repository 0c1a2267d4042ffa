"""Explain in one sentence why Ray ended a task; Ray's own advice is for its developers."""

import re
from collections.abc import Iterator

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from llavamed.errors import LlavaMedError

_NODE = re.compile(r"\(IP: ([^,)]+).*?was ([\d.]+)GB used / ([\d.]+)GB")
_BOUND = re.compile(r"exceeded threshold of \d+B \(([\d.]+)%")
_KILLED = re.compile(
    r"task name=([^,]+?)(?:\.__init__)?,.*?pid=(\d+), actual memory used=([\d.]+)GB"
)
_PROCESS = re.compile(r"\bpid[:=]\s*(\d+).*?\b(?:node_)?ip[:=]\s*'?([\w.:]+)", re.DOTALL)
_SILENT_DEATH = "Worker unexpectedly exits"


def find_our_error(error: BaseException) -> LlavaMedError | None:
    """Return the error of ours that a worker raised, unwrapped, or None."""
    for cause in iter_causes(error):
        if isinstance(cause, LlavaMedError) and not isinstance(cause, RayTaskError):
            return cause
    return None


def explain_failure(error: BaseException, memory_hint: str) -> str:
    """Explain in one sentence why a worker ended.

    Args:
        memory_hint: Advice for a worker that ran out of memory.
    """
    causes = list(iter_causes(error))
    for cause in causes:
        if isinstance(cause, OutOfMemoryError) or _NODE.search(str(cause)):
            return f"{_memory_kill(str(cause))}; {memory_hint}"
    for cause in causes:
        if isinstance(cause, RayError) and _SILENT_DEATH in str(cause):
            found = _PROCESS.search(str(cause))
            process = f"process {found[1]} on {found[2]}" if found else "a worker's process"
            return (
                f"{process} was killed from outside or crashed, and left no message: the kernel "
                "does that to a process when the machine or its container runs out of memory; read "
                f"the kernel's log there, and if it was memory, {memory_hint}"
            )
    others = [cause for cause in causes if not type(cause).__module__.startswith("ray.")]
    if not others:
        return f"Ray lost a process or a machine ({type(error).__name__})"
    text = str(others[-1]).strip().partition("\n")[0]
    return f"a worker failed by {type(others[-1]).__name__}: {text}"


def _memory_kill(text: str) -> str:
    """Describe which process Ray's memory monitor killed, and how full the machine was."""
    node, bound = _NODE.search(text), _BOUND.search(text)
    killed = [(float(gb), name, pid) for name, pid, gb in _KILLED.findall(text)]
    where = f"{node[1]}, where {node[2]} of {node[3]} GB were in use" if node else "its machine"
    limit = f", more than the {bound[1]} % that Ray allows" if bound else ""
    if not killed:
        return f"Ray's memory monitor killed a process on {where}{limit}"
    gb, name, pid = max(killed)
    return f"Ray's memory monitor killed {name} (process {pid}, {gb:.2f} GB) on {where}{limit}"


def iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all errors that it wraps in any of Ray's ways, from the outside in."""
    queue, seen = [error], set()
    while queue:
        each = queue.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        wrapped = [
            *getattr(each, "worker_failures", {}).values(),
            *(getattr(each, name, None) for name in ("health_check_failure", "controller_failure")),
            *(getattr(each, name, None) for name in ("_base_exc", "cause", "__cause__")),
        ]
        queue += [found for found in wrapped if isinstance(found, BaseException)]
