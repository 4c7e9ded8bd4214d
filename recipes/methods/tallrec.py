"""TALLRec (arXiv 2305.00447): LoRA on the text prompt, which no recommender's vector enters."""

from collections.abc import Mapping
from typing import Any, ClassVar

from recipes.about import About
from recipes.methods.lora import LoRA


class TALLRec(LoRA):
    """The same adapter as `LoRA`, on prompts without slots. No projector is trained.

    Of TALLRec this is what the iLoRA paper compares with: its adapter and its kind of prompt, under
    the data and the training of the other arms. (TALLRec itself asks whether a user likes one
    item, and trains on general instructions first.)
    """

    name = "tallrec"
    summary = "plain LoRA with the text prompt (TALLRec): no recommender's vectors"
    about = About(
        title="TALLRec",
        meaning="the same LoRA on the prompt as plain text, without any vector",
        order=45,
        ranks_by="likelihood",
        colour="#CC79A7",
    )
    fixed: ClassVar[Mapping[str, Any]] = {"item_slots": False}
    unread = frozenset({"curriculum", "mistakes", "weight_decay"})
    reads_vectors = False
