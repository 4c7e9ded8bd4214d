"""The tensors of a call whose first dimension is the batch."""

from typing import Any

from torch import Tensor, nn

from peft_ilora.routing.families import codebooks

INPUTS = (
    "input_ids",
    "inputs_embeds",
    "decoder_input_ids",
    "decoder_inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
)


def model_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors of a call whose first dimension is the batch, the leading one first."""
    named = [kwargs[name] for name in INPUTS if isinstance(kwargs.get(name), Tensor)]
    found = [arg for arg in args if isinstance(arg, Tensor)] + named
    if not found:
        found = [value for value in kwargs.values() if isinstance(value, Tensor)][:1]
    return [tensor for tensor in found if tensor.dim() > 0]


def prompt_rows(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Return how many rows a call of `generate` begins with; None: it does not tell."""
    # RAG's documents come with scores, one row of them for each question.
    prompts = [kwargs.get("doc_scores"), kwargs.get("inputs"), *model_inputs(args, kwargs)]
    rows = next((t.shape[0] for t in prompts if isinstance(t, Tensor) and t.dim() > 0), None)
    return None if rows is None else rows // codebooks(model, kwargs)
