"""Why a test of PEFT's that LoRA passes does not pass with iLoRA: one entry a reason.

A test that fails and has no entry is a fault, and so is an entry that no test needs any longer.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from re import search
from typing import Literal

Kind = Literal["refused", "differs"]


@dataclass(frozen=True)
class Reason:
    """A reason, and how to tell the failures that have it."""

    kind: Kind
    """`refused`: iLoRA, or PEFT for it, says no with a message. `differs`: the test asks for what
    holds for one plain LoRA only."""
    what: str
    """Named in the table."""
    why: str
    """One sentence."""
    says: str = ""
    """A regular expression found in the exception's message."""
    tests: tuple[str, ...] = ("*",)
    """Patterns of test functions."""

    def explains(self, test: str, message: str) -> bool:
        """Whether this is the reason of a failure.

        Args:
            test: `file.py::Class::function[parameters]`.
            message: Of the exception.
        """
        function = test.partition("[")[0].rpartition("::")[2]
        named = any(fnmatchcase(function, pattern) for pattern in self.tests)
        return named and search(self.says, message) is not None


def _option(name: str, why: str, what: str = "") -> Reason:
    return Reason("refused", what or f"`{name}`", why, rf"^{name}=.* cannot be used with iLoRA")


REASONS = (
    _option("use_dora", "DoRA divides by the norm of one weight, but each row has its own."),
    _option("lora_bias", "A bias on B would reach the output past the gate."),
    _option("target_parameters", "A bare parameter has no batch of inputs to be routed."),
    _option("alora_invocation_tokens", "Activated LoRA takes the place in the layer of the gate."),
    _option("velora_config", "VeLoRA takes the place in the layer of the gate."),
    _option("monteclora_config", "MonteCLoRA takes the place in the layer of the gate."),
    _option("use_bdlora", "BD-LoRA's blocks would cut across the experts."),
    _option("kasa_config", "KaSA rewrites the base weight for an update without a gate."),
    _option(
        "init_lora_weights",
        "MiCA starts from an update that is not zero, and the gate would change it.",
        '`init_lora_weights="mica"`',
    ),
    _option("_custom_modules", "A LoRA layer of one's own is not known to ask for the gate."),
    Reason(
        "refused",
        "`nn.MultiheadAttention`",
        "PEFT merges the update into one weight in every forward, which all rows share.",
        r"is a torch MultiheadAttention",
    ),
    Reason(
        "refused",
        "`add_weighted_adapter`",
        "Weights that depend on the row cannot be added up; exported instances can.",
        r"add_weighted_adapter cannot combine iLoRA adapters",
    ),
    Reason(
        "refused",
        "`adapter_names` with embeddings and convolutions",
        "PEFT computes the rows of such layers past the gate.",
        r"PEFT mixes batches in such layers past the gate",
    ),
    Reason(
        "refused",
        "`PeftMixedModel`",
        "PEFT lists the methods that it mixes, and the list is closed.",
        r"not compatible with the `PeftMixedModel`",
    ),
    Reason(
        "refused",
        "`safe_serialization=False`",
        "A pickle can run code when it is loaded, so none is written or read.",
        r"^safe_serialization=False writes a pickle",
    ),
    Reason(
        "refused",
        '`bias="ilora_only"`',
        "iLoRA's layers are LoRA's, so the setting has LoRA's name: `bias=\"lora_only\"`.",
        r"^bias='ilora_only' must be one of",
    ),
    Reason(
        "refused",
        "`merge_adapter` of tied embeddings",
        "The merge would change the output layer too, whose base weight is the same tensor.",
        r"shares its base weight with another module",
    ),
    Reason(
        "differs",
        "the error of an adapter for another size",
        "The test expects torch's RuntimeError; iLoRA refuses earlier, by a ValueError.",
        r"they were made for another base",
        ("test_load_resized_embedding_ignore_mismatched_sizes",),
    ),
    Reason(
        "refused",
        "a model that regroups rows before the adapted layer",
        "PEFT's convolution models reshape nine rows into others, which no longer are instances.",
        r"which is neither that batch nor a flat",
    ),
    Reason(
        "refused",
        "a layer that is called by itself, without routing",
        "The test calls an embedding past the model, where no routing is bound.",
        r"^routing_embeds is missing",
        ("test_lora_embed_scale_is_applied",),
    ),
    Reason(
        "differs",
        "how far a parameter moves",
        "Each must move by 1e-4 in three steps; an unread gate stays, and experts share a step.",
        r"^assert not True",
        ("test_only_params_are_updated",),
    ),
    Reason(
        "differs",
        "which parameters train",
        "The test lists A and B as all that trains; the gate trains too.",
        r"^Expected \(.*\) to require grad",
        ("test_requires_grad_*",),
    ),
    Reason(
        "differs",
        "the rank of a layer",
        "The test reads the rank of A as `r`; here `r` is the rank of each expert.",
        r"^Rank \d+ is not equal to expected \d+",
        ("test_multirank*",),
    ),
)
