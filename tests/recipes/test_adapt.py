import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes.artifacts import read_tensors
from recipes.experiment import (
    AdaptConfig,
    EvaluateConfig,
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.llm.adapted import AdaptedModel, adapted_model
from recipes.llm.adapter_trainer import AdapterTrainer, parameter_groups
from recipes.llm.hybrid_model import HybridModel
from recipes.methods.method import Arm, arm_folder
from recipes.pipeline import Pipeline
from recipes.prompting.collator import TrainingCollator
from recipes.prompting.encoding import encode_answers, encode_prompts
from recipes.prompting.projector import Projector
from recipes.recommenders.representations import Representations

CONFIG = AdaptConfig(
    methods=["lora", "ilora", "lora-user-slot"],
    prompt_history=2,
    max_steps=6,
    batch_size=8,
    save_steps=2,
    logging_steps=1,
    stand_in=StandInConfig(
        hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128, max_steps=2, batch_size=4
    ),
)
WIDTH = 64


def pipeline(folder: Path, config: AdaptConfig = CONFIG, seeds: int = 1, **fields) -> Pipeline:
    """A small world, and a recommender of one epoch."""
    world = PrepareConfig(
        protocol="chronological", num_candidates=5, synthetic=SyntheticConfig(num_users=40)
    )
    return Pipeline.of(
        Experiment(
            **{
                "out": str(folder),
                "seeds": seeds,
                "prepare": world,
                "recommender": RecommenderConfig(hidden_size=WIDTH, max_epochs=1),
                "adapt": config,
                "evaluate": EvaluateConfig(ks=[1]),
                **fields,
            }
        )
    )


def adapt(folder: Path, config: AdaptConfig = CONFIG, seeds: int = 1) -> Pipeline:
    made = pipeline(folder, config, seeds)
    made.adapt()
    return made


def arm_of(pipeline: Pipeline, name: str) -> Arm:
    (found,) = [arm for arm in pipeline.arms if arm.name == name]
    return found


@contextmanager
def loaded(pipeline: Pipeline, name: str) -> Iterator[AdaptedModel]:
    run, arm = pipeline.run, arm_of(pipeline, name)
    plan, vectors = arm.method.plan(run, arm, 0), run.vectors("sasrec")
    with adapted_model(plan, run.llm, run.prompts, vectors, arm_folder(run, arm, 0)) as adapted:
        yield adapted


@pytest.fixture(scope="module")
def batches() -> dict[str, list]:
    """Targets and widths of the batches of each training, as the collator made them."""
    return {}


@pytest.fixture(scope="module")
def made(tmp_path_factory, batches) -> Pipeline:
    """A run whose stages up to `adapt` are finished."""
    made = pipeline(tmp_path_factory.mktemp("run"))
    made.prepare()
    made.recommender()
    with pytest.MonkeyPatch.context() as patch:
        original = AdapterTrainer.compute_loss

        def spying(self, model, inputs, *args, **kwargs):
            seen = (inputs["users"][:, 0].tolist(), bool(self.hybrid_steps[self.state.global_step]))
            batches.setdefault(self.plan.label, []).append(seen)
            return original(self, model, inputs, *args, **kwargs)

        patch.setattr(AdapterTrainer, "compute_loss", spying)
        made.adapt()
    return made


@pytest.fixture(scope="module")
def run(made) -> Path:
    """Its folder."""
    return made.run.folder


def adapter_folder(run: Path, method: str, seed: int) -> Path:
    return run / "adapt" / f"{method}-seed{seed}"


def copied(run: Path, to: Path) -> Path:
    """The run with its stand-in but without adapters."""
    shutil.copytree(run, to)
    for method in CONFIG.methods:
        shutil.rmtree(adapter_folder(to, method, 0))
    return to


def weights(run: Path, method: str = "ilora", seed: int = 0) -> dict[str, torch.Tensor]:
    folder = adapter_folder(run, method, seed)
    adapter = read_tensors(folder / "adapter" / "adapter_model.safetensors")
    return adapter | read_tensors(folder / "projector.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_methods_of_a_seed_see_the_same_batches_and_curriculum(run, batches):
    assert len(batches) == 3
    first, *others = batches.values()
    assert len(first) == 6 and all(other == first for other in others)
    assert {hybrid for _, hybrid in first} == {True, False}


def test_another_seed_has_another_order_and_curriculum(run, tmp_path, monkeypatch):
    seen = {0: [], 1: []}
    original = AdapterTrainer.compute_loss

    def spying(self, model, inputs, *args, **kwargs):
        seen[self.args.seed].append(inputs["users"][:, 0].tolist())
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(AdapterTrainer, "compute_loss", spying)
    adapt(copied(run, tmp_path / "again"), replace(CONFIG, methods=["lora"]), seeds=2)
    assert len(seen[0]) == len(seen[1]) == 6
    assert all(one != other for one, other in zip(seen[0], seen[1], strict=True))


def test_methods_have_equally_many_trained_parameters(run):
    counts = {
        method: json.loads((adapter_folder(run, method, 0) / "parameters.json").read_text())
        for method in CONFIG.methods
    }
    assert counts["lora"] == counts["lora-user-slot"]
    assert counts["ilora"]["adapter"] == counts["lora"]["adapter"]
    assert counts["ilora"]["projector"] == counts["lora"]["projector"] == 2 * (64 * 64 + 64)
    assert counts["ilora"]["gate"] == 4 * 64 and counts["lora"]["gate"] == 0
    assert counts["ilora"]["total"] < 1.01 * counts["lora"]["total"]


def test_a_finished_adapter_is_safetensors_and_json_without_checkpoints(run):
    for method in CONFIG.methods:
        folder = adapter_folder(run, method, 0)
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {
            "adapter/README.md",
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
            "loss.json",
            "normaliser.safetensors",
            "parameters.json",
            "projector.safetensors",
            "record.json",
            "training.json",
        }
    curve = json.loads((adapter_folder(run, "ilora", 0) / "loss.json").read_text())
    assert [entry["step"] for entry in curve] == [1, 2, 3, 4, 5, 6]


def test_training_changes_every_trained_tensor(run, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdapterTrainer, "create_optimizer", no_learning)
        untrained = copied(run, tmp_path / "untrained")
        adapt(untrained)
    before, after = weights(untrained), weights(run)
    assert [name for name in after if torch.equal(after[name], before[name])] == []
    starts = {method: first_matrices(untrained, method) for method in CONFIG.methods}
    assert len(starts["lora"]) == 14  # seven modules in two layers
    for method in CONFIG.methods:  # all arms of a seed start from the same A
        assert_same(starts[method], starts["lora"])


def first_matrices(run: Path, method: str) -> dict[str, torch.Tensor]:
    found = weights(run, method).items()
    return {name.replace(".ilora_A", ".lora_A"): A for name, A in found if "lora_A" in name}


def no_learning(self: AdapterTrainer, model: object = None) -> torch.optim.Optimizer:
    self.optimizer = torch.optim.SGD(self.hybrid_model.projector.parameters(), lr=0.0)
    return self.optimizer


def interrupted(config: AdaptConfig, run: Path, step: int, monkeypatch) -> float:
    """Train until a step; returns the epoch in which that was."""
    epochs = []
    original = AdapterTrainer.training_step

    def failing(self, *args, **kwargs):
        if self.state.global_step == step:
            epochs.append(self.state.epoch)
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainer, "training_step", failing)
        with pytest.raises(KeyboardInterrupt):
            adapt(run, config)
    return epochs[0]


@pytest.mark.parametrize("failing_step", [3, 5])
def test_an_interrupted_run_resumes_to_the_same_result(run, tmp_path, monkeypatch, failing_step):
    again = copied(run, tmp_path / "again")
    interrupted(replace(CONFIG, methods=["ilora"]), again, failing_step, monkeypatch)
    saved = [
        path.name for path in adapter_folder(again, "ilora", 0).glob(".unfinished/*/checkpoints/*")
    ]
    assert saved == [f"checkpoint-{failing_step - 1}"]
    pickles = {path.name for path in again.rglob("*") if path.suffix in (".bin", ".pt", ".pth")}
    assert pickles <= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    adapt(again, replace(CONFIG, methods=["ilora"]))
    assert_same(weights(again), weights(run))
    loss = "loss.json"
    folders = adapter_folder(again, "ilora", 0), adapter_folder(run, "ilora", 0)
    assert (folders[0] / loss).read_text() == (folders[1] / loss).read_text()


def test_a_run_interrupted_in_its_second_epoch_resumes_to_the_same_result(
    run, tmp_path, monkeypatch
):
    config = replace(CONFIG, methods=["ilora"], min_history=10)
    whole, again = copied(run, tmp_path / "whole"), copied(run, tmp_path / "again")
    adapt(whole, config)
    epoch = interrupted(config, again, 5, monkeypatch)
    assert 1 < epoch < 2
    adapt(again, config)
    assert_same(weights(again), weights(whole))


def test_a_run_interrupted_after_its_last_step_takes_no_further_one(run, tmp_path, monkeypatch):
    again = copied(run, tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr("recipes.llm.train_adapter._save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            adapt(again, replace(CONFIG, methods=["lora"]))
    adapt(again, replace(CONFIG, methods=["lora"]))
    assert_same(weights(again, "lora"), weights(run, "lora"))


def interrupt(*args: object, **kwargs: object) -> None:
    raise KeyboardInterrupt


def test_another_method_or_seed_leaves_finished_adapters_alone(run, tmp_path):
    again = copied(run, tmp_path / "again")
    adapt(again, replace(CONFIG, methods=["lora"]))
    record = adapter_folder(again, "lora", 0) / "record.json"
    before = record.stat().st_mtime_ns
    adapt(again, replace(CONFIG, methods=["lora", "ilora"]), seeds=2)
    assert record.stat().st_mtime_ns == before
    assert_same(weights(again, "ilora"), weights(run, "ilora"))
    assert not torch.equal(
        weights(again, "lora", 1)["first.weight"], weights(again, "lora", 0)["first.weight"]
    )


def test_micro_batches_add_up_to_the_same_step(run, tmp_path):
    runs = [copied(run, tmp_path / name) for name in ("whole", "halves")]
    for folder, steps in zip(runs, (1, 2), strict=True):
        changes = {"methods": ["lora"], "lora_dropout": 0.0, "gradient_accumulation_steps": steps}
        adapt(folder, replace(CONFIG, **changes))
    whole, halves = (weights(folder, "lora") for folder in runs)
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, halves[name], atol=1e-4, rtol=1e-3)


def test_bf16_trains_with_float32_adapters(run, tmp_path):
    again = copied(run, tmp_path / "again")
    half = replace(CONFIG, methods=["ilora"], precision="bf16", max_steps=2)
    made = adapt(again, half)
    assert {tensor.dtype for tensor in weights(again).values()} == {torch.float32}
    with loaded(made, "ilora") as adapted:
        inputs = adapted.prompt_inputs("test", [0, 1])
    assert inputs.inputs_embeds.dtype == torch.bfloat16


def test_an_adapter_that_replaces_the_embeddings_can_be_loaded(run, tmp_path):
    again = copied(run, tmp_path / "again")
    arms = [{"method": "lora", "name": "tokens", "trainable_token_indices": [1, 2], "max_steps": 2}]
    made = pipeline(again, arms=arms)
    made.adapt()
    with loaded(made, "tokens") as adapted:
        assert adapted.prompt_inputs("test", [0]).inputs_embeds.shape[-1] == 64


# ------------------------------------------------------------------ the trained model


@pytest.fixture(scope="module", params=CONFIG.methods)
def adapted(run, request) -> Iterator[AdaptedModel]:
    with loaded(pipeline(run), request.param) as adapted:  # a language model of its own
        yield adapted


def routing(adapted: AdaptedModel, inputs) -> dict[str, torch.Tensor]:
    return {} if inputs.routing_embeds is None else {"routing_embeds": inputs.routing_embeds}


ROWS = [1, 7, 8]


def test_prompt_inputs_are_padded_on_the_left(adapted):
    inputs = adapted.prompt_inputs("test", [0, 1, 2, 3])
    mask = inputs.attention_mask
    assert inputs.inputs_embeds.shape == (*mask.shape, 64)
    assert mask[:, -1].all() and not mask.all()
    assert (mask.diff(dim=1) >= 0).all()


def test_prompt_lengths_leave_padding_out(adapted):
    inputs = adapted.prompt_inputs("test", [0, 1, 2, 3])
    lengths = adapted.prompt_lengths("test", [0, 1, 2, 3])
    assert lengths.tolist() == inputs.attention_mask.sum(dim=1).tolist()
    assert len(set(lengths.tolist())) > 1


def test_rows_do_not_depend_on_their_batch(adapted):
    inputs = adapted.prompt_inputs("test", ROWS)
    with torch.no_grad():
        together = adapted.model(
            inputs_embeds=inputs.inputs_embeds,
            attention_mask=inputs.attention_mask,
            **routing(adapted, inputs),
        ).logits[:, -1]
        for line, row in enumerate(ROWS):
            alone = adapted.prompt_inputs("test", [row])
            logits = adapted.model(
                inputs_embeds=alone.inputs_embeds,
                attention_mask=alone.attention_mask,
                **routing(adapted, alone),
            ).logits[0, -1]
            torch.testing.assert_close(together[line], logits, atol=1e-4, rtol=1e-4)


def test_it_generates_from_its_prompts(adapted):
    inputs = adapted.prompt_inputs("val", ROWS)
    output = adapted.model.generate(
        inputs_embeds=inputs.inputs_embeds,
        attention_mask=inputs.attention_mask,
        max_new_tokens=3,
        do_sample=False,
        **routing(adapted, inputs),
    )
    assert output.shape[0] == 3 and output.shape[1] <= 3


def test_prompts_of_a_trained_split_are_not_tokenised_again(run, tmp_path, monkeypatch):
    again = shutil.copytree(run, tmp_path / "again")
    with loaded(pipeline(again), "ilora") as adapted, loaded(pipeline(again), "ilora") as without:
        monkeypatch.setattr(type(adapted.tokenizer), "__call__", interrupt)
        assert adapted.prompt_inputs("train", ROWS).inputs_embeds.shape[0] == len(ROWS)
        shutil.rmtree(again / "tokens")
        with pytest.raises(KeyboardInterrupt):
            without.prompt_inputs("train", ROWS)


def test_only_ilora_is_routed(made):
    users = made.run.vectors("sasrec").users["test"][ROWS]
    assert users.shape == (3, WIDTH)
    with loaded(made, "ilora") as ilora:
        assert torch.equal(users, ilora.prompt_inputs("test", ROWS).routing_embeds)
        gates = ilora.gate_weights("test", ROWS)
    assert gates is not None and gates.shape == (3, 4)
    torch.testing.assert_close(gates.sum(dim=1), torch.ones(3))
    with loaded(made, "lora") as lora:
        assert lora.prompt_inputs("test", ROWS).routing_embeds is None
        assert lora.gate_weights("test", ROWS) is None


def raw_users(made: Pipeline) -> dict[str, torch.Tensor]:
    return Representations.load(made.run.network_folder("sasrec")).users


def test_user_representations_are_standardised_on_the_training_split(made):
    with loaded(made, "ilora") as adapted:
        z = adapted.prompt_inputs("train", range(30)).routing_embeds
    raw = raw_users(made)["train"]
    seen = torch.tensor(made.run.data.split("train").history_lengths > 0)
    known = raw[seen]
    wanted = (raw - known.mean(dim=0)) / known.std(dim=0, correction=0) * seen[:, None]
    torch.testing.assert_close(z, wanted[:30], atol=1e-5, rtol=1e-4)


def test_the_user_slot_holds_the_projected_user(made):
    with loaded(made, "lora") as plain:
        length = plain.prompt_inputs("test", [5]).inputs_embeds.shape[1]
    users = raw_users(made)
    known = users["train"][torch.tensor(made.run.data.split("train").history_lengths > 0)]
    z = (users["test"][5] - known.mean(0)) / known.std(0, correction=0)
    with loaded(made, "lora-user-slot") as control:
        one = control.prompt_inputs("test", [5]).inputs_embeds
        assert one.shape[1] == length + 1
        cue = len(control.tokenizer("Next:", add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            torch.testing.assert_close(one[0, -cue - 1], control.hybrid.projector(z))


def test_answers_are_the_titles(adapted, made):
    titles = made.run.data.titles
    assert len(adapted.answer_ids) == len(titles)
    for ids, title in zip(adapted.answer_ids, titles, strict=True):
        assert ids[-1] == adapted.tokenizer.eos_token_id
        assert adapted.tokenizer.decode(ids[:-1]).strip() == title


# ------------------------------------------------------------------ what is trained, and how


def test_a_text_only_batch_gives_the_projector_no_gradient_at_all(adapted):
    routed_by = adapted.hybrid.routed_by
    model = HybridModel(adapted.model, Projector(WIDTH, 64), torch.randn(40, WIDTH), routed_by)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "slot_items": torch.tensor([[-1, 3, -1, -1]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.int64),
        "labels": torch.tensor([[8]]),
        "users": torch.randn(1, WIDTH),
    }
    adapters = [p for n, p in model.named_parameters() if "lora_" in n]
    for parameter in adapters:
        parameter.requires_grad_(True)
    model(**batch, hybrid=False)["loss"].backward()
    assert all(parameter.grad is None for parameter in model.projector.parameters())
    model(**batch, hybrid=True)["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.projector.parameters())
    for parameter in adapters:
        parameter.requires_grad_(False).grad = None


@torch.no_grad()
def test_a_user_slot_is_filled_in_every_batch_as_a_gate_sees_the_user_in_every_batch(adapted):
    items, users = torch.randn(40, WIDTH), torch.randn(2, WIDTH)
    model = HybridModel(adapted.model, Projector(WIDTH, 64), items, None)
    ids, slots = torch.tensor([[5, 6, 7, 8]] * 2), torch.tensor([[3, -1, -2, -1], [-1, -2, 3, -1]])
    text, hybrid = (model.embed(ids, slots, users, hybrid=hybrid) for hybrid in (False, True))
    plain = model.llm.get_input_embeddings()(ids)
    at_user, at_item = slots == -2, slots == 3
    torch.testing.assert_close(text[at_user], model.projector(users))
    assert torch.equal(text[~at_user], plain[~at_user])
    torch.testing.assert_close(hybrid[at_item], model.projector(items[3]).expand(2, -1))
    torch.testing.assert_close(hybrid[at_user], text[at_user])


def test_each_sample_is_routed_by_its_own_user(made):
    with loaded(made, "ilora") as adapted:
        assert_routed_one_by_one(adapted.hybrid)


def assert_routed_one_by_one(model: HybridModel) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "ilora_gate" in name:
                parameter.normal_()
        batch = {
            "input_ids": torch.randint(5, 50, (3, 6)),
            "slot_items": torch.tensor([[-1, 3, -1, -1, -1, -1]] * 3),
            "attention_mask": torch.ones(3, 6, dtype=torch.int64),
            "labels": torch.randint(5, 50, (3, 2)),
            "users": torch.randn(3, WIDTH),
        }
        together = model(**batch, hybrid=True)["loss"]
        alone = [
            model(**{name: tensor[i : i + 1] for name, tensor in batch.items()}, hybrid=True)[
                "loss"
            ]
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.stack(alone).mean())


def test_parameter_groups_have_their_own_rates_and_decay(run):
    config = replace(CONFIG, learning_rate=0.1, weight_decay=0.01, gate_learning_rate_scale=0.5)
    other = pipeline(run, config)
    plan = arm_of(other, "ilora").method.plan(other.run, arm_of(other, "ilora"), 0)
    with loaded(pipeline(run), "ilora") as adapted:
        model = adapted.hybrid.requires_grad_(True)
        model.llm.get_base_model().requires_grad_(False)
        groups = {
            (group["lr"], group["weight_decay"]): len(group["params"])
            for group in parameter_groups(model, plan)
        }
    assert groups[0.1, 0.01] == 4  # the projector
    assert groups[0.05, 0.01] == 1  # the gate


# ------------------------------------------------------------------ user errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 6}, "adapt.rank=6 is not divisible by adapt.num_experts=4"),
        ({"prompt_history": 0}, "adapt.prompt_history=0 must be at least 1"),
        ({"max_steps": 0}, "adapt.max_steps=0 must be at least 1"),
        ({"gradient_accumulation_steps": 3}, "adapt.batch_size=8 counts the prompts"),
        ({"save_steps": 0}, "adapt.save_steps=0 must be at least 1"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        adapt(tmp_path, replace(CONFIG, **changes))
    assert list(tmp_path.iterdir()) == []


def test_no_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"seeds=0 must be in \[1, "):
        pipeline(tmp_path, seeds=0)


def test_a_missing_stage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `python -m recipes prepare` first"):
        adapt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_untrained_adapter_is_named(made):
    arm = arm_of(made, "lora")
    with pytest.raises(FileNotFoundError, match=r"lora-seed9.*`python -m recipes adapt`"):
        arm.method.inputs(made.run, arm, 9)


def test_a_min_history_that_leaves_nothing_is_refused(run, tmp_path):
    again = copied(run, tmp_path / "again")
    with pytest.raises(ValueError, match=r"adapt.min_history=99 leaves no row"):
        adapt(again, replace(CONFIG, min_history=99))


def test_prompts_longer_than_the_model_are_refused(run, tmp_path):
    again = copied(run, tmp_path / "again")
    long = replace(CONFIG, prompt_history=10, llm=str(run / "adapt" / "stand-in"))
    config = json.loads((run / "adapt" / "stand-in" / "config.json").read_text())
    assert config["max_position_embeddings"] > 40
    short = tmp_path / "short"
    shutil.copytree(run / "adapt" / "stand-in", short)
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    with pytest.raises(ValueError, match=r"has 40 positions: lower adapt.prompt_history=10"):
        adapt(again, replace(long, llm=str(short)))


def test_stages_made_anew_make_an_adapter_stale(made, tmp_path):
    again = shutil.copytree(made.run.folder, tmp_path / "again")
    world = replace(made.run.experiment.prepare, candidate_seed=5)
    pipeline(again, prepare=world).prepare()
    with pytest.raises(
        ValueError, match=r"made with candidate_seed=5 \(now 1234\).*prepare` again"
    ):
        adapt(again)
    other = pipeline(again, prepare=world)  # the recommender does not read candidates
    with pytest.raises(ValueError, match=r"another candidates.parquet.*recipes adapt` again"):
        arm_of(other, "lora").method.inputs(other.run, arm_of(other, "lora"), 0)
    pipeline(again, prepare=replace(world, train_share=0.5)).prepare()
    half = pipeline(again, prepare=replace(world, train_share=0.5))
    with pytest.raises(ValueError, match=r"another examples.parquet.*recipes recommender` again"):
        half.adapt()


def test_the_record_holds_the_whole_configuration(made, run):
    for name in CONFIG.methods:
        record = json.loads((adapter_folder(run, name, 0) / "record.json").read_text())
        settings: dict[str, Any] = {**arm_of(made, name).settings}
        shared = {"precision": "fp32", "chat_template": "auto", "logging_steps": 1}
        assert record["config"] == {**settings, **shared, "method": name, "seed": 0}
        assert record["config"]["target_modules"] == CONFIG.target_modules
    config = json.loads((run / "adapt" / "stand-in" / "record.json").read_text())["config"]
    assert config["hidden_size"] == 64 and config["num_candidates"] == 5


def test_the_collator_hands_out_the_users_of_its_rows(made):
    data = made.run.data
    split = data.split("train")
    rows = np.flatnonzero(split.history_lengths >= CONFIG.min_history)
    tokenizer = made.run.llm.tokenizer
    users = torch.arange(len(split), dtype=torch.float32)[:, None]
    collator = TrainingCollator(
        encode_prompts(tokenizer, data.titles, split.histories[:, -2:], split.candidates),
        encode_answers(tokenizer, data.titles),
        rows,
        split.targets[rows],
        0,
        users,
    )
    assert collator([4, 2])["users"].flatten().tolist() == [rows[4], rows[2]]
