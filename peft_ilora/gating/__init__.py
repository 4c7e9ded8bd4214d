"""Gates: from what a gate reads to a modulation of a layer's rank coordinates.

A gate is a generator, which makes logits (`ILoRAConfig.gate`), and a form, which says what the
logits do (`ILoRAConfig.gate_form`). Each form is one file here, one row of `FORMS` and its name in
`ILoRAConfig.gate_form`.
"""

from torch import nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating.coordinates import Coordinates, coordinates
from peft_ilora.gating.form import GateForm
from peft_ilora.gating.gate import Gate
from peft_ilora.gating.hard import Named
from peft_ilora.gating.linear import linear, mlp
from peft_ilora.gating.scale import SignedScale
from peft_ilora.gating.scale_shift import ScaleShift
from peft_ilora.gating.shift import Shift
from peft_ilora.gating.sigmoid import Sigmoid
from peft_ilora.gating.softmax import Softmax
from peft_ilora.gating.square import SquareCore
from peft_ilora.gating.trunk import Trunk

FORMS: dict[str, type[GateForm]] = {
    "softmax": Softmax,
    "sigmoid": Sigmoid,
    "scale": SignedScale,
    "shift": Shift,
    "scale_shift": ScaleShift,
    "square": SquareCore,
}
"""The form of each value of `ILoRAConfig.gate_form`."""


def make_gate(config: ILoRAConfig, width: int, own: Coordinates | None = None) -> Gate:
    """Make the gate that a configuration names.

    Args:
        config: The adapter's configuration.
        width: Width of what the gate reads.
        own: Rank coordinates of the layer that the gate belongs to; None: it is shared by layers
            of the configuration's total rank, and a trunk is told them later (`Gate.settle`).
    """
    form = FORMS[config.gate_form](config)
    own = own or coordinates(config.ranks(config.total_rank))
    return Gate(config, _generator(config, width, form.count(own)), form)


def _generator(config: ILoRAConfig, width: int, outputs: int) -> nn.Module:
    zeros = config.gate_init == "zeros" or config.gate_form != "softmax"
    match config.gate:
        case "linear":
            return linear(width, outputs, zeros)
        case "mlp":
            return mlp(width, outputs, zeros)
        case "trunk":
            return Trunk(width)
        case "hard":
            return Named(config.num_experts)
