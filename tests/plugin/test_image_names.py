"""Images that come under names of a family's own: told from its tokens, or refused."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    FuyuConfig,
    FuyuForCausalLM,
    LlamaConfig,
    PersimmonConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalForCausalLM,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from peft_ilora import ILoRAConfig

from .families import lively
from .test_generating_families import EYES, LLAMA, kosmos2

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers' renamed arguments
IMAGE = 59
TEXT = {name: value for name, value in LLAMA.items() if name != "head_dim"}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def words(tokens: int) -> Tensor:
    """Two rows, of which the first has all the images."""
    ids = torch.full((2, tokens + 3), 7)
    ids[0, 1 : 1 + tokens] = IMAGE
    return ids


def video_llava() -> nn.Module:
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**EYES),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=58,
        image_seq_length=4,
        vision_feature_layer=-1,
    )
    return VideoLlavaForConditionalGeneration(config)


def phi4() -> nn.Module:
    eyes = {**EYES, "num_hidden_layers": 2, "patch_size": 2, "crop_size": 8}
    ears = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_blocks": 1,
        "num_attention_heads": 2,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 8,
        "input_size": 8,
        "audio_token_id": 58,
    }
    eyes["image_token_id"] = IMAGE
    config = Phi4MultimodalConfig(vision_config=eyes, audio_config=ears, **TEXT, **SPECIAL)
    return Phi4MultimodalForCausalLM(config)


def fuyu() -> nn.Module:
    sizes = {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}
    text = PersimmonConfig(**sizes).to_dict()
    config = FuyuConfig(**TEXT, patch_size=2, image_token_id=IMAGE, text_config=text)
    return FuyuForCausalLM(config)


def omni() -> nn.Module:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {**LLAMA, "rope_parameters": rope, "vocab_size": 64}
    ears = {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "d_model": 16}
    ears |= {"encoder_ffn_dim": 16, "n_window": 4, "output_dim": 16, "max_source_positions": 32}
    eyes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    eyes |= {"patch_size": 2, "temporal_patch_size": 1, "out_hidden_size": 16, "window_size": 8}
    thinker: dict[str, Any] = {
        "text_config": text,
        "audio_config": ears,
        "vision_config": eyes | {"fullatt_block_indexes": [0]},
        "audio_token_index": 57,
        "image_token_index": IMAGE,
        "video_token_index": 58,
        "vision_start_token_id": 55,
        "vision_end_token_id": 56,
        "audio_start_token_id": 53,
        "audio_end_token_id": 54,
    }
    talker = {**LLAMA, "embedding_size": 16, "rope_parameters": rope}
    config = Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker, token2wav_config={}, enable_audio_output=False
    )
    model = Qwen2_5OmniForConditionalGeneration(config)
    model.speaker_map, model.talker = {"Chelsie": 0}, SimpleNamespace(codec_pad_token=0)
    return model


def adapt(make: Callable[[], nn.Module], targets: Any) -> PeftModel:
    heads = ["lm_head"] if targets == "all-linear" else None
    config = ILoRAConfig(routing_dim=8, r=2, target_modules=targets, exclude_modules=heads)
    model = get_peft_model(lively(make), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "ilora_gate" in name:
            parameter.data.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("name", ["pixel_values", "pixel_values_images"])
@torch.no_grad()
def test_both_names_of_images_are_read(name, z) -> None:
    model, ids = adapt(video_llava, "all-linear"), words(8)
    images = {name: noise(2, 3, 8, 8)}
    together = model(input_ids=ids, **images, routing_embeds=z[:2]).logits
    alone = model(input_ids=ids[:1], **images, routing_embeds=z[:1]).logits
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def phi4_inputs() -> dict[str, Any]:
    """One image in two crops, which are as many as the rows."""
    crops = {"image_pixel_values": noise(1, 2, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])}
    return {"input_ids": words(13), **crops, "image_attention_mask": torch.ones(1, 2, 4, 4)}


def kosmos2_inputs() -> dict[str, Any]:
    places = (words(6) == IMAGE).long()
    ids = words(6).clamp(max=50)
    return {
        "input_ids": ids,
        "image_embeds_position_mask": places,
        "pixel_values": noise(2, 3, 8, 8),
    }


REFUSED = {
    "Phi-4 (crops)": (phi4, r".*image_embed.*(q_proj|v_proj)", phi4_inputs),
    "Fuyu (patches)": (
        fuyu,
        ["vision_embed_tokens", "dense"],
        lambda: {"input_ids": words(8), "image_patches": noise(2, 4, 12)},
    ),
    "Kosmos-2 (marked by no id)": (kosmos2, "all-linear", kosmos2_inputs),
}


@pytest.mark.support(
    "Model families", "Phi-4 multimodal, Fuyu, Kosmos-2 (uneven images)", "refused"
)
@pytest.mark.parametrize("name", REFUSED)
@torch.no_grad()
def test_images_that_are_as_many_as_rows_and_not_theirs_are_refused(name, z) -> None:
    make, targets, inputs = REFUSED[name]
    model, given = adapt(make, targets), inputs()
    with pytest.raises(ValueError, match="holds images .*one row at a time.*exclude_modules"):
        model(**given, routing_embeds=z[:2])
    own = {k: v[:1] if len(v) == 2 and k != "pixel_values" else v for k, v in given.items()}
    if name.startswith("Fuyu"):
        own["image_patches"] = given["image_patches"]
    model(**own, routing_embeds=z[:1])


@pytest.mark.support("Model families", "Qwen2.5-Omni (uneven images)", "works")
def test_a_model_around_the_one_that_reads_knows_its_images(z) -> None:
    model = adapt(omni, r".*thinker.*(q_proj|v_proj|\.q|\.v)")
    options = {"thinker_max_new_tokens": 3, "thinker_do_sample": False, "generation_mode": "text"}
    options |= {"thinker_eos_token_id": 63, "thinker_pad_token_id": 0}
    images = {"pixel_values": noise(32, 12), "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    ids = words(8)
    together = model.generate(input_ids=ids, **images, routing_embeds=z[:2], **options)
    first = model.generate(input_ids=ids[:1], **images, routing_embeds=z[:1], **options)
    second = model.generate(input_ids=ids[1:], routing_embeds=z[1:2], **options)
    assert torch.equal(together, torch.cat([first, second]))
