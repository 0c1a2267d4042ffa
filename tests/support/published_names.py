"""How published checkpoints name what other engines read."""

PUBLISHED_PREFIXES = (
    "vision_tower.vision_model.",
    "multi_modal_projector.linear_",
    "language_model.model.",
    "language_model.lm_head.",
)
"""Of the tensors of the published LLaVA-1.5 checkpoints, which vLLM's loader is written for."""
