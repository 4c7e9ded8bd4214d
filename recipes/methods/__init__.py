"""The methods that experiments compare. Each has a file of its own and is listed here.

In addition, every recommender is a method of the same name.
"""

from recipes.methods.chat import Chat
from recipes.methods.deep_prompt import DeepPrompt
from recipes.methods.gate_constant import GateConstant
from recipes.methods.gate_hard import GateHard
from recipes.methods.gate_prompt import GatePrompt
from recipes.methods.gate_random import GateRandom
from recipes.methods.gate_shuffled import GateShuffled
from recipes.methods.gate_token import GateToken
from recipes.methods.ilora import ILoRA
from recipes.methods.ilora_user_slot import ILoRAUserSlot
from recipes.methods.k_loras import KLoRAs
from recipes.methods.layer_bias import LayerBias
from recipes.methods.lora import LoRA
from recipes.methods.lora_user_slot import LoRAUserSlot
from recipes.methods.method import Method
from recipes.methods.prefixrec import PrefixRec
from recipes.methods.random import Random
from recipes.methods.reclora import RecLoRA
from recipes.methods.recommender_methods import as_methods
from recipes.methods.tallrec import TALLRec
from recipes.methods.zero_shot import ZeroShot
from recipes.recommenders import RECOMMENDERS
from recipes.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    Random(),
    *as_methods(RECOMMENDERS.values()),
    ZeroShot(),
    Chat(),
    TALLRec(),
    PrefixRec(),
    LoRA(),
    LoRAUserSlot(),
    DeepPrompt(),
    KLoRAs(),
    LayerBias(),
    RecLoRA(),
    GateToken(),
    GatePrompt(),
    ILoRA(),
    ILoRAUserSlot(),
    GateHard(),
    GateShuffled(),
    GateConstant(),
    GateRandom(),
)
