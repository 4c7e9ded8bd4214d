"""What the routing asks of the adapters that read it."""

from typing import Any, Protocol

from peft_ilora.config import ILoRAConfig
from peft_ilora.gating import Gate


class Readers(Protocol):
    """The adapters of a model, as far as its hooks and checkpointed blocks ask for them."""

    def reading(self) -> dict[str, ILoRAConfig]:
        """Return the adapters that read a routing now; none where they are disabled or merged."""
        ...

    def shared_gates(self) -> dict[str, Gate]:
        """Return the gates that all layers of an adapter share, of the adapters in `reading`."""
        ...

    def check_readable(self, routing_embeds: Any) -> None:
        """Raise a ValueError where a routing would be ignored that the caller means to be read."""
        ...
