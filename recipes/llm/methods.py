"""The methods under comparison, at equal total rank."""

from peft import LoraConfig, PeftConfig, TaskType

from peft_ilora import ILoRAConfig
from recipes.experiment import AdaptConfig, Method


def peft_config(method: Method, config: AdaptConfig, routing_dim: int) -> PeftConfig:
    """The adapter of a method.

    `lora-user-slot` is plain LoRA: it differs in the prompt, which shows the user representation
    in one more slot. `ilora` has K experts of rank `rank / K` each. Its scaling is
    `lora_alpha / (rank / K)` times the gate, so that a uniform gate, 1 / K, gives LoRA's
    `lora_alpha / rank`: the same alpha stands for the same strength in both.

    Args:
        method: Which one.
        config: Rank, experts, alpha, dropout and target modules.
        routing_dim: Width of a user representation.
    """
    check_methods(config)
    if method == "ilora":
        return ILoRAConfig(
            num_experts=config.num_experts,
            r=config.rank // config.num_experts,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.target_modules,
            routing_dim=routing_dim,
            task_type=TaskType.CAUSAL_LM,
        )
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # PEFT says int, and only divides
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,
        task_type=TaskType.CAUSAL_LM,
    )


def check_methods(config: AdaptConfig) -> None:
    """Refuse a comparison that is not one.

    Raises:
        ValueError: No or repeated methods, or the experts cannot share the rank.
    """
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(f"adapt.methods={config.methods}: name each method once, at least one")
    if "ilora" in config.methods and config.rank % config.num_experts:
        raise ValueError(
            f"adapt.rank={config.rank} is not divisible by adapt.num_experts={config.num_experts}: "
            "each expert has rank / num_experts, so that the total rank equals LoRA's"
        )


def uses_routing(method: Method) -> bool:
    """Whether the adapter takes `routing_embeds`."""
    return method == "ilora"


def has_user_slot(method: Method) -> bool:
    """Whether the prompt shows the user representation."""
    return method == "lora-user-slot"
