"""Every task type of PEFT: trained through its own PeftModel class, saved, and loaded by Auto."""

from dataclasses import dataclass, field
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peft_ilora import ILoRAConfig

from .families import ROWS, SMALL, SMALL_IMAGES, family, lively

LENGTH, CLASSES = 6, 3


@dataclass(frozen=True)
class Task:
    """One task type: a base model, a batch with its answers, what else it trains."""

    task_type: str | None
    model_type: str
    auto: Any
    peft_auto: str
    answers: dict[str, Tensor]
    heads: tuple[str, ...] = ()
    """Parameters beside the adapter that PEFT trains and saves for the task."""
    sizes: dict[str, Any] = field(default_factory=lambda: SMALL)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    labels: int = CLASSES

    def base(self) -> nn.Module:
        config = AutoConfig.for_model(self.model_type, num_labels=self.labels, **self.sizes)
        return lively(lambda: self.auto.from_config(config))

    def adapted(self, **options: Any) -> PeftModel:
        config = ILoRAConfig(
            routing_dim=8, task_type=self.task_type, lora_dropout=0.0, **(self.config | options)
        )
        return get_peft_model(self.base(), config)

    def batch(self) -> dict[str, Tensor]:
        if self.inputs:
            return dict(self.inputs)
        ids = torch.randint(3, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(7))
        mask = torch.ones_like(ids)
        mask[1, -2:] = 0
        return {"input_ids": ids * mask, "attention_mask": mask}


def _labels(*shape: int, below: int = CLASSES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {"labels": torch.randint(0, below, shape, generator=generator)}


_CAUSAL = Task(
    "CAUSAL_LM",
    "llama",
    AutoModelForCausalLM,
    "AutoPeftModelForCausalLM",
    _labels(ROWS, LENGTH, below=60),
)
TASKS = {
    "CAUSAL_LM": _CAUSAL,
    "SEQ_2_SEQ_LM": Task(
        "SEQ_2_SEQ_LM",
        "t5",
        AutoModelForSeq2SeqLM,
        "AutoPeftModelForSeq2SeqLM",
        _labels(ROWS, 4, below=60),
        sizes={
            "vocab_size": 60,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 16,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
    ),
    "SEQ_CLS": Task(
        "SEQ_CLS",
        "llama",
        AutoModelForSequenceClassification,
        "AutoPeftModelForSequenceClassification",
        _labels(ROWS),
        heads=("score",),
    ),
    "SEQ_CLS (encoder)": Task(
        "SEQ_CLS",
        "bert",
        AutoModelForSequenceClassification,
        "AutoPeftModelForSequenceClassification",
        _labels(ROWS),
        heads=("classifier",),
    ),
    "TOKEN_CLS": Task(
        "TOKEN_CLS",
        "bert",
        AutoModelForTokenClassification,
        "AutoPeftModelForTokenClassification",
        _labels(ROWS, LENGTH),
        heads=("classifier",),
    ),
    "QUESTION_ANS": Task(
        "QUESTION_ANS",
        "bert",
        AutoModelForQuestionAnswering,
        "AutoPeftModelForQuestionAnswering",
        {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([2, 3, 1])},
        heads=("qa_outputs",),
        labels=2,
    ),
    "FEATURE_EXTRACTION": Task(
        "FEATURE_EXTRACTION", "bert", AutoModel, "AutoPeftModelForFeatureExtraction", {}
    ),
    "none": Task(None, "llama", AutoModelForCausalLM, "AutoPeftModel", _CAUSAL.answers),
    "none (image classification)": Task(
        None,
        "vit",
        AutoModelForImageClassification,
        "AutoPeftModel",
        _labels(ROWS),
        heads=("classifier",),
        sizes=SMALL_IMAGES,
        inputs=family("ViT").inputs(),
        config={
            "target_modules": r".*\.(query|value|q_proj|v_proj)",
            "modules_to_save": ["classifier"],
        },
    ),
}
every_task = pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=name, marks=pytest.mark.support("Task types", name, "works"))
        for name, task in TASKS.items()
    ],
)


def look(output: Any) -> Tensor:
    """Whatever the model predicts, [rows, features]."""
    names = ("logits", "start_logits", "end_logits", "last_hidden_state")
    return torch.cat([output[name].flatten(1) for name in names if name in output], dim=1)


def predict(model: Any, task: Task, **routing: Tensor) -> Tensor:
    extra = {"decoder_input_ids": task.answers["labels"]} if task.model_type == "t5" else {}
    with torch.no_grad():
        return look(model.eval()(**task.batch(), **extra, **routing))


def train(model: PeftModel, task: Task, z: Tensor, steps: int = 2) -> None:
    """Two steps: after the first B is no longer zero, and A and the gate move too."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.5)
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        output = model(**task.batch(), **task.answers, routing_embeds=z)
        loss = output.loss if task.answers else look(output)[:, :40].square().mean()
        loss.backward()
        optimiser.step()


@every_task
def test_training_moves_experts_gate_and_head_and_nothing_else(task, z) -> None:
    model = task.adapted()
    assert type(model).__name__ == PEFT_CLASSES[task.task_type]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, task, z)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    kinds = ("lora_A.", "lora_B.", "ilora_gate.", "modules_to_save.")
    assert moved == {name for name in before if any(kind in name for kind in kinds)}
    for kind in kinds[:3]:
        assert any(kind in name for name in moved)
    assert {n.split(".modules_to_save.")[0].split(".")[-1] for n in moved if kinds[3] in n} == set(
        task.heads
    )


@every_task
def test_keyword_and_context_agree_and_each_row_follows_its_routing(task, z) -> None:
    model = task.adapted()
    train(model, task, z)
    by_keyword = predict(model, task, routing_embeds=z)
    with model.routing(z):
        torch.testing.assert_close(predict(model, task), by_keyword)
    changed = z.clone()
    changed[1] = -z[1]
    moved = (predict(model, task, routing_embeds=changed) - by_keyword).abs().amax(dim=1)
    assert moved[1] > 1e-4 and moved[0] < 1e-6 and moved[2] < 1e-6
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        predict(model, task)


@every_task
def test_a_trained_adapter_comes_back_with_its_head_by_auto(task, z, tmp_path) -> None:
    folder, adapter = tmp_path / "base", tmp_path / "adapter"
    task.base().save_pretrained(folder)
    model = get_peft_model(
        task.auto.from_pretrained(folder),
        ILoRAConfig(routing_dim=8, task_type=task.task_type, **task.config),
    )
    train(model, task, z)
    expected = predict(model, task, routing_embeds=z)
    model.save_pretrained(adapter)
    loaded = getattr(peft, task.peft_auto).from_pretrained(adapter)
    assert type(loaded).__name__ == PEFT_CLASSES[task.task_type]
    torch.testing.assert_close(predict(loaded, task, routing_embeds=z), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    again = getattr(peft, task.peft_auto).from_pretrained(adapter, is_trainable=True)
    train(again, task, z)
    assert not torch.allclose(predict(again, task, routing_embeds=z), expected, atol=1e-4)


PEFT_CLASSES = {
    "CAUSAL_LM": "PeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "PeftModelForSeq2SeqLM",
    "SEQ_CLS": "PeftModelForSequenceClassification",
    "TOKEN_CLS": "PeftModelForTokenClassification",
    "QUESTION_ANS": "PeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "PeftModelForFeatureExtraction",
    None: "PeftModel",
}
