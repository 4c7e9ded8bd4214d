"""Several processes train what one process trains: losses and saved adapter.

Two processes on the CPU (gloo), with the configuration files that are shipped for GPUs. What they
run is `distributed_run.py`; its ranks start from different adapters, so one that is not
distributed shows. All launches are made once, by the first test that looks at one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import (
    _or_policy,
    lambda_auto_wrap_policy,
    transformer_auto_wrap_policy,
)
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from peft_ilora import export_lora

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "accelerate"
DEEPSPEED = find_spec("deepspeed") is not None
SCRIPT = HERE / "distributed_run.py"
ONE = "one process"
WRAPPED_GATES = "FSDP2, gates wrapped on their own"
WRAPPERS = {
    ONE: "PeftModelForCausalLM",
    "DDP": "DistributedDataParallel",
    "DDP without accelerate": "DistributedDataParallel",
    "FSDP2": "FSDPModule",
    WRAPPED_GATES: "FSDPModule",
    "DeepSpeed ZeRO-2": "DeepSpeedEngine",
    "DeepSpeed ZeRO-3": "DeepSpeedEngine",
}
PARTITIONED = {"FSDP2", WRAPPED_GATES, "DeepSpeed ZeRO-3"}
LOSSES_PER_MODULE = "entropy, per module"
CASES = [
    "shared",
    "per module",
    "checkpointed",
    "hard",
    "token",
    "prompt",
    "trunk",
    "entropy, shared",
    LOSSES_PER_MODULE,
]


@dataclass(frozen=True)
class Launch:
    command: tuple[str, ...]
    by: str
    cases: tuple[str, ...] = tuple(CASES)


def accelerate(config: str, *options: str) -> tuple[str, ...]:
    path = str(CONFIGS / f"{config}.yaml")
    overrides = ["--num_processes=2", "--mixed_precision=no", "--main_process_port=0"]
    return ("accelerate launch", f"--config_file={path}", *overrides, *options)


LAUNCHES = {
    ONE: Launch((), "trainer"),
    "DDP": Launch(accelerate("ddp"), "trainer"),
    "DDP without accelerate": Launch(
        ("torchrun", "--nproc-per-node=2", "--standalone"),
        "hand",
        ("shared", "per module", "hard"),
    ),
    "FSDP2": Launch(accelerate("fsdp2"), "fsdp2"),
    WRAPPED_GATES: Launch(
        accelerate("fsdp2", "--fsdp_transformer_layer_cls_to_wrap=LlamaDecoderLayer,Gate"),
        "fsdp2",
        (LOSSES_PER_MODULE,),
    ),
    "DeepSpeed ZeRO-2": Launch(accelerate("zero2"), "deepspeed"),
    "DeepSpeed ZeRO-3": Launch(accelerate("zero3"), "deepspeed"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a way to train and a case."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        name: asdict(launch)
        for name, launch in LAUNCHES.items()
        if DEEPSPEED or not name.startswith("DeepSpeed")
    }
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), json.dumps(made)],
        env=inherited | own,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-6000:]

    def launched(name: str, case: str) -> Path:
        assert (folder / name / "exit").read_text() == "0", (folder / name / "log").read_text()
        return folder / name / case

    return launched


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def combinations() -> list[Any]:
    made = []
    for name, launch in LAUNCHES.items():
        marks = [pytest.mark.support("Several devices", name, "works")]
        if name.startswith("DeepSpeed"):
            marks.append(pytest.mark.skipif(not DEEPSPEED, reason="deepspeed is not installed"))
        refused = {LOSSES_PER_MODULE} if name == "FSDP2" else set()
        cases = [case for case in launch.cases if case not in refused]
        made += [pytest.param(name, case, marks=marks) for case in cases if name != ONE]
    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), combinations())
def test_two_processes_train_what_one_does(run, name, case) -> None:
    alone, together = run(ONE, case), run(name, case)
    expected, actual = record(alone), record(together)
    assert "error" not in actual, actual["error"]
    assert (expected["processes"], actual["processes"]) == (1, 2)
    assert WRAPPERS[ONE] in expected["wrapper"] and WRAPPERS[name] in actual["wrapper"]
    if case != "hard":  # which has no parameters
        assert actual["partitioned_gate"] == (name in PARTITIONED)
    assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    before, weights, again = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (alone / "start", alone, together)
    )
    assert weights.keys() == again.keys()
    assert any("ilora_gate" in key for key in weights) == (case != "hard")
    for key, value in weights.items():
        assert (value - before[key]).abs().max() > 1e-5, key  # or equality says nothing
        torch.testing.assert_close(again[key], value, rtol=1e-4, atol=2e-6, msg=key)


@pytest.mark.slow
@pytest.mark.support("Several devices", "FSDP2, routing_losses() of gates per module", "refused")
def test_a_sharded_gate_called_outside_of_the_forward_says_so(run) -> None:
    error = record(run("FSDP2", LOSSES_PER_MODULE))["error"]
    assert "the gate's weights are sharded over devices" in error
    assert "fsdp_transformer_layer_cls_to_wrap" in error


@pytest.fixture
def process_group(tmp_path) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


OUTSIDE = {
    "gate_weights": lambda model, z: model.gate_weights(z),
    "routing_statistics": lambda model, z: model.routing_statistics(),
    "merge_and_unload": lambda model, z: model.merge_and_unload(routing_embeds=z[:1]),
    "export_lora": lambda model, z: export_lora(model, z[:1], "never-written"),
}


@pytest.mark.support("Several devices", "FSDP2, merging and inspecting in place", "refused")
@pytest.mark.parametrize("call", OUTSIDE)
@pytest.mark.parametrize("gate", ["linear", "hard"])
def test_sharded_weights_are_not_read_outside_of_the_forward(
    make_adapted, ids, z, process_group, call, gate
) -> None:
    routing = torch.tensor([2, 0, 1]) if gate == "hard" else z
    model = make_adapted(gate=gate, gate_scope="per_module")
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    model(input_ids=ids, routing_embeds=routing)
    if gate == "hard" and call in ("gate_weights", "routing_statistics"):
        OUTSIDE[call](model, routing)  # nothing is learned, so nothing is sharded
        return
    with pytest.raises(RuntimeError, match="weights are sharded over devices.*in one process"):
        OUTSIDE[call](model, routing)


gates = pytest.mark.parametrize(
    "fields",
    [{}, {"gate_scope": "per_module"}, {"gate": "trunk", "gate_form": "scale_shift"}],
    ids=["shared", "per_module", "trunk"],
)


def checkpointed_ddp(make_adapted, reentrant: bool, **config: Any) -> DistributedDataParallel:
    model = make_adapted(**config).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return DistributedDataParallel(model)


@pytest.mark.support("Several devices", "DDP, checkpointing", "works")
@gates
@pytest.mark.parametrize("reentrant", [True, False])
def test_ddp_under_checkpointing_has_the_gradients_without_either(
    make_adapted, ids, z, process_group, reentrant, fields
) -> None:
    plain = make_adapted(**fields).train()
    plain(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    model = checkpointed_ddp(make_adapted, reentrant, **fields)
    model(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), model.module.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, msg=name)


def trained(module: torch.nn.Module) -> bool:
    """What PEFT's `fsdp_auto_wrap_policy`, Trainer's choice for FSDP1, wraps besides layers."""
    weight = getattr(module, "weight", None)
    return not list(module.children()) and weight is not None and weight.requires_grad


@pytest.mark.support("Several devices", "FSDP1", "works")
@pytest.mark.filterwarnings("ignore:.*`NO_SHARD`:UserWarning")
@gates
def test_fsdp1_has_the_same_loss_and_gradients_and_saves_the_same_file(
    make_adapted, ids, z, process_group, tmp_path, fields
) -> None:
    plain = make_adapted(**fields).train()
    expected = plain(input_ids=ids, labels=ids, routing_embeds=z).loss
    expected.backward()
    plain.save_pretrained(tmp_path / "plain")
    layers = partial(transformer_auto_wrap_policy, transformer_layer_cls={LlamaDecoderLayer})
    leaves = partial(lambda_auto_wrap_policy, lambda_fn=trained)
    model = FullyShardedDataParallel(
        make_adapted(**fields).train(),
        auto_wrap_policy=partial(_or_policy, policies=[leaves, layers]),
        device_id=torch.device("cpu"),
        use_orig_params=False,
    )
    loss = model(input_ids=ids, labels=ids, routing_embeds=z).loss
    loss.backward()
    torch.testing.assert_close(loss, expected)
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.testing.assert_close(model.clip_grad_norm_(1.0), norm)
    model.module.save_pretrained(tmp_path / "fsdp1", state_dict=model.state_dict())
    alone, wrapped = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "fsdp1")
    )
    assert alone.keys() == wrapped.keys()
    assert all(torch.equal(wrapped[key], value) for key, value in alone.items())
