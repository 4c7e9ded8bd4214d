"""The generator that learns nothing: given expert ids, of clusters for instance."""

from torch import Tensor, nn


class Named(nn.Module):
    """Logits under which a softmax gives the named expert everything.

    Args:
        num_experts: Number of experts K.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, z: Tensor) -> Tensor:
        """Name experts.

        Args:
            z: Expert ids, [batch], int64.

        Returns:
            [batch, num_experts], float32: zero for the named expert, and minus infinity.
        """
        return nn.functional.one_hot(z, self.num_experts).float().log()
