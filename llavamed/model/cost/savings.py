"""Find the settings that would save a stage memory, and how much."""

from collections.abc import Callable
from dataclasses import dataclass

from llavamed.config.load import override_config
from llavamed.config.run import RunConfig
from llavamed.config.stage import Stage
from llavamed.errors import ConfigError
from llavamed.model.cost.memory import Memory

NUM_SAVINGS = 3
"""Maximum number of settings that are named."""


@dataclass(frozen=True)
class Saving:
    """A setting that saves memory."""

    change: str
    """As an override: `KEY=VALUE`."""
    num_bytes: float
    """Bytes of each worker that it saves, by plan."""


def find_savings(
    config: RunConfig, stage: Stage, memory_of: Callable[[RunConfig, str], Memory]
) -> list[Saving]:
    """Find the settings that save a stage most memory, the best first.

    Each is accepted by the config and is tried by itself. None changes which weights are trained.

    Args:
        stage: The stage that needs less.
        memory_of: Plan the memory of a stage, by its name, under a config.
    """
    planned = memory_of(config, stage.name).total
    best: dict[str, Saving] = {}
    for change in _proposals(config, stage):
        try:
            changed = override_config(config, [change])
        except ConfigError:
            continue  # it conflicts with the other settings
        saving = Saving(change, planned - memory_of(changed, stage.name).total)
        field = change.partition("=")[0]
        if saving.num_bytes > max(0.0, best[field].num_bytes if field in best else 0.0):
            best[field] = saving
    return sorted(best.values(), key=lambda saving: -saving.num_bytes)[:NUM_SAVINGS]


def _proposals(config: RunConfig, stage: Stage) -> list[str]:
    """List overrides that may save memory."""
    key = f"stages.{stage.name}"

    def engine(field: str) -> str:
        """Return the key that decides a field of the stage's engine."""
        own = getattr(stage.engine, field) is not None
        return f"{key}.engine.{field}" if own else f"engine.{field}"

    packs = [f"{key}.max_tokens={max(stage.pack_tokens // 2, config.data.max_length)}"]
    return [
        *(packs if stage.packing else []),
        f"{key}.micro_batch_size={stage.micro_batch_size // 2}",
        f"{key}.gradient_checkpointing=true",
        *(f"{engine('zero_stage')}={number}" for number in (1, 2, 3)),
        f"{engine('offload_optimizer')}=cpu",
        f"{engine('precision')}=bf16",
        f"{key}.optimizer.name=adamw_8bit",
    ]
