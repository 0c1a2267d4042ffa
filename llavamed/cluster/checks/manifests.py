"""What manifests alone can show: KubeRay's rules, versions, queues, shared memory, network."""

import re
from collections.abc import Iterator

from llavamed import __version__
from llavamed.cluster.checks.problem import (
    Problem,
    each_group,
    failure,
    minor_version,
    title,
    warning,
)
from llavamed.cluster.kinds import LOCAL_QUEUE, RAY_SERVICE, labels_of, name_of
from llavamed.cluster.pods import cluster_spec, gpus_of, groups_of, quantity, request_of, show
from llavamed.cluster.rayjob import QUEUE
from llavamed.cluster.rules import broken_rules
from llavamed.cluster.snapshot import Snapshot

RAY_VERSION = (2, 60)
"""The version of Ray that this program is tested with, as in `pyproject.toml`."""
_GANG_LABELS = (
    *(QUEUE, "ray.io/gang-scheduling-enabled", "volcano.sh/queue-name", "kai.scheduler/queue"),
)
_RDMA = re.compile(r"rdma/|/efa$|/hca|/ib")


def rules(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine KubeRay's rules that no schema states."""
    for thing in snapshot.ray:
        for broken in broken_rules(thing):
            yield failure(f"{title(thing)}: {broken}")


def versions(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine whether Ray and the images have one version, and that of this program."""
    ours = ".".join(map(str, RAY_VERSION))
    for thing in snapshot.ray:
        spec = cluster_spec(thing)
        if spec is None:
            continue
        version = minor_version(str(spec.get("rayVersion", "")))
        if version != RAY_VERSION:
            yield failure(
                f"{title(thing)}: rayVersion={spec.get('rayVersion')}: the image has Ray {ours}; "
                f"set it to {ours}.0"
            )
        images = {
            container.get("image", "")
            for group in groups_of(thing)
            for container in group.spec.get("containers", [])[:1]
        }
        if len(images) > 1:
            yield failure(
                f"{title(thing)}: its groups have different images ({', '.join(sorted(images))}), "
                "and Ray needs the same Ray and Python everywhere; use one"
            )
        for image in images:
            tag = image.rpartition(":")[2] if ":" in image.rpartition("/")[2] else ""
            found = re.fullmatch(r"v?(\d+\.\d+\.\d+)", tag)
            if "@" not in image and found and found[1] != __version__:
                yield warning(
                    f"{title(thing)}: image {image} is another version than this program, "
                    f"{__version__}; a config of one may be refused by the other"
                )


def queue(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine the queue of each job, and whether some of its workers may start alone.

    The replicas of a RayService are independent.
    """
    for thing in snapshot.ray:
        if thing["kind"] == RAY_SERVICE.name:
            continue
        name = labels_of(thing).get(QUEUE)
        if name is not None:
            there = [name_of(each) for each in snapshot.all(LOCAL_QUEUE)]
            if LOCAL_QUEUE in snapshot.unreadable:
                yield failure(
                    f"{title(thing)}: waits for queue {name}, but the queues cannot be read: "
                    f"{snapshot.unreadable[LOCAL_QUEUE]}"
                )
            elif snapshot.knows(LOCAL_QUEUE) and name not in there:
                yield failure(
                    f"{title(thing)}: waits forever, because LocalQueue {name} does not exist; "
                    f"there are: {', '.join(there) or 'none'}; make it, or correct the label"
                )
        pods_with_gpus = sum(
            group.replicas for group in groups_of(thing) if any(gpus_of(group.spec))
        )
        if pods_with_gpus > 1 and not any(label in labels_of(thing) for label in _GANG_LABELS):
            yield warning(
                f"{title(thing)}: its {pods_with_gpus} GPU pods may start one by one and hold "
                "GPUs while others wait; use Kueue (job.queue) or another gang scheduler"
            )


def shared_memory(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine /dev/shm: without a sized volume, containers have 64 MB."""
    for thing, group in each_group(snapshot):
        containers = group.spec.get("containers") or [{}]
        mounts = {
            mount["name"]
            for mount in containers[0].get("volumeMounts") or []
            if mount.get("mountPath") == "/dev/shm"
        }
        volumes = [
            volume.get("emptyDir") or {}
            for volume in group.spec.get("volumes") or []
            if volume.get("name") in mounts
        ]
        where = f"{title(thing)}: group {group.name}"
        if not any(volume.get("medium") == "Memory" for volume in volumes):
            yield failure(
                f"{where}: has no memory mounted at /dev/shm, so Ray and NCCL get 64 MB; mount an "
                "emptyDir with medium Memory"
            )
            continue
        memory = request_of(group.spec).get("memory")
        size = volumes[0].get("sizeLimit")
        if memory is not None and size is not None and quantity(size) >= memory:
            yield failure(
                f"{where}: /dev/shm of {size} counts against its memory of "
                f"{show('memory', memory).partition(' ')[2]} and fills it; lower sharedMemory"
            )


def network(snapshot: Snapshot) -> Iterator[Problem]:
    """Examine the network between GPUs of different machines: without RDMA, NCCL uses sockets."""
    for thing, group in each_group(snapshot):
        request = request_of(group.spec)
        if thing["kind"] == RAY_SERVICE.name:
            continue  # its replicas do not talk to each other
        whole, parts = gpus_of(group.spec)
        most = max(group.replicas, group.max_replicas)
        where = f"{title(thing)}: group {group.name}"
        if most * parts > 1:
            yield warning(
                f"{where}: may have {float(most * parts):g} slices or shares of GPUs, and NCCL "
                "refuses two of one GPU (Duplicate GPU detected); train on whole GPUs, or on one "
                "slice of one worker"
            )
        if not whole or most < 2:
            continue
        containers = group.spec.get("containers") or [{}]
        env = {each["name"]: each.get("value", "") for each in containers[0].get("env") or []}
        if env.get("NCCL_IB_DISABLE") == "1":
            yield warning(
                f"{where}: NCCL_IB_DISABLE=1 forces sockets; remove it where there is RDMA"
            )
        elif not any(_RDMA.search(name) for name in request):
            yield warning(
                f"{where}: may have {most} machines and no RDMA device, so NCCL uses sockets "
                "(NET/Socket), ten times slower or more; use the preset infiniband or eks, or "
                "train on one machine"
            )
