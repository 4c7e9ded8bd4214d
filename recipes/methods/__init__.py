"""What is compared. One file a method; a new one is imported and listed here.

Every recommender is a method of its name besides.
"""

from recipes.methods.co_occurrence import CoOccurrence
from recipes.methods.ilora import ILoRA
from recipes.methods.lora import LoRA
from recipes.methods.lora_user_slot import LoRAUserSlot
from recipes.methods.method import Method
from recipes.methods.random import Random
from recipes.methods.recommended import as_methods
from recipes.recommenders import RECOMMENDERS
from recipes.registry import Registry

METHODS: Registry[Method] = Registry(
    "method",
    Random(),
    CoOccurrence(),
    *as_methods(RECOMMENDERS.values()),
    LoRA(),
    LoRAUserSlot(),
    ILoRA(),
)
