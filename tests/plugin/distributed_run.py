"""Trains tiny adapters in as many processes as a launcher starts it in.

Not a test: `test_distributed.py` runs it alone and by `accelerate launch` or `torchrun`, and
compares what the runs leave: `<case>/run.json` and the adapter, in the folder that it is given.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from peft_ilora import ILoRAConfig
from peft_ilora.collator import RoutingCollator
from peft_ilora.trainer import RoutingColumns

ROUTING_DIM = 8
GLOBAL_BATCH = 8
STEPS = 5
LEARNING_RATE = 2.0  # of SGD: unlike Adam's, its step shows a gradient of the wrong scale
MAX_NORM = 0.3  # clips in most steps, so the norm over all processes' shares is compared too
CASES: dict[str, dict[str, Any]] = {
    "shared": {"gate_scope": "shared"},
    "per_module": {"gate_scope": "per_module"},
    "checkpointed": {"gate_scope": "shared", "gate": "mlp"},
}


class RoutedTrainer(RoutingColumns, Trainer):
    pass


def rows() -> list[dict[str, Any]]:
    """Rows of different lengths, so that processes hold different numbers of tokens."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(GLOBAL_BATCH * STEPS):
        ids = torch.randint(3, 60, (4 + i % 5,), generator=generator).tolist()
        z = torch.randn(ROUTING_DIM, generator=generator).tolist()
        made.append({"input_ids": ids, "labels": ids, "routing_embeds": z})
    return made


def padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    length = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: int) -> Tensor:
        return torch.tensor([r[name] + [filler] * (length - len(r[name])) for r in batch])

    ids = column("input_ids", 0)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": column("labels", -100),
    }


def model(rank: int, **config: Any) -> PeftModel:
    """The same base everywhere; an adapter that differs by rank, as unseeded scripts make them.

    Whatever distributes the training has to start all processes from rank 0's.
    """
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=60,
            pad_token_id=0,
        )
    )
    torch.manual_seed(rank)
    settings = ILoRAConfig(
        routing_dim=ROUTING_DIM,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
        **config,
    )
    adapted = get_peft_model(base, settings)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # at zero it would hide the gate from the first step
            nn.init.normal_(parameter.data, std=0.1)
    return adapted


def train_by_trainer(case: str, folder: Path, sharded: bool) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=GLOBAL_BATCH // world_size(),
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_NORM,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=case == "checkpointed",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        seed=3,
    )
    if sharded:
        # accelerate shards on accelerators only: let these CPU processes pass for them
        assert arguments.device.type == "cpu"
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    adapted = model(arguments.process_index, **CASES[case])
    if arguments.process_index == 0:
        adapted.save_pretrained(folder / "start")
    trainer = RoutedTrainer(
        adapted,
        arguments,
        data_collator=RoutingCollator(padded),
        train_dataset=Dataset.from_list(rows()),
    )
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if arguments.process_index == 0:
        write(folder, losses, trainer.model_wrapped)


def train_by_hand(case: str, folder: Path) -> None:
    """torch's own DDP without Trainer or accelerate."""
    rank, world = torch.distributed.get_rank(), world_size()
    adapted = model(rank, **CASES[case]).train()
    parallel = DistributedDataParallel(adapted, find_unused_parameters=False)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], LEARNING_RATE)
    collator, data, losses = RoutingCollator(padded), rows(), []
    for step in range(STEPS):
        batch = data[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        tokens = sum(len(row["labels"]) - 1 for row in batch)
        inputs = collator(batch[rank::world])
        loss = parallel(**inputs, num_items_in_batch=tokens).loss * world  # DDP takes the mean
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(adapted.parameters(), MAX_NORM)
        optimiser.step()
        mean = loss.detach() / world
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    if rank == 0:
        adapted.save_pretrained(folder)
        write(folder, losses, parallel)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def write(folder: Path, losses: list[float], wrapped: nn.Module) -> None:
    kinds = [kind for kind in (FSDPModule, DistributedDataParallel) if isinstance(wrapped, kind)]
    gates = [p for name, p in wrapped.named_parameters() if "ilora_gate" in name]
    record = {
        "losses": losses,
        "processes": world_size(),
        "wrapper": kinds[0].__name__ if kinds else "none",
        "sharded_gate": all(isinstance(gate, DTensor) for gate in gates),
    }
    (folder / "run.json").write_text(json.dumps(record))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--by", choices=["trainer", "fsdp2", "hand"], default="trainer")
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.by == "hand":
        torch.distributed.init_process_group("gloo")
    for case in arguments.cases:
        folder = arguments.folder / case
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.by == "hand":
            train_by_hand(case, folder)
        else:
            train_by_trainer(case, folder, sharded=arguments.by == "fsdp2")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
