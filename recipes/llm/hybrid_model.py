"""An adapted language model together with the projector that fills its prompts' slots."""

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from recipes.artifacts import read_tensors, write_tensors
from recipes.llm.adapter_plan import RoutedBy
from recipes.llm.training import answer_loss
from recipes.prompting.collator import IGNORED
from recipes.prompting.encoding import NO_SLOT, USER
from recipes.prompting.projector import Projector, fill_slots

ADAPTER = "adapter.safetensors"
PROJECTOR = "projector.safetensors"


class HybridModel(nn.Module):
    """The model to train: the adapter (with its gate) and the projector; all else is frozen.

    Args:
        llm: The language model with its adapter.
        projector: Maps the recommender's width to the language model's.
        items: float32 [num_items, d], standardised item embeddings.
        routed_by: See `AdapterPlan`.
    """

    accepts_loss_kwargs = True
    """Makes the Trainer pass `num_items_in_batch`, the answer tokens of a whole optimiser step."""

    def __init__(
        self, llm: PeftModel, projector: Projector, items: Tensor, routed_by: RoutedBy | None
    ) -> None:
        super().__init__()
        self.llm = llm
        self.projector = projector
        self.routed_by = routed_by
        self.items: Tensor
        self.register_buffer("items", items)

    def embed(self, input_ids: Tensor, slot_items: Tensor, users: Tensor, hybrid: bool) -> Tensor:
        """Token embeddings with filled slots, [b, t, width].

        Args:
            input_ids: int64 [b, t].
            slot_items: int64 [b, t], see `fill_slots`.
            users: float [b, d], standardised user representations.
            hybrid: False leaves the placeholder's own embedding in the slots of items. A user slot
                is filled all the same: a gate sees the user's vector in every batch, and the
                control that gets it in a slot must not see it less often.
        """
        embeds = self.llm.get_input_embeddings()(input_ids)
        if not hybrid:
            slot_items = slot_items.where(slot_items == USER, NO_SLOT)
            if not (slot_items == USER).any():
                return embeds
        return fill_slots(embeds, slot_items, self.items, users, self.projector)

    def routing(
        self,
        users: Tensor,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The keyword argument that routes the adapter; empty if the adapter is not routed.

        Args:
            users: float [b, d], standardised user representations.
            inputs_embeds: [b, t, width].
            attention_mask: int64 [b, t].
            labels: int64 [b, a], given if the last a positions hold answers, which must not route.
        """
        if self.routed_by is None:
            return {}
        if self.routed_by == "vector":
            return {"routing_embeds": users}
        prompt = attention_mask.clone()
        if labels is not None:
            prompt[:, -labels.shape[1] :] *= labels == IGNORED
        embeds = self.llm.prompt_embeds(attention_mask=prompt, inputs_embeds=inputs_embeds)  # type: ignore[operator]
        return {"routing_embeds": embeds}

    def forward(
        self,
        input_ids: Tensor,
        slot_items: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        users: Tensor,
        hybrid: bool,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch that `TrainingCollator` has made.

        On a text-only batch without a user slot the projector is not part of the graph, so its
        gradient stays None and the optimiser skips it, weight decay and momentum included: it is
        frozen for that step.
        """
        embeds = self.embed(input_ids, slot_items, users, hybrid)
        routing = self.routing(users, embeds, attention_mask, labels)
        inputs: dict[str, Any] = {"inputs_embeds": embeds, **routing}
        return {"loss": answer_loss(self.llm, inputs, attention_mask, labels, num_items_in_batch)}

    def save_checkpoint(self, folder: Path) -> None:
        """Write adapter, gate and projector as safetensors files."""
        adapter = get_peft_model_state_dict(self.llm, save_embedding_layers=False)
        write_tensors(folder / ADAPTER, adapter)
        write_tensors(folder / PROJECTOR, self.projector.state_dict())

    def load_checkpoint(self, folder: Path) -> None:
        """Read what `save_checkpoint` wrote."""
        set_peft_model_state_dict(self.llm, read_tensors(folder / ADAPTER))
        self.projector.load_state_dict(read_tensors(folder / PROJECTOR))

    def trainable_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """The trained parameters by name, in the groups `adapter`, `gate` and `projector`."""
        groups: dict[str, dict[str, nn.Parameter]] = {"adapter": {}, "gate": {}, "projector": {}}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_group(name)][name] = parameter
        return groups


def _group(name: str) -> str:
    if name.startswith("projector."):
        return "projector"
    return "gate" if "ilora_gate" in name else "adapter"
