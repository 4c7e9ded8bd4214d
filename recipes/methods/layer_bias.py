"""A bias made of the user's vector in every adapted layer: `B (A x + t(z))`, gate form `shift`.

It is what a prefix can do (arXiv 2310.19698): move a layer's output, without a product of user and
content. Compared with `ilora`, whose gate multiplies, it tells whether the product is needed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from recipes.about import About
from recipes.methods.ilora import ILoRA


class LayerBias(ILoRA):
    """A LoRA of the total rank, and a gate that adds a value to each of its rank coordinates.

    It starts as plain LoRA: the gate's weights are zero. With the default gate all layers share
    `t(z)`, and differ by their B; with `gate: trunk` each layer has its own. The gate has `rank`
    outputs, so `rank * d` parameters, `rank / num_experts` times those of iLoRA's.
    """

    name = "layer-bias"
    summary = "LoRA, and in every layer a bias made of the user's vector (gate form `shift`)"
    about = About(
        title="Layer bias",
        meaning="the same LoRA, with a bias in every layer that is made of the user's "
        "representation: it adds where iLoRA multiplies",
        order=66,
        ranks_by="likelihood",
        colour="#E69F00",
    )
    fixed: ClassVar[Mapping[str, Any]] = {"num_experts": 1}
    fixed_options: ClassVar[Mapping[str, Any]] = {"gate_form": "shift"}
