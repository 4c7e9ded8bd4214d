"""Images, patches and sounds of several rows: each runs under the vector of its own row."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
)

from peft_ilora import ILoRAConfig

from .families import family, lively, qwen2_vl

IMAGE = 59
TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EYES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
Inputs = dict[str, Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def sentences(counts: list[int], tokens: int) -> Inputs:
    """Rows with so many images each, of so many tokens, which other tokens part."""
    length = 3 + (tokens + 1) * max(counts)
    ids = torch.randint(3, 50, (len(counts), length), generator=torch.Generator().manual_seed(7))
    for row, count in enumerate(counts):
        for start in range(1, 1 + count * (tokens + 1), tokens + 1):
            ids[row, start : start + tokens] = IMAGE
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class Sees:
    """A family that reads images among its text."""

    make: Callable[[], nn.Module]
    media: Callable[[int], Inputs]
    """So many images."""
    tokens: int = 4
    """Of an image."""
    each: dict[str, int] = field(default_factory=lambda: {"pixel_values": 1})
    """Leading entries of each of the media's tensors for an image."""
    typed: str | None = None
    """An argument that marks the images' tokens."""

    def inputs(self, counts: list[int]) -> Inputs:
        inputs = {**sentences(counts, self.tokens), **self.media(sum(counts))}
        marks = (inputs["input_ids"] == IMAGE).long()
        return inputs | ({self.typed: marks} if self.typed else {})

    def row(self, inputs: Inputs, counts: list[int], row: int) -> Inputs:
        """One row with its own images."""
        found = {}
        for name, value in inputs.items():
            each = self.each.get(name)
            begin, end = sum(counts[:row]), sum(counts[: row + 1])
            if each is None:
                found[name] = value[row, None]
            elif end > begin:
                found[name] = value[begin * each : end * each]
        return found


def vlm(model_type: str, text: str, eyes: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        config = AutoConfig.for_model(
            model_type,
            text_config=AutoConfig.for_model(text, **TEXT),
            vision_config=AutoConfig.for_model(eyes, **EYES),
            image_token_id=IMAGE,
            image_token_index=IMAGE,
            **sizes,
        )
        return AutoModelForImageTextToText.from_config(config)

    return make


def idefics3() -> nn.Module:
    text = AutoConfig.for_model("llama", **TEXT)
    sizes = {"vision_config": EYES, "image_token_id": IMAGE, "scale_factor": 2}
    config = AutoConfig.for_model("idefics3", text_config=text, **sizes)
    return AutoModelForImageTextToText.from_config(config)


def qwen2_audio() -> nn.Module:
    ears = {
        "model_type": "qwen2_audio_encoder",
        "num_mel_bins": 8,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "d_model": 16,
        "max_source_positions": 8,
    }
    text = AutoConfig.for_model("qwen2", **TEXT).to_dict()
    config = Qwen2AudioConfig(audio_config=ears, text_config=text, audio_token_index=IMAGE)
    return Qwen2AudioForConditionalGeneration(config)


def pictures(count: int) -> Inputs:
    return {"pixel_values": noise(count, 3, 8, 8)}


def patches(count: int) -> Inputs:
    grid = torch.tensor([[1, 4, 4]] * count)
    return {"pixel_values": noise(count * 16, 12), "image_grid_thw": grid}


def tiles(count: int) -> Inputs:
    sizes = torch.tensor([[8, 16]] * count)
    return {"pixel_values": noise(count, 3, 3, 8, 8), "image_sizes": sizes}


def clips(count: int) -> Inputs:
    mask = torch.ones(count, 16, dtype=torch.long)
    return {"input_features": noise(count, 8, 16), "feature_attention_mask": mask}


GRID = {"pixel_values": 16, "image_grid_thw": 1}
LAST = {"vision_feature_layer": -1}
FIXED = {
    "LLaVA": Sees(vlm("llava", "llama", "clip_vision_model", image_seq_length=4, **LAST), pictures),
    "Gemma 3": Sees(
        family("Gemma 3 with vision (one image for each row)").make,
        pictures,
        typed="token_type_ids",
    ),
    "Qwen2-VL": Sees(qwen2_vl, patches, each=GRID, typed="mm_token_type_ids"),
}
"""Every image has as many tokens as any other."""
VARIABLE = {
    "LLaVA-NeXT": Sees(
        vlm("llava_next", "llama", "clip_vision_model", image_grid_pinpoints=[[8, 16]], **LAST),
        tiles,
        tokens=14,
        each={"pixel_values": 1, "image_sizes": 1},
    ),
    "Qwen2-Audio": Sees(
        qwen2_audio, clips, each={"input_features": 1, "feature_attention_mask": 1}
    ),
}
SPREADS = {"one each": [1, 1, 1], "all in one": [2, 0], "uneven": [2, 1], "the other": [0, 2]}


def adapt(make: Callable[[], nn.Module], targets: Any = "all-linear") -> PeftModel:
    config = ILoRAConfig(routing_dim=8, r=2, target_modules=targets, exclude_modules=["lm_head"])
    model = get_peft_model(lively(make), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "ilora_gate" in name:
            parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def answers(model: PeftModel, inputs: Inputs, z: Tensor, beams: int) -> tuple[Tensor, Tensor]:
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": beams}
    with torch.no_grad():
        logits = model(**inputs, routing_embeds=z).logits
        return logits, model.generate(**inputs, routing_embeds=z, **options)


def assert_rows_are_what_they_are_alone(sees, model, counts, z) -> None:
    inputs = sees.inputs(counts)
    logits, words = answers(model, inputs, z[: len(counts)], beams=2)
    for row in range(len(counts)):
        one = sees.row(inputs, counts, row)
        alone, said = answers(model, one, z[row, None], beams=2)
        torch.testing.assert_close(logits[row, None], alone, rtol=1e-4, atol=1e-4)
        assert torch.equal(words[row, None], said)
    moved = answers(model, inputs, -z[: len(counts)], beams=1)[0]
    assert (moved - logits).abs().max() > 1e-2


@pytest.mark.support("Model families", "LLaVA, Gemma 3, Qwen2-VL (uneven images)", "works")
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", FIXED)
def test_images_spread_over_rows_in_any_way_follow_their_rows(name, spread, z) -> None:
    model = adapt(FIXED[name].make)
    assert_rows_are_what_they_are_alone(FIXED[name], model, SPREADS[spread], z)


@pytest.mark.support("Model families", "LLaVA-NeXT, Qwen2-Audio (one a row)", "works")
@pytest.mark.parametrize("name", VARIABLE)
def test_one_image_in_each_row_is_its_rows(name, z) -> None:
    assert_rows_are_what_they_are_alone(VARIABLE[name], adapt(VARIABLE[name].make), [1, 1, 1], z)


@pytest.mark.support(
    "Model families", "LLaVA-NeXT, Qwen2-Audio (uneven images or clips)", "refused"
)
@pytest.mark.parametrize("spread", ["all in one", "uneven"])
@pytest.mark.parametrize("name", VARIABLE)
def test_images_of_unknown_rows_are_refused_and_the_remedies_help(name, spread, z) -> None:
    sees, counts = VARIABLE[name], SPREADS[spread]
    model, inputs = adapt(sees.make), sees.inputs(counts)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="holds images .*one row at a time.*exclude_modules"):
            call(**inputs, routing_embeds=z[: len(counts)])
    model(**sees.row(inputs, counts, 0), routing_embeds=z[:1])
    text = adapt(sees.make, r".*language_model.*(q_proj|v_proj)")
    assert_rows_are_what_they_are_alone(sees, text, [1, 1], z)
    text(**inputs, routing_embeds=z[: len(counts)])


@pytest.mark.support("Model families", "Idefics3 (rows with fewer images than others)", "refused")
def test_padding_images_are_not_taken_for_rows(z) -> None:
    model, ids = adapt(idefics3), sentences([2, 1], tokens=1)
    pictures = noise(2, 2, 3, 8, 8)
    together = model(**sentences([2, 2], tokens=1), pixel_values=pictures, routing_embeds=z[:2])
    alone = model(
        **{k: v[:1] for k, v in sentences([2, 2], tokens=1).items()},
        pixel_values=pictures[:1],
        routing_embeds=z[:1],
    )
    torch.testing.assert_close(alone.logits, together.logits[:1], rtol=1e-4, atol=1e-4)
    pictures[1, 1] = 0  # the model leaves it out, so that there are as many as...
    with pytest.raises(ValueError, match="exclude_modules"):
        model(**ids, pixel_values=pictures, routing_embeds=z[:2])


def test_both_kinds_of_media_with_as_many_items_are_not_confused() -> None:
    from peft_ilora.routing.images import ImageRows, Images

    given = torch.eye(2)
    pictures, films = Images((0, 0), (1,)), Images((0, 1), (1, 4))
    assert ImageRows((pictures, films)).spread(given, 2) is None
    assert ImageRows((films,)).spread(given, 8).argmax(dim=1).tolist() == [0] * 4 + [1] * 4
    assert ImageRows((films,)).spread(given, 6) is None


def test_a_layer_of_the_text_is_told_from_one_that_sees_images() -> None:
    from peft_ilora.routing.images import sees_images

    model = FIXED["LLaVA"].make()
    seen = {name for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    eyes = {name for name in seen if sees_images(model, name)}
    assert eyes and seen - eyes
    assert eyes == {n for n in seen if "vision_tower" in n or "multi_modal_projector" in n}
