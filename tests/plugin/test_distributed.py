"""Several processes train what one process trains: losses and saved adapter.

Two processes on the CPU (gloo), with the configuration files that are shipped for GPUs. What they
run is `distributed_run.py`; its ranks start from different adapters, so one that is not
distributed shows.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "accelerate"
SCRIPT = HERE / "distributed_run.py"
CASES = ["shared", "per_module", "checkpointed"]


def accelerate(config: str) -> list[str]:
    path = str(CONFIGS / f"{config}.yaml")
    overrides = ["--num_processes=2", "--mixed_precision=no", "--main_process_port=0"]
    return ["accelerate.commands.launch", f"--config_file={path}", *overrides]


LAUNCHERS: dict[str, tuple[list[str], str, str]] = {
    # name: launcher, --by, what has to have wrapped the model
    "one process": ([], "trainer", "none"),
    "DDP": (accelerate("ddp"), "trainer", "DistributedDataParallel"),
    "FSDP2": (accelerate("fsdp2"), "fsdp2", "FSDPModule"),
    "torchrun": (
        ["torch.distributed.run", "--nproc-per-node=2", "--standalone"],
        "hand",
        "DistributedDataParallel",
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Launch a way of training once, for all its cases."""
    done: dict[str, Path] = {}

    def launched(name: str) -> Path:
        if name not in done:
            launcher, by, _ = LAUNCHERS[name]
            folder = tmp_path_factory.mktemp("run")
            module = ["-m", *launcher] if launcher else []
            inherited = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
            finished = subprocess.run(
                [sys.executable, *module, str(SCRIPT), str(folder), "--by", by],
                env=inherited | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert finished.returncode == 0, finished.stderr[-4000:]
            done[name] = folder
        return done[name]

    return launched


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("DDP", marks=pytest.mark.support("Several devices", "DDP", "works")),
        pytest.param("FSDP2", marks=pytest.mark.support("Several devices", "FSDP2", "works")),
        pytest.param(
            "torchrun",
            marks=pytest.mark.support("Several devices", "DDP without accelerate", "works"),
        ),
    ],
)
def test_two_processes_train_what_one_does(run, name, case) -> None:
    alone, shared = run("one process") / case, run(name) / case
    expected, actual = record(alone), record(shared)
    assert (actual["processes"], actual["wrapper"]) == (2, LAUNCHERS[name][2])
    assert actual["sharded_gate"] == (name == "FSDP2")
    assert actual["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    before, weights, again = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (alone / "start", alone, shared)
    )
    assert weights.keys() == again.keys()
    assert any("ilora_gate" in key for key in weights)
    for key, value in weights.items():
        assert (value - before[key]).abs().max() > 1e-4, key  # or equality says nothing
        torch.testing.assert_close(again[key], value, rtol=1e-4, atol=1e-6, msg=key)
