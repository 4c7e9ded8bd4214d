"""Trains tiny adapters in as many processes as a launcher starts it in.

Not a test: `test_distributed.py` starts it once, with a JSON of the launches. Each is made by the
launcher's own code (`accelerate launch`, `torchrun`, or none), whose ranks are forked from here
instead of being started anew, as importing takes longer than all that they train. The test compares
what the runs leave: `<launch>/<case>/run.json` and the adapter, in the folder that it is given.
"""

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.run
from accelerate import PartialState
from accelerate.commands import launch as accelerate_launch
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
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


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    checkpointing: bool = False
    entropy: float = 0.0
    """Weight of the gate's entropy in the loss."""


CASES = {
    "shared": Case({}),
    "per module": Case({"gate_scope": "per_module"}),
    "checkpointed": Case({"gate": "mlp"}, checkpointing=True),
    "hard": Case({"gate": "hard"}),
    "token": Case({"gate_input": "token", "gate_scope": "per_module"}),
    "prompt": Case({"gate_input": "prompt", "routing_dim": 32}),
    "trunk": Case({"gate": "trunk", "gate_form": "scale_shift"}, checkpointing=True),
    "entropy, shared": Case({}, entropy=1.0),
    "entropy, per module": Case({"gate_scope": "per_module"}, entropy=1.0),
}


class RoutedTrainer(RoutingColumns, Trainer):
    entropy = 0.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self.entropy:
            unwrapped = self.accelerator.unwrap_model(model)
            loss = loss + self.entropy * unwrapped.routing_losses()["entropy"]
        return loss


def rows(case: Case) -> list[dict[str, Any]]:
    """Rows of different lengths, so that processes hold different numbers of tokens."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(GLOBAL_BATCH * STEPS):
        ids = torch.randint(3, 60, (4 + i % 5,), generator=generator).tolist()
        z = torch.randn(ROUTING_DIM, generator=generator).tolist()
        row = {"input_ids": ids, "labels": [-100, -100, *ids[2:]]}
        if "gate_input" not in case.config:
            row["routing_embeds"] = i % 3 if case.config.get("gate") == "hard" else z
        made.append(row)
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


def model(case: Case, rank: int) -> PeftModel:
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
    settings: dict[str, Any] = {
        "routing_dim": ROUTING_DIM,
        "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
    }
    adapted = get_peft_model(base, ILoRAConfig(**settings | case.config))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # at zero it would hide the gate from the first step
            nn.init.normal_(parameter.data, std=0.1)
    return adapted


def train_by_trainer(case: Case, folder: Path, pretended: str | None = None) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=pretended != DistributedType.DEEPSPEED,
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
        gradient_checkpointing=case.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
        seed=3,
    )
    if pretended is not None:
        pretend(arguments, pretended)
    adapted = model(case, arguments.process_index)
    if arguments.process_index == 0:
        adapted.save_pretrained(folder / "start")
    data = Dataset.from_list(rows(case))
    kind = RoutedTrainer if "routing_embeds" in data.column_names else Trainer
    trainer = kind(adapted, arguments, data_collator=padded, train_dataset=data)
    trainer.entropy = case.entropy
    if pretended == DistributedType.DEEPSPEED:
        settings = trainer.accelerator.state.deepspeed_plugin.deepspeed_config
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # partition all
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if arguments.process_index == 0:
        write(folder, losses, trainer.model_wrapped)


def pretend(arguments: TrainingArguments, distributed_type: str) -> None:
    """Let accelerate do to these CPU processes what it does on accelerators only."""
    assert arguments.device.type == "cpu"
    rank = int(os.environ["RANK"])
    PartialState._shared_state |= {
        "distributed_type": DistributedType(distributed_type),
        "backend": "gloo",
        "num_processes": world_size(),
        "process_index": rank,
        "local_process_index": rank,
    }
    vars(arguments.distributed_state).update(PartialState._shared_state)


def train_by_hand(case: Case, folder: Path) -> None:
    """torch's own DDP without Trainer or accelerate."""
    rank, world = torch.distributed.get_rank(), world_size()
    adapted = model(case, rank).train()
    parallel = DistributedDataParallel(adapted, find_unused_parameters=False)
    optimiser = torch.optim.SGD(
        [p for p in parallel.parameters() if p.requires_grad], LEARNING_RATE
    )
    collator, data, losses = RoutingCollator(padded), rows(case), []
    for step in range(STEPS):
        batch = data[step * GLOBAL_BATCH : (step + 1) * GLOBAL_BATCH]
        tokens = sum(len(row["labels"]) - 2 for row in batch)
        inputs = collator(batch[rank::world])
        loss = parallel(**inputs, num_items_in_batch=tokens).loss * world  # gradients are averaged
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parallel.parameters(), MAX_NORM)
        optimiser.step()
        mean = loss.detach() / world
        torch.distributed.all_reduce(mean)
        losses.append(mean.item())
    if rank == 0:
        adapted.save_pretrained(folder)
        write(folder, losses, parallel)


WAYS: dict[str, Callable[[Case, Path], None]] = {
    "trainer": train_by_trainer,
    "fsdp2": partial(train_by_trainer, pretended=DistributedType.MULTI_GPU),
    "deepspeed": partial(train_by_trainer, pretended=DistributedType.DEEPSPEED),
    "hand": train_by_hand,
}


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def write(folder: Path, losses: list[float], wrapped: nn.Module) -> None:
    gates = [p for name, p in wrapped.named_parameters() if "ilora_gate" in name]
    record = {
        "losses": losses,
        "processes": world_size(),
        "wrapper": [kind.__name__ for kind in type(wrapped).mro()],
        "partitioned_gate": all(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in gates),
    }
    (folder / "run.json").write_text(json.dumps(record))


def train(folder: Path, by: str, cases: list[str]) -> None:
    """What every rank of a launch does."""
    torch.set_num_threads(1)
    if by == "hand":
        torch.distributed.init_process_group("gloo")
    for name in cases:
        (folder / name).mkdir(parents=True, exist_ok=True)
        try:
            WAYS[by](CASES[name], folder / name)
        except RuntimeError as error:  # on all ranks alike, or the next case hangs
            (folder / name / "run.json").write_text(json.dumps({"error": str(error)}))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launch(folder: Path, command: list[str], by: str, cases: list[str]) -> None:
    """One launch, in a process of its own."""
    with (folder / "log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    task = (folder, by, cases)
    elastic = torch.distributed.run.elastic_launch

    def forked(config: Any, entrypoint: Any) -> Callable[..., Any]:
        return lambda *_: elastic(replace(config, start_method="fork"), train)(*task)

    torch.distributed.run.elastic_launch = forked
    launcher, *options = command or [""]
    if launcher == "torchrun":
        torch.distributed.run.main([*options, __file__])
    elif launcher == "accelerate launch":
        parser = accelerate_launch.launch_command_parser()
        accelerate_launch.launch_command(parser.parse_args([*options, __file__]))
    else:
        train(*task)


def main() -> None:
    folder, launches = Path(sys.argv[1]), json.loads(sys.argv[2])
    for name, settings in launches.items():
        (folder / name).mkdir()
        process = multiprocessing.get_context("fork").Process(
            target=launch, args=(folder / name,), kwargs=settings
        )
        process.start()
        process.join()
        (folder / name / "exit").write_text(str(process.exitcode))


if __name__ == "__main__":
    main()
