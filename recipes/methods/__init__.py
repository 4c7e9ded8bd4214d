"""The methods that experiments compare. Each has a file of its own and is listed here.

In addition, every recommender is a method of the same name.
"""

from recipes.methods.gate_constant import GateConstant
from recipes.methods.gate_random import GateRandom
from recipes.methods.gate_shuffled import GateShuffled
from recipes.methods.ilora import ILoRA
from recipes.methods.lora import LoRA
from recipes.methods.lora_user_slot import LoRAUserSlot
from recipes.methods.method import Method
from recipes.methods.random import Random
from recipes.methods.recommender_methods import as_methods
from recipes.methods.zero_shot import ZeroShot
from recipes.recommenders import RECOMMENDERS
from recipes.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    Random(),
    *as_methods(RECOMMENDERS.values()),
    ZeroShot(),
    LoRA(),
    LoRAUserSlot(),
    ILoRA(),
    GateShuffled(),
    GateConstant(),
    GateRandom(),
)
