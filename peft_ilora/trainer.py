"""A mixin that lets transformers' and TRL's trainers keep the routing of a dataset's rows."""

from typing import TYPE_CHECKING, Any

import torch

from peft_ilora.collator import RoutingCollator
from peft_ilora.routing.binding import KEYWORD


class RoutingColumns:
    """Put it in front of a trainer: `class RoutedTrainer(RoutingColumns, Trainer): ...`.

    The routing column survives `remove_unused_columns=True`, the trainers' default, and the
    trainer's data collator becomes a `RoutingCollator` around it, unless it is one.
    """

    routing_column: str = KEYWORD
    """The datasets' routing column; override it in the subclass if it has another name."""

    if TYPE_CHECKING:
        data_collator: Any
        _signature_columns: list[str] | None

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(self.data_collator, RoutingCollator):
            self.data_collator = RoutingCollator(self.data_collator, self.routing_column)

    def concatenated_forward(self, model: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the pairs of TRL's CPO and ORPO trainers, which concatenate them by themselves."""
        routing = torch.cat([batch[KEYWORD]] * 2)  # all chosen rows, then all rejected ones
        with self.accelerator.unwrap_model(model).routing(routing):
            return super().concatenated_forward(  # pyright: ignore[reportAttributeAccessIssue]
                model, batch, *args, **kwargs
            )

    def _set_signature_columns_if_needed(self) -> None:
        # transformers' Trainer asks this for the columns to keep; TRL's trainers override it.
        super()._set_signature_columns_if_needed()  # pyright: ignore[reportAttributeAccessIssue]
        columns = list(self._signature_columns or ())
        if self.routing_column not in columns:
            self._signature_columns = [*columns, self.routing_column]
