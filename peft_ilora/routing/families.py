"""What `generate` of some families of transformers does with rows, and no call of it tells."""

from typing import Any

from torch import nn

GUIDED = (
    "dia",
    "janus",
    "musicgen",
    "musicgen_decoder",
    "musicgen_melody",
    "musicgen_melody_decoder",
)
"""They put the rows without the condition behind the rows with it, in the same order."""
DIRECT = ("janus", "seamless_m4t", "seamless_m4t_v2")
"""They run layers past their own forward after the rows have been expanded: the expanded rows, or
those that they began with, all in order."""
REGROUPING = {
    "rag": "joins the documents of several questions",
    "vibevoice": "denoises a part of the rows, twice",
}
"""They make batches that cannot be told apart from others by their size."""
_CODEBOOKS = ("musicgen_decoder", "musicgen_melody_decoder")


def family(model: nn.Module) -> str:
    """Return the name of a model's family; empty where it has none."""
    return str(getattr(getattr(model, "config", None), "model_type", ""))


def codebooks(model: nn.Module, kwargs: dict[str, Any]) -> int:
    """Return how many rows of the leading input of a call are one row of the model."""
    name = family(model)
    if name in _CODEBOOKS:
        return model.config.num_codebooks  # type: ignore[union-attr]
    if f"{name}_decoder" in _CODEBOOKS and kwargs.get("input_ids") is None:
        alone = kwargs.get("decoder_input_ids") is not None
        return model.config.decoder.num_codebooks if alone else 1  # type: ignore[union-attr]
    return 1
