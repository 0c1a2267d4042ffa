"""Choose the figures to ask about: as many of each modality, the same ones on every machine."""

import hashlib
from collections.abc import Iterable, Mapping


def share_out(available: Mapping[str, int], total: int) -> dict[str, int]:
    """Share a total out over groups as evenly as they allow.

    Where a group has too few, the others get its rest.
    """
    shares = dict.fromkeys(available, 0)
    left = min(total, sum(available.values()))
    while left:
        open_groups = [name for name in sorted(shares) if shares[name] < available[name]]
        each = max(1, left // len(open_groups))
        for name in open_groups:
            more = min(each, available[name] - shares[name], left)
            shares[name] += more
            left -= more
    return shares


def choose(domains: Iterable[tuple[str, str]], total: int | None, seed: int) -> list[str]:
    """Return the ids of the chosen figures, the modalities in turn.

    Args:
        domains: Id and modality of every figure.
        total: Maximum number to choose, None for all.
        seed: Decides which are chosen of each modality, and their order.
    """
    ranked: dict[str, list[tuple[bytes, str]]] = {}
    for name, domain in domains:
        ranked.setdefault(domain, []).append((_rank(seed, name), name))
    sizes = {domain: len(names) for domain, names in ranked.items()}
    shares = share_out(sizes, sum(sizes.values()) if total is None else total)
    queues = [
        [name for _, name in sorted(ranked[domain])][: shares[domain]] for domain in sorted(ranked)
    ]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
