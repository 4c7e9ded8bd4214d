"""Instance-wise LoRA for PEFT: a LoRA whose rank coordinates are scaled per instance by a gate.

Importing this package registers the PEFT type `ILORA`. Method: "Customizing Language Models with
Instance-wise LoRA for Sequential Recommendation", arXiv 2408.10159.
"""

from peft_ilora import fast
from peft_ilora.collator import RoutingCollator
from peft_ilora.config import ILoRAConfig
from peft_ilora.instance.export import export_lora
from peft_ilora.model.ilora import ILoRAModel
from peft_ilora.registration import register
from peft_ilora.trainer import RoutingColumns

__all__ = ["ILoRAConfig", "ILoRAModel", "RoutingCollator", "RoutingColumns", "export_lora"]
__version__ = "0.1.0"

register(ILoRAConfig, ILoRAModel)
fast.install()
