"""transformers' and TRL's trainers with a routing column in the dataset."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo.tpo_trainer import DataCollatorForTriplePreference as TripleAnswers
from trl.trainer.dpo_trainer import DataCollatorForPreference as DPOPairs
from trl.trainer.reward_trainer import DataCollatorForPreference as RewardPairs

from peft_ilora import ILoRAConfig
from peft_ilora.collator import RoutingCollator
from peft_ilora.trainer import RoutingColumns

VOCABULARY = 60
WIDTH = 8
ROWS = 24


class RoutedTrainer(RoutingColumns, Trainer):
    pass


class RoutedSeq2SeqTrainer(RoutingColumns, Seq2SeqTrainer):
    pass


class RoutedSFTTrainer(RoutingColumns, SFTTrainer):
    pass


def support(item: str, state: str = "works") -> pytest.MarkDecorator:
    return pytest.mark.support("Trainer and TRL", item, state)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def rows(length: int | None = 6) -> list[dict[str, Any]]:
    """The word that follows depends on the routing alone; lengths differ where none is given."""
    generator = torch.Generator().manual_seed(4)
    made = []
    for i in range(ROWS):
        z = torch.randn(WIDTH, generator=generator)
        word = 3 + int(z[0] > 0)
        ids = [10 + i, *[word] * ((length or 4 + i % 5) - 1)]
        made.append({"input_ids": ids, "labels": ids, "routing_embeds": z.tolist()})
    return made


def padded(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    length = max(len(row["input_ids"]) for row in batch)

    def column(name: str, filler: int) -> Tensor:
        return torch.tensor([r[name] + [filler] * (length - len(r[name])) for r in batch])

    ids = column("input_ids", 0)
    mask = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": column("labels", -100)}


def arguments(folder, kind: type[TrainingArguments] = TrainingArguments, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return kind(**settings | changes)


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def trained(model) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def by_hand(model, data: list[dict[str, Any]], batch: int, steps: int, rate: float) -> list[float]:
    """A plain loop over the rows in order, the mean over a batch's tokens as loss."""
    model.train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate)
    found = []
    for step in range(steps):
        start = step * batch % len(data)
        part = data[start : start + batch]
        z = torch.tensor([row["routing_embeds"] for row in part])
        loss = model(**padded(part), routing_embeds=z).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


def assert_same_training(trainer: Trainer, model, expected, reference) -> None:
    assert losses(trainer) == pytest.approx(expected, rel=1e-4)
    actual = trained(model)
    for name, value in trained(reference).items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)


# ---------------------------------------------------------------- the collator


def test_the_collator_stacks_the_routing_and_leaves_the_rest_to_the_inner_one() -> None:
    data = rows(None)[:3]
    before = copy.deepcopy(data)
    batch = RoutingCollator(padded)(data)
    assert data == before
    assert batch["routing_embeds"].dtype == torch.float32
    assert batch["routing_embeds"].tolist() == [
        pytest.approx(row["routing_embeds"], abs=1e-6) for row in data
    ]
    routing = batch.pop("routing_embeds")
    assert routing.shape == (3, WIDTH)
    assert all(torch.equal(batch[name], value) for name, value in padded(data).items())


@pytest.mark.parametrize(
    "convert",
    [
        list,
        np.array,
        lambda z: np.array(z, dtype=np.float16),
        torch.tensor,
        lambda z: torch.tensor(z, dtype=torch.bfloat16),
        lambda z: [np.float64(value) for value in z],
    ],
)
def test_the_collator_takes_vectors_of_any_kind(convert) -> None:
    values = [[0.5, -1.0, 2.0], [0.25, 4.0, -8.0]]  # exact in every dtype
    data = [{"input_ids": [1, 2], "labels": [1, 2], "routing_embeds": convert(z)} for z in values]
    assert torch.equal(RoutingCollator(padded)(data)["routing_embeds"], torch.tensor(values))


@pytest.mark.parametrize("convert", [int, np.int32, torch.tensor])
def test_the_collator_makes_expert_ids_of_ints(convert) -> None:
    data = [{"input_ids": [1], "labels": [1], "routing_embeds": convert(i)} for i in (2, 0, 1)]
    routing = RoutingCollator(padded)(data)["routing_embeds"]
    assert routing.dtype == torch.int64
    assert routing.tolist() == [2, 0, 1]


def test_the_collator_reads_a_column_of_another_name() -> None:
    data = [{"input_ids": [1], "labels": [1], "user": [1.0, 2.0]}]
    batch = RoutingCollator(padded, key="user")(data)
    assert batch["routing_embeds"].tolist() == [[1.0, 2.0]]
    assert "user" not in batch


@pytest.mark.parametrize("name", ["language modeling", "sequence to sequence", "default"])
def test_the_collator_wraps_those_of_transformers(tokenizer, name) -> None:
    inner = {
        "language modeling": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "sequence to sequence": DataCollatorForSeq2Seq(tokenizer),
        "default": default_data_collator,
    }[name]
    plain = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows()[:3]]
    expected = inner([dict(row) for row in plain])
    batch = RoutingCollator(inner)(rows()[:3])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["labels"], expected["labels"])
    z = torch.tensor([row["routing_embeds"] for row in rows()[:3]])
    assert torch.equal(batch["routing_embeds"], z)


@pytest.mark.slow
def test_the_collator_works_in_a_spawned_worker_of_a_dataloader() -> None:
    made = RoutingCollator(default_data_collator)
    loader = torch.utils.data.DataLoader(
        rows()[:3], 3, collate_fn=made, num_workers=1, multiprocessing_context="spawn"
    )
    (batch,) = loader
    expected = made(rows()[:3])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([[1.0], None], ValueError, "row 1 has no 'routing_embeds'.*remove_unused_columns=False"),
        ([[1.0, 2.0], [1.0]], ValueError, r"of row 1 has shape \(1,\), but row 0 has \(2,\)"),
        ([[1.0], 2], ValueError, r"of row 1 has shape \(\), but row 0 has \(1,\)"),
        ([[1.0], [float("nan")]], ValueError, "of row 1 holds NaN or infinity"),
        ([[1e300], [1.0]], ValueError, "of row 0 holds NaN or infinity"),
        ([["a"], [1.0]], TypeError, "of row 0 is .*'a'.*, which is not numeric"),
        ([[1.0], "user"], TypeError, "of row 1 is 'user', which is not numeric"),
        ([[True], [False]], TypeError, "of row 0 is .*True.*, which is not numeric"),
        ([[[1.0], [1.0, 2.0]]], TypeError, "of row 0 is .*, which is not numeric"),
        ([0.5, 1.5], ValueError, r"of row 0 is 0.5, of shape \(\).*a vector"),
        ([[[1.0]], [[2.0]]], ValueError, r"of row 0 is .*of shape \(1, 1\).*a vector"),
        ([[], []], ValueError, r"of row 0 is .*of shape \(0,\).*a vector"),
    ],
)
def test_the_collator_names_the_row_the_value_and_the_remedy(values, error, message) -> None:
    data = [{"input_ids": [1], "labels": [1], "routing_embeds": value} for value in values]
    with pytest.raises(error, match=message):
        RoutingCollator(padded)(data)


def test_the_collator_says_which_columns_there_are_and_refuses_what_is_no_row() -> None:
    with pytest.raises(ValueError, match=r"only \['input_ids', 'labels'\].*RoutingColumns"):
        RoutingCollator(padded)([{"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match="there are no rows"):
        RoutingCollator(padded)([])
    with pytest.raises(TypeError, match="row 0 is a list"):
        RoutingCollator(padded)([[1]])
    with pytest.raises(TypeError, match="inner=3 must be a data collator"):
        RoutingCollator(3)
    with pytest.raises(TypeError, match="returned a list; RoutingCollator adds"):
        RoutingCollator(list)(rows()[:1])


@support("padding-free batches", "refused")
def test_the_collator_refuses_to_join_rows() -> None:
    with pytest.raises(ValueError, match="made 1 rows of input_ids of 2 rows.*padding_free=False"):
        RoutingCollator(DataCollatorWithFlattening())(rows()[:2])


@support("DPOTrainer, RewardTrainer")
@pytest.mark.parametrize("kind", [DPOPairs, RewardPairs, TripleAnswers])
def test_every_answer_to_a_row_has_its_routing(kind) -> None:
    answers = {"prompt_ids": [3, 4], "chosen_ids": [5], "rejected_ids": [6, 7]}
    if kind is RewardPairs:
        answers = {"chosen_ids": [3, 4, 5], "rejected_ids": [3, 4, 6, 7]}
    answers |= {"reference_ids": [8]} if kind is TripleAnswers else {}
    vectors = [[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]
    pairs = [{**answers, "routing_embeds": vector} for vector in vectors]
    batch = RoutingCollator(kind(pad_token_id=0))(pairs)
    times = len(batch["input_ids"]) // 3
    assert times == (3 if kind is TripleAnswers else 2)
    assert batch["routing_embeds"].tolist() == vectors * times
    cut = RoutingCollator(DPOPairs(pad_token_id=0, max_length=2, truncation_mode="keep_end"))
    if kind is DPOPairs:
        assert cut(pairs)["routing_embeds"].tolist() == vectors * 2


def test_pairs_in_an_order_that_cannot_be_told_are_refused_as_pairs() -> None:
    def side_by_side(features: list[dict[str, Any]]) -> dict[str, Tensor]:
        order = [row[k] for row in features for k in ("chosen_ids", "rejected_ids")]
        return {"input_ids": torch.tensor(order)}

    pairs = [
        {"chosen_ids": [i, 5], "rejected_ids": [i, 6], "routing_embeds": [1.0]} for i in (3, 4)
    ]
    with pytest.raises(ValueError, match="made 4 rows of input_ids of 2 pairs.*TRL.s Data"):
        RoutingCollator(side_by_side)(pairs)


def preferences() -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": f"w{3 + i} w{9 + i}",
                "chosen": f" w{20 + i}",
                "rejected": f" w{30 + i} w7",
                "label": bool(i % 2),
                "completion": f" w{20 + i}",
                "routing_embeds": torch.randn(
                    8, generator=torch.Generator().manual_seed(i)
                ).tolist(),
            }
            for i in range(4)
        ]
    )


PREFERENCE = {
    "DPOTrainer": (DPOTrainer, DPOConfig, ["prompt", "chosen", "rejected"], 8),
    "ORPOTrainer": (ORPOTrainer, ORPOConfig, ["prompt", "chosen", "rejected"], 8),
    "CPOTrainer": (CPOTrainer, CPOConfig, ["prompt", "chosen", "rejected"], 8),
    "KTOTrainer": (KTOTrainer, KTOConfig, ["prompt", "completion", "label"], 4),
}


@pytest.mark.filterwarnings("ignore")  # of TRL's experimental trainers
@pytest.mark.parametrize("name", [pytest.param(name, marks=support(name)) for name in PREFERENCE])
def test_preference_trainers_run_every_answer_under_its_rows_vector(
    make_adapted, tokenizer, tmp_path, name
) -> None:
    trainer, config, columns, rows = PREFERENCE[name]
    routed = type("Routed", (RoutingColumns, trainer), {})
    data = preferences().select_columns([*columns, "routing_embeds"])
    model, seen = make_adapted(), []
    forward = type(model.base_model.routing_state).open_forward

    def spy(state, routing, *args) -> None:
        if routing is not None:
            seen.append(routing.embeds)
        forward(state, routing, *args)

    settings = arguments(tmp_path, config, bf16=False, max_steps=1, max_length=16)
    settings.remove_unused_columns = False
    made = routed(model, args=settings, train_dataset=data, processing_class=tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model.base_model.routing_state), "open_forward", spy)
        made.train()
    vectors = torch.tensor(data["routing_embeds"])
    assert seen
    for given in seen:
        assert len(given) == rows
        assert torch.equal(given, torch.cat([vectors] * (rows // 4)))


# ---------------------------------------------------------------- Trainer


@support("Trainer")
@pytest.mark.parametrize("remove_unused_columns", [True, False])
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_trainer_trains_what_a_loop_by_hand_does(
    make_adapted, tmp_path, scope, remove_unused_columns
) -> None:
    model, reference = make_adapted(gate_scope=scope), make_adapted(gate_scope=scope)
    data = [row | {"title": "unused"} for row in rows(None)]
    kind = RoutedTrainer if remove_unused_columns else Trainer
    data = [{k: v for k, v in row.items() if remove_unused_columns or k != "title"} for row in data]
    trainer = kind(
        model,
        arguments(tmp_path, remove_unused_columns=remove_unused_columns),
        data_collator=RoutingCollator(padded),
        train_dataset=Dataset.from_list(data),
    )
    trainer.train()
    expected = by_hand(reference, rows(None), batch=4, steps=6, rate=0.05)
    assert_same_training(trainer, model, expected, reference)


@support("Trainer")
def test_trainer_learns_what_only_the_routing_tells(make_adapted, tmp_path) -> None:
    model = make_adapted(target_modules=["q_proj", "v_proj", "down_proj", "lm_head"])
    settings = arguments(
        tmp_path, optim="adamw_torch", learning_rate=0.02, max_steps=60, eval_strategy="no"
    )
    data = Dataset.from_list(rows())
    trainer = RoutedTrainer(
        model, settings, data_collator=padded, train_dataset=data, eval_dataset=data
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert before > 3 and after < 0.01
    swapped = data.map(lambda row: {"routing_embeds": [-v for v in row["routing_embeds"]]})
    assert trainer.evaluate(swapped)["eval_loss"] > 0.1


@support("Trainer")
def test_the_mixin_wraps_the_collator_once_and_reads_its_column(make_adapted, tmp_path) -> None:
    class ByUser(RoutingColumns, Trainer):
        routing_column = "user"

    renamed = Dataset.from_list(rows()).rename_column("routing_embeds", "user")
    trainer = ByUser(
        make_adapted(), arguments(tmp_path), data_collator=padded, train_dataset=renamed
    )
    assert (trainer.data_collator.inner, trainer.data_collator.key) == (padded, "user")
    batch = next(iter(trainer.get_train_dataloader()))
    z = torch.tensor([row["routing_embeds"] for row in rows()[:4]])
    assert torch.equal(batch["routing_embeds"], z)
    given = RoutingCollator(padded)
    assert (
        RoutedTrainer(make_adapted(), arguments(tmp_path), data_collator=given).data_collator
        is given
    )


def test_without_mixin_the_default_trainer_drops_the_column_and_the_error_says_so(
    make_adapted, tmp_path
) -> None:
    trainer = Trainer(
        make_adapted(),
        arguments(tmp_path),
        data_collator=RoutingCollator(padded),
        train_dataset=Dataset.from_list(rows()),
    )
    with pytest.raises(ValueError, match="no 'routing_embeds'.*RoutingColumns"):
        trainer.train()


@support("gradient accumulation")
def test_accumulated_batches_train_what_one_large_batch_does(make_adapted, tmp_path) -> None:
    model, reference = make_adapted(), make_adapted()
    trainer = RoutedTrainer(
        model,
        arguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=3
        ),
        data_collator=padded,
        train_dataset=Dataset.from_list(rows(None)),
    )
    trainer.train()
    expected = by_hand(reference, rows(None), batch=8, steps=3, rate=0.05)
    assert_same_training(trainer, model, expected, reference)


@support("gradient checkpointing")
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing_trains_the_same(make_adapted, tmp_path, reentrant) -> None:
    model, reference = make_adapted(), make_adapted()
    kwargs = None if reentrant is None else {"use_reentrant": reentrant}
    trainer = RoutedTrainer(
        model,
        arguments(tmp_path, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs),
        data_collator=padded,
        train_dataset=Dataset.from_list(rows(None)),
    )
    trainer.train()
    assert model.base_model.model.model.layers[0].gradient_checkpointing
    expected = by_hand(reference, rows(None), batch=4, steps=6, rate=0.05)
    assert_same_training(trainer, model, expected, reference)


@support("group_by_length")
def test_rows_that_are_sorted_by_length_keep_their_routing(make_adapted, tmp_path) -> None:
    data = rows(None)
    trainer = RoutedTrainer(
        make_adapted(),
        arguments(tmp_path, train_sampling_strategy="group_by_length"),
        data_collator=padded,
        train_dataset=Dataset.from_list(data),
    )
    routing = {row["input_ids"][0]: row["routing_embeds"] for row in data}
    seen = []
    for batch in trainer.get_train_dataloader():
        seen += batch["input_ids"][:, 0].tolist()
        expected = torch.tensor([routing[i] for i in batch["input_ids"][:, 0].tolist()])
        assert torch.equal(batch["routing_embeds"], expected)
    assert sorted(seen) == sorted(routing) and seen != list(routing)
    trainer.train()
    assert len(losses(trainer)) == 6


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@support("resuming from a checkpoint")
def test_a_resumed_run_ends_where_an_unbroken_one_does(make_adapted, tmp_path) -> None:
    def trainer(model, folder, *callbacks) -> Trainer:
        settings = arguments(
            folder,
            optim="adamw_torch",
            train_sampling_strategy="random",
            save_strategy="steps",
            save_steps=3,
        )
        data = Dataset.from_list(rows(None))
        return RoutedTrainer(
            model, settings, data_collator=padded, train_dataset=data, callbacks=list(callbacks)
        )

    unbroken, broken = make_adapted(lora_dropout=0.2), make_adapted(lora_dropout=0.2)
    trainer(unbroken, tmp_path / "unbroken").train()
    trainer(broken, tmp_path / "broken", StopAt(3)).train()
    halfway = load_file(tmp_path / "broken" / "checkpoint-3" / "adapter_model.safetensors")
    assert any("ilora_gate" in name for name in halfway)
    resumed = make_adapted(lora_dropout=0.2)
    again = trainer(resumed, tmp_path / "broken")
    again.train(resume_from_checkpoint=True)
    assert len(losses(again)) == 6
    actual = trained(resumed)
    for name, value in trained(unbroken).items():
        assert torch.equal(actual[name], value), name


# ---------------------------------------------------------------- Seq2SeqTrainer


@support("Seq2SeqTrainer, predict_with_generate")
def test_predict_with_generate_generates_under_each_rows_routing(
    tokenizer, randomise, tmp_path
) -> None:
    torch.manual_seed(0)
    base = T5ForConditionalGeneration(
        T5Config(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            vocab_size=VOCABULARY,
            decoder_start_token_id=0,
        )
    )
    config = ILoRAConfig(
        routing_dim=WIDTH,
        task_type="SEQ_2_SEQ_LM",
        target_modules=["q", "v", "o", "wo"],
        lora_alpha=128,
    )
    model = randomise(get_peft_model(base, config))
    settings = arguments(
        tmp_path,
        Seq2SeqTrainingArguments,
        predict_with_generate=True,
        generation_max_length=6,
        generation_num_beams=2,
        per_device_eval_batch_size=8,
    )
    data = Dataset.from_list(rows(None))
    trainer = RoutedSeq2SeqTrainer(
        model,
        settings,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=data,
        processing_class=tokenizer,
    )
    trainer.train()
    predicted = trainer.predict(data).predictions
    model.eval()
    alone = [
        model.generate(
            input_ids=torch.tensor([row["input_ids"]]),
            routing_embeds=torch.tensor([row["routing_embeds"]]),
            max_length=6,
            num_beams=2,
        )[0].tolist()
        for row in rows(None)
    ]
    for actual, expected in zip(predicted.tolist(), alone, strict=True):
        assert actual[: len(expected)] == expected
    assert len({tuple(row) for row in alone}) > 3  # rows differ, so the test can fail


# ---------------------------------------------------------------- TRL


def sentences() -> list[dict[str, Any]]:
    return [
        {
            "text": " ".join(f"w{i}" for i in row["input_ids"]),
            "routing_embeds": row["routing_embeds"],
        }
        for row in rows(None)
    ]


def sft(model, tokenizer, folder, data, **changes: Any) -> RoutedSFTTrainer:
    settings = arguments(folder, SFTConfig, max_length=16, bf16=False, **changes)
    return RoutedSFTTrainer(
        model, settings, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )


@support("SFTTrainer")
@pytest.mark.parametrize("scope", ["shared", "per_module"])
def test_sft_trains_what_a_loop_by_hand_does(make_adapted, tokenizer, tmp_path, scope) -> None:
    model, reference = make_adapted(gate_scope=scope), make_adapted(gate_scope=scope)
    trainer = sft(model, tokenizer, tmp_path, sentences())
    trainer.train()
    data = [
        row | {"input_ids": [*row["input_ids"], 2], "labels": [*row["labels"], 2]}
        for row in rows(None)
    ]  # SFTTrainer ends each text
    expected = by_hand(reference, data, batch=4, steps=6, rate=0.05)
    assert_same_training(trainer, model, expected, reference)
    assert trainer.evaluate(Dataset.from_list(sentences()))["eval_loss"] > 0


@support("SFTTrainer")
def test_sft_takes_prompts_and_completions(make_adapted, tokenizer, tmp_path) -> None:
    data = [
        {
            "prompt": " ".join(row["text"].split()[:2]),
            "completion": " " + " ".join(row["text"].split()[2:]),
            "routing_embeds": row["routing_embeds"],
        }
        for row in sentences()
    ]
    trainer = sft(make_adapted(), tokenizer, tmp_path, data)
    batch = next(iter(trainer.get_train_dataloader()))
    z = torch.tensor([row["routing_embeds"] for row in rows(None)[:4]])
    assert torch.equal(batch["routing_embeds"], z)
    assert (batch["labels"][:, :2] == -100).all()
    trainer.train()
    assert len(losses(trainer)) == 6


@support("SFTTrainer, packing", "refused")
@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
@pytest.mark.filterwarnings("ignore:.*[Ff]lash.*", "ignore:.*packing.*")
def test_sft_packing_is_refused(make_adapted, tokenizer, tmp_path, strategy) -> None:
    trainer = sft(
        make_adapted(), tokenizer, tmp_path, sentences(), packing=True, packing_strategy=strategy
    )
    with pytest.raises(ValueError, match="no 'routing_embeds'.*Packing .*has to be off"):
        trainer.train()


@support("padding-free batches", "refused")
def test_sft_without_padding_is_refused(make_adapted, tokenizer, tmp_path) -> None:
    settings = arguments(tmp_path, SFTConfig, max_length=None, padding_free=True)
    trainer = RoutedSFTTrainer(
        make_adapted(),
        settings,
        train_dataset=Dataset.from_list(sentences()),
        processing_class=tokenizer,
    )
    with pytest.raises(ValueError, match="made 1 rows of input_ids of 4 rows.*padding_free=False"):
        trainer.train()


def test_joined_rows_are_refused_by_the_models_own_check_too(make_adapted) -> None:
    model = make_adapted()
    z = torch.tensor([row["routing_embeds"] for row in rows()[:4]])
    joined = torch.tensor([[i for row in rows()[:4] for i in row["input_ids"]]])
    with pytest.raises(ValueError, match="routing_embeds has 4 rows but the model's input has 1"):
        model(input_ids=joined, routing_embeds=z)


# ---------------------------------------------------------------- evaluation harnesses


class Harness:
    """Calls a model as evaluation harnesses do: it knows no keyword of ours."""

    def __init__(self, model) -> None:
        self.model = model

    def loglikelihood(self, context: Tensor, continuation: Tensor) -> Tensor:
        ids = torch.cat([context, continuation], dim=1)
        with torch.no_grad():
            logits = self.model(ids[:, :-1]).logits.log_softmax(dim=-1)
        scores = logits[:, context.shape[1] - 1 :].gather(-1, continuation.unsqueeze(-1))
        return scores.squeeze(-1).sum(dim=-1)

    def generate_until(self, context: Tensor) -> Tensor:
        return self.model.generate(
            input_ids=context,
            attention_mask=torch.ones_like(context),
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )


@support("evaluation harness inside model.routing")
def test_a_harness_that_knows_no_keyword_runs_inside_model_routing(make_adapted, ids, z) -> None:
    model = make_adapted(lora_alpha=256)
    harness, answers = Harness(model), ids.flip(0)[:, :3]
    with model.routing(z):
        scores, texts = harness.loglikelihood(ids, answers), harness.generate_until(ids)
    logits = model(torch.cat([ids, answers], dim=1), routing_embeds=z).logits.log_softmax(dim=-1)
    for row in range(3):
        expected = sum(logits[row, 6 + i, answers[row, i]] for i in range(3))
        torch.testing.assert_close(scores[row], expected)
        alone = model.generate(
            input_ids=ids[row : row + 1],
            routing_embeds=z[row : row + 1],
            max_new_tokens=4,
            do_sample=False,
            pad_token_id=0,
        )[0].tolist()
        assert texts[row].tolist()[: len(alone)] == alone
    with model.routing(-z):
        assert (harness.loglikelihood(ids, answers) - scores).abs().max() > 1e-3
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        harness.loglikelihood(ids, answers)
