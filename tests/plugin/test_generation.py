"""Routing under `generate`: every row that transformers makes follows its own instance."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from peft_ilora import ILoRAConfig

NEW = 5


def one_by_one(model, ids, z, **options) -> torch.Tensor:
    """Each row generated alone: nothing can be mixed up between rows."""
    rows = [
        model.generate(input_ids=ids[i : i + 1], routing_embeds=z[i : i + 1], **options)
        for i in range(len(ids))
    ]
    return torch.cat(rows)


@pytest.mark.support("Adapter lifecycle", "generate (greedy, beams, samples, KV cache)", "works")
@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"num_beams": 2, "use_cache": False},
    ],
    ids=str,
)
def test_a_batch_generates_what_its_rows_generate_alone(
    make_adapted, ids, z, task_type, options
) -> None:
    model = make_adapted(task_type=task_type)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    together = model.generate(input_ids=ids, routing_embeds=z, **settings)
    assert torch.equal(together, one_by_one(model, ids, z, **settings))
    with model.routing(z):
        assert torch.equal(model.generate(input_ids=ids, **settings), together)


def test_routing_decides_what_is_generated(llama, ids, z) -> None:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    ahead = llama.generate(input_ids=ids, routing_embeds=3 * z, **settings)
    assert not torch.equal(ahead, llama.generate(input_ids=ids, routing_embeds=-3 * z, **settings))


def test_greedy_decoding_with_the_cache_equals_full_forwards(llama, ids, z) -> None:
    generated = llama.generate(
        input_ids=ids, routing_embeds=z, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    so_far = ids
    for _ in range(NEW):
        logits = llama(input_ids=so_far, routing_embeds=z).logits[:, -1]
        logits[:, 2] = -torch.inf  # min_new_tokens forbids eos
        so_far = torch.cat([so_far, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(generated, so_far)


@pytest.mark.support("Adapter lifecycle", "generate (greedy, beams, samples, KV cache)", "works")
def test_returned_samples_of_a_row_follow_that_rows_routing(llama, ids, z) -> None:
    settings = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": NEW}
    torch.manual_seed(5)
    sampled = llama.generate(input_ids=ids, routing_embeds=z, **settings)
    torch.manual_seed(5)
    repeated = llama.generate(
        input_ids=ids.repeat_interleave(3, 0),
        routing_embeds=z.repeat_interleave(3, 0),
        do_sample=True,
        max_new_tokens=NEW,
    )
    assert torch.equal(sampled, repeated)


def test_generation_from_inputs_embeds_and_positional_ids(llama, ids, z) -> None:
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
    by_ids = llama.generate(input_ids=ids, routing_embeds=z, **settings)
    embeds = llama.get_input_embeddings()(ids)
    by_embeds = llama.generate(inputs_embeds=embeds, routing_embeds=z, **settings)
    assert torch.equal(by_embeds, by_ids[:, ids.shape[1] :])
    assert torch.equal(llama.generate(ids, routing_embeds=z, **settings), by_ids)
    with pytest.raises(ValueError, match="2 rows but the model's input has 3"):
        llama.generate(inputs_embeds=embeds, routing_embeds=z[:2], **settings)


def test_generate_without_routing_raises_and_leaves_nothing(llama, ids, z) -> None:
    llama.generate(input_ids=ids, routing_embeds=z, max_new_tokens=1)
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        llama.generate(input_ids=ids, max_new_tokens=1)
    with pytest.raises(ValueError, match="routing_embeds is missing"):
        llama(input_ids=ids)


def test_a_typo_in_a_generate_keyword_is_still_refused(llama, ids, z) -> None:
    with pytest.raises(ValueError, match="routing_embedings"):
        llama.generate(input_ids=ids, routing_embeds=z, routing_embedings=z, max_new_tokens=1)


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            vocab_size=60,
            decoder_start_token_id=0,
        )
    )


def bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            vocab_size=60,
            forced_eos_token_id=None,
        )
    )


@pytest.mark.parametrize(("build", "targets"), [(t5, ["q", "v", "wo"]), (bart, ["q_proj", "fc1"])])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 3}], ids=str
)
def test_beams_expand_the_decoder_of_an_encoder_decoder_only(
    build, targets, options, ids, z, randomise
) -> None:
    config = ILoRAConfig(routing_dim=8, task_type="SEQ_2_SEQ_LM", target_modules=targets)
    model = randomise(get_peft_model(build(), config)).eval()
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, **options}
    together = model.generate(input_ids=ids, routing_embeds=z, **settings)
    assert torch.equal(together, one_by_one(model, ids, z, **settings))
