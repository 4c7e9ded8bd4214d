"""The gated update of embeddings."""

from typing import Any

from torch import Tensor

from peft_ilora.layers.update import GatedUpdate


class GatedEmbedding(GatedUpdate):
    """The update of embeddings: ids [batch, ...] -> [batch, ..., out]."""

    def down(self, module: Any, adapter: str, x: Tensor) -> Tensor:
        """Look the ids up in A: [batch, ..., rank]."""
        return module._embed(x, module.lora_embedding_A[adapter].T)

    def up(self, module: Any, adapter: str, hidden: Tensor) -> Tensor:
        """Return `B hidden`, [batch, ..., out]."""
        update = hidden @ module.lora_embedding_B[adapter].T
        scale = module._get_embed_scale()  # Gemma's embeddings multiply their output
        return update if scale is None else update * scale.to(update.dtype)
