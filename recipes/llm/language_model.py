"""A causal language model and its tokenizer, given by Hugging Face name or local path."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipes.experiment import Precision
from recipes.llm.loading import load_language_model


class LanguageModel:
    """A frozen language model, which adapters use one after the other.

    Args:
        name_or_path: See `load_language_model`.
        precision: See `load_language_model`.
        check: Called after every load; refuses files that are not those of the first one.
    """

    def __init__(
        self, name_or_path: str, precision: Precision, check: Callable[[], None] | None = None
    ) -> None:
        self.name_or_path = name_or_path
        self.precision: Precision = precision
        self._check = check
        self._base, self.tokenizer = self._load()

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        found = load_language_model(self.name_or_path, self.precision)
        if self._check is not None:
            self._check()
        return found

    @property
    def base(self) -> PreTrainedModel:
        """The model without an adapter."""
        return self._base

    @contextmanager
    def wrapped(self, peft: PeftConfig) -> Iterator[PeftModel]:
        """The model with a new adapter, which is removed at the end of the block."""
        with peft_wrapping():
            model = get_peft_model(self._base, peft)
        assert isinstance(model, PeftModel)
        with self._borrowed(model):
            yield model

    @contextmanager
    def adapted(self, folder: Path) -> Iterator[PeftModel]:
        """The model with a saved adapter, which is removed at the end of the block."""
        with peft_wrapping():
            model = PeftModel.from_pretrained(self._base, str(folder))
        with self._borrowed(model):
            yield model

    @contextmanager
    def _borrowed(self, model: PeftModel) -> Iterator[None]:
        try:
            yield
        finally:
            if _changes_the_base(model.active_peft_config):
                self._base, _ = self._load()
            else:
                if isinstance(model.base_model, BaseTuner):
                    model.base_model.unload()
                self._base.requires_grad_(False).eval()


def _changes_the_base(peft: PeftConfig) -> bool:
    """Whether an adapter trains or overwrites weights of the base model."""
    start = getattr(peft, "init_lora_weights", True)
    trained = ("modules_to_save", "trainable_token_indices", "layer_replication")
    return (
        start not in (True, False, "gaussian")
        or getattr(peft, "bias", "none") != "none"
        or any(getattr(peft, name, None) for name in trained)
    )


@torch.no_grad()
def token_embeddings(model: PreTrainedModel, count: int = 1024) -> Tensor:
    """Embeddings of at most `count` tokens, evenly spaced in the vocabulary: [n, width]."""
    layer = model.get_input_embeddings()
    vocabulary = layer.get_parameter("weight").shape[0]
    ids = torch.arange(0, vocabulary, -(-vocabulary // count), device=model.device)
    return layer(ids)  # the layer is called, not its weight read: some models scale the weight


@contextmanager
def peft_wrapping() -> Iterator[None]:
    """Silences a deprecation warning while PEFT wraps a model.

    peft 0.21 reads `is_gradient_checkpointing`, which transformers 5 has renamed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found
