"""An adapted language model together with the projector that fills its prompts' slots."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from peft import PeftModel, PrefixTuningConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from peft_ilora.saving import GATES
from recipes.artifacts import read_tensors, write_tensors
from recipes.llm.adapter_plan import RoutedBy
from recipes.llm.frozen_prefix import decoder_layers
from recipes.llm.prefix import prefixed
from recipes.llm.slot_entry import slots_filled_at
from recipes.llm.training import answer_loss
from recipes.llm.user_prefix import UserPrefix
from recipes.prompting.collator import IGNORED
from recipes.prompting.encoding import NO_SLOT, USER
from recipes.prompting.projector import Projector, fill_slots

ADAPTER = "adapter.safetensors"
PROJECTOR = "projector.safetensors"
PREFIX = "prefix.safetensors"


class HybridModel(nn.Module):
    """The model to train: the adapter (with its gate) and the projector; all else is frozen.

    Args:
        llm: The language model with its adapter.
        projector: Maps the recommender's width to the language model's; None for prompts without
            slots.
        items: float32 [num_items, d], standardised item embeddings; None if no vector is read.
        routed_by: See `AdapterPlan`.
        slot_layer: Index of the decoder layer at which the vectors of slots enter; None is the
            input.
        prefix: Makes keys and values of the user's vector; None for an adapter without them.
    """

    accepts_loss_kwargs = True
    """Makes the Trainer pass `num_items_in_batch`, the answer tokens of a whole optimiser step."""

    def __init__(
        self,
        llm: PeftModel,
        projector: Projector | None,
        items: Tensor | None,
        routed_by: RoutedBy | None,
        slot_layer: int | None = None,
        prefix: UserPrefix | None = None,
    ) -> None:
        super().__init__()
        self.llm = llm
        self.projector = projector
        self.routed_by = routed_by
        self.slot_layer = slot_layer
        self.prefix = prefix
        self.items: Tensor | None
        self.register_buffer("items", items)

    @property
    def runner(self) -> PeftModel | PreTrainedModel:
        """What runs a batch: the adapted model, or the base model under a prefix of PEFT's.

        PEFT would put its prefix into the cache itself, but cannot generate from embeddings, nor go
        on from a prompt's cache. So its prefix enters as `prefixed` says.
        """
        if not self.llm.active_peft_config.is_prompt_learning:
            return self.llm
        return self._base

    @property
    def _base(self) -> PreTrainedModel:
        base = self.llm.get_base_model()
        assert isinstance(base, PreTrainedModel)
        return base

    def embed(
        self, input_ids: Tensor, slot_items: Tensor, users: Tensor | None, hybrid: bool
    ) -> Tensor:
        """Token embeddings, [b, t, width], with filled slots unless they are filled later.

        Args:
            input_ids: int64 [b, t].
            slot_items: int64 [b, t], see `fill_slots`.
            users: float [b, d], standardised user representations; None without slots.
            hybrid: False leaves the placeholder's own embedding in the slots of items. A user slot
                is filled all the same: a gate sees the user's vector in every batch, and the
                control that gets it in a slot must not see it less often.
        """
        embeds = self.llm.get_input_embeddings()(input_ids)
        if self.slot_layer is not None:
            return embeds
        return self._filled(embeds, slot_items, users, hybrid)

    def _filled(
        self, states: Tensor, slot_items: Tensor, users: Tensor | None, hybrid: bool
    ) -> Tensor:
        slot_items = _filled_slots(slot_items, hybrid)
        if users is None or not (hybrid or (slot_items == USER).any()):
            return states
        return self._fill(states, slot_items, users)

    def _fill(self, states: Tensor, slot_items: Tensor, users: Tensor) -> Tensor:
        assert self.items is not None and self.projector is not None
        return fill_slots(states, slot_items, self.items, users, self.projector)

    @contextmanager
    def filling(
        self, slot_items: Tensor, users: Tensor | None, hybrid: bool = True
    ) -> Iterator[None]:
        """The block in which the language model runs prompts, for what enters at its layers.

        The arguments are those of `embed`.
        """
        with self._prefixed(users), self._slots_filled(slot_items, users, hybrid):
            yield

    def _prefixed(self, users: Tensor | None) -> AbstractContextManager[None]:
        """The block in which layers attend to the adapter's prefix, if it has one."""
        config = self.llm.active_peft_config
        if isinstance(config, PrefixTuningConfig):
            assert config.num_layers is not None
            encoders: Any = self.llm.prompt_encoder
            shared: Tensor = encoders[self.llm.active_adapter].embedding.weight
            return prefixed(self._base, shared.unsqueeze(0), config.num_layers)
        if self.prefix is None:
            return nullcontext()
        assert users is not None
        return prefixed(self._base, self.prefix(users), self.prefix.layers)

    def _slots_filled(
        self, slot_items: Tensor, users: Tensor | None, hybrid: bool
    ) -> AbstractContextManager[None]:
        """The block in which prompts run whose slots are not filled yet; see `embed`."""
        slot_items = _filled_slots(slot_items, hybrid)
        if users is None or self.slot_layer is None or not (slot_items != NO_SLOT).any():
            return nullcontext()

        def fill(states: Tensor, slots: Tensor, repeats: int) -> Tensor:
            return self._fill(states, slots, users.repeat_interleave(repeats, dim=0))

        return slots_filled_at(decoder_layers(self._base), self.slot_layer, slot_items, fill)

    def routing(
        self,
        users: Tensor | None,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The keyword argument that routes the adapter; empty if the adapter is not routed.

        Args:
            users: float [b, d], standardised user representations; None without vectors.
            inputs_embeds: [b, t, width].
            attention_mask: int64 [b, t].
            labels: int64 [b, a], given if the last a positions hold answers, which must not route.
        """
        if self.routed_by is None:
            return {}
        if self.routed_by == "vector":
            assert users is not None
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
        hybrid: bool,
        users: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        states: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss of a batch that `TrainingCollator` has made.

        On a text-only batch without a user slot the projector is not part of the graph, so its
        gradient stays None and the optimiser skips it, weight decay and momentum included: it is
        frozen for that step.

        `states`, [b, t, width], are what enters `slot_layer`, whose slots are not filled. They are
        read in place of token embeddings, and the layers below must have been left out.
        """
        filling: AbstractContextManager[None] = nullcontext()
        if states is None:
            embeds = self.embed(input_ids, slot_items, users, hybrid)
            filling = self._slots_filled(slot_items, users, hybrid)
        else:
            embeds = self._filled(states, slot_items, users, hybrid)
        routing = self.routing(users, embeds, attention_mask, labels)
        inputs: dict[str, Any] = {"inputs_embeds": embeds, **routing}
        with self._prefixed(users), filling:
            loss = answer_loss(self.runner, inputs, attention_mask, labels, num_items_in_batch)
        return {"loss": loss}

    def save_checkpoint(self, folder: Path) -> None:
        """Write the adapter and its gate, and what else is trained, as safetensors files."""
        adapter = get_peft_model_state_dict(self.llm, save_embedding_layers=False)
        write_tensors(folder / ADAPTER, adapter)
        self.save_modules(folder)

    def load_checkpoint(self, folder: Path) -> None:
        """Read what `save_checkpoint` wrote."""
        set_peft_model_state_dict(self.llm, read_tensors(folder / ADAPTER))
        self.load_modules(folder)

    def save_modules(self, folder: Path) -> None:
        """Write the projector and the user's prefix, as far as there are any."""
        for name, module in self._modules_beside.items():
            write_tensors(folder / name, module.state_dict())

    def load_modules(self, folder: Path) -> None:
        """Read what `save_modules` wrote."""
        for name, module in self._modules_beside.items():
            module.load_state_dict(read_tensors(folder / name))

    @property
    def _modules_beside(self) -> dict[str, nn.Module]:
        found = {PROJECTOR: self.projector, PREFIX: self.prefix}
        return {name: module for name, module in found.items() if module is not None}

    def trainable_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        """The trained parameters by name, in the groups `adapter`, `gate` and `projector`.

        What makes a prefix of the user's vector counts as a projector.
        """
        groups: dict[str, dict[str, nn.Parameter]] = {"adapter": {}, "gate": {}, "projector": {}}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[_group(name)][name] = parameter
        return groups


def _filled_slots(slot_items: Tensor, hybrid: bool) -> Tensor:
    """All slots of a hybrid batch, and the user's of a text-only one."""
    return slot_items if hybrid else slot_items.where(slot_items == USER, NO_SLOT)


def _group(name: str) -> str:
    if name.startswith(("projector.", "prefix.")):
        return "projector"
    return "gate" if f".{GATES}." in name else "adapter"
