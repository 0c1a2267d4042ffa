"""Put the features of images where their tokens are, without making the host wait for the GPU."""

from typing import Any

import torch
from transformers import LlavaForConditionalGeneration

from llavamed.model.llava import check_image_token


def trust_image_tokens(model: Any, image_token_id: int) -> None:
    """Let a LLaVA put features where the tokens of images are, without counting those tokens.

    Transformers waits for the GPU to compare the number of tokens with that of the features, and
    so does the backward pass of the operation that it uses. Here the loader has compared the
    numbers on the host already.

    Args:
        model: A LLaVA; it then needs `input_ids` in every forward pass that has images.
        image_token_id: The id of the token of images in the datasets.

    Raises:
        ConfigError: The model looks for another token, and would find no place for any image.
    """
    check_image_token(model.config, image_token_id, "model")
    token = image_token_id

    def find_places(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return (input_ids == token).unsqueeze(-1).as_subclass(ImagePlaces)

    if isinstance(model, LlavaForConditionalGeneration):
        model.model.get_placeholder_mask = find_places


class ImagePlaces(torch.Tensor):
    """A mask of tokens, bool of shape [R, T, 1], by which transformers places features."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.masked_scatter:
            embeddings, places, features = args
            return _Place.apply(embeddings, places.as_subclass(torch.Tensor), features)
        return super().__torch_function__(func, types, args, kwargs or {})


class _Place(torch.autograd.Function):
    """`masked_scatter` with as many features as places, so that the backward pass need not count.

    PyTorch's own counts the places, for which the host waits.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: torch.Tensor, places: torch.Tensor, features: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.shape = features.shape
        return embeddings.masked_scatter(places, features)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,), (places,) = gradients, ctx.saved_tensors
        of_embeddings = of_features = None
        if ctx.needs_input_grad[0]:
            of_embeddings = gradient.masked_fill(places, 0)
        if ctx.needs_input_grad[2]:
            first = places.flatten().to(torch.uint8).argsort(descending=True, stable=True)
            number = ctx.shape[:-1].numel()
            of_features = gradient.flatten(0, 1)[first[:number]].view(ctx.shape)
        return of_embeddings, None, of_features
