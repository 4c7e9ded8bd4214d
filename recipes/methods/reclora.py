"""A gate in the style of RecLoRA (arXiv 2408.03533): a small network mixes several meta-LoRAs.

RecLoRA's personalised LoRA is a sum of meta-LoRAs, with weights from a gating network that reads
the representation of a conventional recommender. That is iLoRA's equation with another gate.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from recipes.about import About
from recipes.methods.ilora import ILoRA


class RecLoRA(ILoRA):
    """The experts of `ILoRA`, with a gate that has a hidden layer.

    Only the gate is RecLoRA's. Its retrieval of long histories and its way from few to many samples
    are about data, and are left out. The total rank is that of the other arms; a meta-LoRA has its
    share of it. The gate's form beyond its having a hidden layer is the plugin's (`gate: mlp`).
    """

    name = "reclora"
    summary = "a RecLoRA-style gate: a network with a hidden layer mixes meta-LoRAs"
    about = About(
        title="RecLoRA-style gate",
        meaning="meta-LoRAs of the same total rank, mixed by a gate with a hidden layer that reads "
        "the user's representation",
        order=67,
        ranks_by="likelihood",
        colour="#F0E442",
    )
    fixed_options: ClassVar[Mapping[str, Any]] = {
        "gate": "mlp",
        "gate_form": "softmax",
        "gate_input": "routing",
    }
