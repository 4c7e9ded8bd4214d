"""iLoRA whose gates read each token's hidden state, as the routers of mixtures of experts do.

The iLoRA paper's authors compared it with theirs in the discussion with its reviewers
(arXiv 2408.10159).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from recipes.about import About
from recipes.methods.ilora import ILoRA


class GateToken(ILoRA):
    """The same experts as `ILoRA`; every module has a gate of its own, as wide as its input.

    So the gates have far more parameters than iLoRA's one: K times the sum of the modules' widths.
    """

    name = "gate-token"
    summary = "iLoRA whose gates read each token's hidden state, one gate a module"
    about = About(
        title="iLoRA, gates on tokens",
        meaning="the same experts, with a gate in every module that reads each token's hidden "
        "state in place of the user's representation",
        order=68,
        ranks_by="likelihood",
        colour="#56B4E9",
    )
    fixed_options: ClassVar[Mapping[str, Any]] = {"gate_input": "token", "gate_scope": "per_module"}
