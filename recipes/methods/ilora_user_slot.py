"""iLoRA and the user slot together: the gate and the prompt both get the user's vector.

Beside `ilora` and `lora-user-slot` it tells whether the two ways of the same information add up.
"""

from recipes.about import About
from recipes.methods.ilora import ILoRA


class ILoRAUserSlot(ILoRA):
    """The same adapter as `ILoRA`; only the prompt differs."""

    name = "ilora-user-slot"
    summary = "iLoRA, with the user's vector in a prompt slot as well"
    about = About(
        title="iLoRA + user slot",
        meaning="the same iLoRA, with the user's representation in one more prompt slot: both ways "
        "of the same information",
        order=75,
        ranks_by="likelihood",
        colour="#D55E00",
        line=(0, (4, 2)),
    )
    user_slot = True
