"""iLoRA whose gate reads the prompt, as the mean of its token embeddings.

This is the token-collapsed gate of the iLoRA paper's comparison of gates (arXiv 2408.10159).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from recipes.about import About
from recipes.methods.ilora import ILoRA


class GatePrompt(ILoRA):
    """The same experts as `ILoRA`; the gate is as wide as the language model's embeddings.

    It reads filled slots as it reads tokens. The gate's learning needs the prompt's embeddings, so
    it cannot be trained on the kept states of a frozen prefix.
    """

    name = "gate-prompt"
    summary = "iLoRA whose gate reads the mean embedding of the prompt (token-collapsed)"
    about = About(
        title="iLoRA, gate on the prompt",
        meaning="the same experts, with a gate that reads the mean embedding of the prompt in "
        "place of the user's representation",
        order=69,
        ranks_by="likelihood",
        colour="#56B4E9",
        line=(0, (4, 2)),
    )
    fixed_options: ClassVar[Mapping[str, Any]] = {"gate_input": "prompt"}
