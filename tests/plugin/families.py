"""Tiny random models of many families, all through the same door: a `Family`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
)
from transformers.pytorch_utils import Conv1D

VOCABULARY, _IMAGE = 60, 59
ROWS, LENGTH = 3, 6
Targets = list[str] | str | None
Inputs = dict[str, Tensor]

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_IMAGES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Family:
    """How to make a model, what to feed it and what to look at."""

    name: str
    """In the support matrix."""
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    """A batch of `ROWS` rows."""
    targets: tuple[Targets, ...] = (None, "all-linear")
    """`target_modules` to test; None where PEFT maps the family to its default."""
    task_type: str | None = None
    outputs: tuple[str, ...] = ("logits",)
    """Fields of the output to look at; each has one row for each row of the input."""
    generates: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)
    """Of every call, for a model that errs without them whether adapted or not."""
    config: dict[str, Any] = field(default_factory=dict)
    """Further fields of the adapter's configuration."""

    def build(self) -> nn.Module:
        """The same model at every call."""
        model = lively(self.make)
        if self.generates:
            model.generation_config.eos_token_id = None
            model.generation_config.pad_token_id = 0
        return model

    def prompt(self) -> Inputs:
        """What to generate from: the inputs without a beginning of the answer."""
        return {k: v for k, v in self.inputs().items() if not k.startswith("decoder_")}

    def look(self, output: Any) -> Tensor:
        """The compared part of an output, [rows, features]."""
        parts = [output] if isinstance(output, Tensor) else [output[k] for k in self.outputs]
        return torch.cat([part.flatten(1) for part in parts], dim=1)


def lively(make: Callable[[], nn.Module]) -> nn.Module:
    """The same model at every call, with weights under which outputs are of order one."""
    torch.manual_seed(0)
    model = make().eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D | nn.Embedding):
            values = torch.randn(module.weight.shape, generator=generator)
            fan_in = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            module.weight.data.copy_(values / fan_in**0.5)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def rows_of(inputs: Inputs, rows: slice | Tensor) -> Inputs:
    """Some rows of a batch."""
    return {name: value[rows] for name, value in inputs.items()}


# -------------------------------------------------------------------- inputs


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def _tokens(length: int = LENGTH, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (ROWS, length), generator=generator)


def _padded(left: bool) -> Inputs:
    """Rows of different lengths."""
    ids, mask = _tokens(), torch.ones(ROWS, LENGTH, dtype=torch.long)
    for row in range(ROWS):
        mask[row, :row] = 0
    if not left:
        mask = mask.flip(1)
    return {"input_ids": ids * mask, "attention_mask": mask}


def left_padded() -> Inputs:
    """As for generation."""
    return _padded(left=True)


def right_padded() -> Inputs:
    """As for encoders."""
    return _padded(left=False)


def unpadded() -> Inputs:
    """For models that take no attention mask."""
    return {"input_ids": _tokens()}


def translation() -> Inputs:
    """Source and the beginning of a target."""
    return {**right_padded(), "decoder_input_ids": _tokens(4, seed=8)}


# -------------------------------------------------------------------- kinds of family


def _decoder(name: str, model_type: str, **options: Any) -> Family:
    targets = options.pop("targets", (None, "all-linear"))
    inputs = options.pop("inputs", left_padded)
    keywords, config = options.pop("keywords", {}), options.pop("config", {})
    sizes = {k: v for k, v in (_SIZES | options).items() if v is not ...}

    def make() -> nn.Module:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))

    return Family(
        name, make, inputs, targets, "CAUSAL_LM", generates=True, keywords=keywords, config=config
    )


def _encoder(name: str, model_type: str, **options: Any) -> Family:
    targets = options.pop("targets", (None, "all-linear"))
    outputs = options.pop("outputs", ("last_hidden_state",))
    sizes = {k: v for k, v in (_SIZES | options).items() if v is not ...}

    def make() -> nn.Module:
        return AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))

    return Family(name, make, right_padded, targets, "FEATURE_EXTRACTION", outputs=outputs)


def _encoder_decoder(name: str, model_type: str, sizes: dict[str, Any], **options: Any) -> Family:
    targets = options.pop("targets", (None, "all-linear"))

    def make() -> nn.Module:
        return AutoModelForSeq2SeqLM.from_config(
            AutoConfig.for_model(model_type, **(sizes | options))
        )

    return Family(name, make, translation, targets, "SEQ_2_SEQ_LM", generates=True)


def _sees(name: str, model_type: str, inputs: Callable[[], Inputs], **sizes: Any) -> Family:
    outputs = sizes.pop("outputs", ("last_hidden_state",))
    targets = sizes.pop("targets", (_QUERY_VALUE, "all-linear"))

    def make() -> nn.Module:
        return AutoModel.from_config(AutoConfig.for_model(model_type, **sizes))

    return Family(name, make, inputs, targets, outputs=outputs)


def _images() -> Inputs:
    return {"pixel_values": _noise(ROWS, 3, 8, 8)}


def _sound() -> Inputs:
    return {"input_values": _noise(ROWS, 400)}


def _spectrogram() -> Inputs:
    features = _noise(ROWS, 8, 32)
    return {"input_features": features, "decoder_input_ids": _tokens(4, seed=8)}


def _captioned() -> Inputs:
    return {**right_padded(), **_images()}


def _whisper() -> nn.Module:
    sizes = {**_ENCODER_DECODER, "num_mel_bins": 8, "begin_suppress_tokens": None}
    sizes |= {"max_source_positions": 16, "max_target_positions": 32, "suppress_tokens": None}
    return AutoModelForSpeechSeq2Seq.from_config(AutoConfig.for_model("whisper", **sizes))


def _clip() -> nn.Module:
    text = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
    config = AutoConfig.for_model(
        "clip", text_config=text, vision_config=_IMAGES, projection_dim=16
    )
    return AutoModel.from_config(config)


def _llava() -> nn.Module:
    text = AutoConfig.for_model("llama", **_SIZES)
    vision = AutoConfig.for_model("clip_vision_model", **_IMAGES)
    sizes = {"image_token_index": _IMAGE, "image_seq_length": 4, "vision_feature_layer": -1}
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, **sizes)
    return AutoModelForImageTextToText.from_config(config)


def _gemma3_vision() -> nn.Module:
    text = AutoConfig.for_model("gemma3_text", head_dim=4, **_SIZES)
    vision = AutoConfig.for_model("siglip_vision_model", vision_use_head=False, **_IMAGES)
    sizes = {"image_token_index": _IMAGE, "mm_tokens_per_image": 4}
    sizes |= {"boi_token_index": 57, "eoi_token_index": 58}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, **sizes)
    model = AutoModelForImageTextToText.from_config(config)
    projector = model.model.multi_modal_projector
    nn.init.normal_(projector.mm_input_projection_weight, std=0.25)  # zeros would hide the image
    return model


def _pictured() -> Inputs:
    """A sentence with one image of four tokens in each row."""
    ids = _tokens().clamp(max=50)
    image = torch.full((ROWS, 4), _IMAGE)
    together = torch.cat([ids[:, :2], image, ids[:, 2:]], dim=1)
    return {"input_ids": together, **_images()}


def _pictured_typed() -> Inputs:
    inputs = _pictured()
    return {**inputs, "token_type_ids": (inputs["input_ids"] == _IMAGE).long()}


def qwen2_vl() -> nn.Module:
    """Its vision tower sees the patches of all rows' images as one sequence."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 0], "rope_theta": 1e4}
    config = AutoConfig.for_model(
        "qwen2_vl",
        text_config=_SIZES | {"rope_parameters": rope, "hidden_size": 16},
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "patch_size": 2,
            "spatial_merge_size": 2,
            "temporal_patch_size": 1,
            "mlp_ratio": 1,
        },
        image_token_id=_IMAGE,
        vision_start_token_id=57,
        vision_end_token_id=58,
        video_token_id=56,
    )
    return AutoModelForImageTextToText.from_config(config)


def packed_images(images: list[int], length: int) -> Inputs:
    """Rows with so many images of four tokens (sixteen patches) each, for `qwen2_vl`."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 50, (len(images), length), generator=generator)
    for row, count in enumerate(images):
        ids[row, 1 : 1 + 4 * count] = _IMAGE
    total = sum(images)
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == _IMAGE).long(),
        "pixel_values": torch.randn(total * 16, 12, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * total),
    }


class Plain(nn.Module):
    """Nothing of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.second = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(x))))


_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
_SWITCH = {
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_experts": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}
_SSM = {"state_size": 4, "time_step_rank": 2, "inputs": left_padded}

_POOLED = ("last_hidden_state", "pooler_output")
_QUERY_VALUE = r".*\.(query|value|q_proj|v_proj)"  # transformers 5 renames the former
FAMILIES = [
    _decoder("Llama", "llama"),
    _decoder("Mistral", "mistral"),
    _decoder("Qwen2", "qwen2"),
    _decoder("Qwen3", "qwen3", head_dim=4),
    _decoder("Gemma", "gemma", head_dim=4),
    _decoder("Gemma 2", "gemma2", head_dim=4),
    _decoder("Gemma 3", "gemma3_text", head_dim=4),
    _decoder("Phi", "phi"),
    _decoder("Phi-3", "phi3", targets=(["qkv_proj"], "all-linear")),
    _decoder("GPT-2", "gpt2", config={"fan_in_fan_out": True}),
    _decoder("GPT-J", "gptj", rotary_dim=4),
    _decoder(
        "GPT-Neo",
        "gpt_neo",
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
    ),
    _decoder("GPT-NeoX", "gpt_neox"),
    _decoder("GPT BigCode", "gpt_bigcode"),
    _decoder("OPT", "opt", ffn_dim=24, word_embed_proj_dim=16),
    _decoder("BLOOM", "bloom"),
    _decoder("Falcon", "falcon", new_decoder_architecture=True),
    _decoder("MPT", "mpt", targets=(["Wqkv"], "all-linear")),
    _decoder("CodeGen", "codegen", rotary_dim=4),
    _decoder("StableLM", "stablelm"),
    _decoder("Cohere", "cohere", targets=(["q_proj", "v_proj"], "all-linear")),
    _decoder("Granite", "granite", targets=(["q_proj", "v_proj"], "all-linear")),
    _decoder("OLMo 2", "olmo2", targets=(["q_proj", "v_proj"], "all-linear")),
    _decoder("StarCoder2", "starcoder2", targets=(["q_proj", "v_proj"], "all-linear")),
    _decoder("SmolLM3", "smollm3", targets=(["q_proj", "v_proj"], "all-linear")),
    _decoder("GLM-4", "glm4", targets=(["q_proj", "v_proj"], "all-linear"), head_dim=4),
    _decoder("Mixtral (attention)", "mixtral", num_local_experts=4),
    _decoder(
        "Qwen3-MoE (attention)",
        "qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        head_dim=4,
        targets=(["q_proj", "v_proj"], "all-linear"),
    ),
    _decoder(
        "gpt-oss (attention)",
        "gpt_oss",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=4,
        targets=(["q_proj", "v_proj"], "all-linear"),
    ),
    _decoder(
        "DeepSeek-V3 (attention)",
        "deepseek_v3",
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        num_key_value_heads=4,
        targets=(["q_b_proj", "kv_b_proj"], r".*self_attn\.\w+_(proj|mqa)"),
    ),
    _decoder("Mamba", "mamba", targets=(["in_proj"],), **_SSM),
    _decoder(
        "Mamba-2",
        "mamba2",
        targets=(["in_proj"],),
        num_heads=4,
        head_dim=8,
        state_size=4,
        n_groups=1,
        num_attention_heads=...,
    ),
    _decoder("RWKV", "rwkv", inputs=unpadded, keywords={"use_cache": False}),
    _decoder(
        "Jamba (hybrid)",
        "jamba",
        num_experts=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=2,
        targets=(["q_proj", "v_proj"],),
    ),
    _encoder_decoder("T5", "t5", _T5),
    _encoder_decoder("mT5", "mt5", _T5),
    _encoder_decoder("BART", "bart", _ENCODER_DECODER),
    _encoder_decoder(
        "Switch Transformers (attention)",
        "switch_transformers",
        _T5,
        targets=(["q", "v"],),
        **_SWITCH,
    ),
    _encoder_decoder(
        "Marian", "marian", _ENCODER_DECODER, targets=(["q_proj", "v_proj"], "all-linear")
    ),
    _encoder("BERT", "bert", outputs=_POOLED),
    _encoder("RoBERTa", "roberta", outputs=_POOLED),
    _encoder("ELECTRA", "electra", embedding_size=16),
    _encoder("DeBERTa-v2", "deberta-v2"),
    _encoder("DistilBERT", "distilbert", targets=(["q_lin", "v_lin"], "all-linear")),
    _encoder(
        "ModernBERT", "modernbert", cls_token_id=1, sep_token_id=2, targets=(["Wqkv"], "all-linear")
    ),
    _sees("ViT", "vit", _images, outputs=_POOLED, **_IMAGES),
    _sees("DINOv2", "dinov2", _images, **_IMAGES),
    _sees(
        "Swin (MLP)",
        "swin",
        _images,
        targets=(r".*\.(intermediate\.dense|output\.dense|fc1|fc2)",),
        image_size=8,
        patch_size=2,
        embed_dim=8,
        depths=[2],
        num_heads=[2],
        window_size=2,
    ),
    Family(
        "CLIP",
        _clip,
        _captioned,
        (["q_proj", "v_proj"], "all-linear"),
        outputs=("text_embeds", "image_embeds"),
    ),
    _sees(
        "Wav2Vec2",
        "wav2vec2",
        _sound,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        conv_dim=(8, 8),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer",
        apply_spec_augment=False,
        layerdrop=0.0,
    ),
    Family(
        "Whisper",
        _whisper,
        _spectrogram,
        (["q_proj", "v_proj"], "all-linear"),
        generates=True,
    ),
    Family(
        "LLaVA (one image for each row)",
        _llava,
        _pictured,
        (r".*language_model.*(q_proj|v_proj)", "all-linear"),
        "CAUSAL_LM",
        generates=True,
    ),
    Family(
        "Gemma 3 with vision (one image for each row)",
        _gemma3_vision,
        _pictured_typed,
        (r".*language_model.*(q_proj|v_proj)", "all-linear"),
        "CAUSAL_LM",
        generates=True,
    ),
    Family("plain nn.Module", Plain, lambda: {"x": _noise(ROWS, 4, 5)}, (["first", "second"],)),
]


def configured(auto: Any, model_type: str, **sizes: Any) -> Callable[[], nn.Module]:
    """How to make one more model that is no `Family`."""
    return lambda: auto.from_config(AutoConfig.for_model(model_type, **sizes))


def family(name: str) -> Family:
    """By its name in the support matrix."""
    return next(known for known in FAMILIES if known.name == name)


SMALL, SMALL_ENCODER_DECODER, SMALL_IMAGES = _SIZES, _ENCODER_DECODER, _IMAGES


def decode_fully(model: Any, prompt: Inputs, z: Tensor, new: int) -> Tensor:
    """Greedy decoding that runs the whole sequence for each new token, without a cache."""
    base = model.get_base_model()
    grows = "decoder_input_ids" if base.config.is_encoder_decoder else "input_ids"
    inputs = dict(prompt)
    if base.config.is_encoder_decoder:
        start = base.generation_config.decoder_start_token_id
        inputs[grows] = torch.full((len(z), 1), start)
    named = inspect.signature(base.forward).parameters
    for _ in range(new):
        if grows == "input_ids" and "attention_mask" in inputs and "position_ids" in named:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(**inputs, routing_embeds=z, use_cache=False).logits
        following = logits[:, -1].argmax(dim=-1, keepdim=True)
        inputs[grows] = torch.cat([inputs[grows], following], dim=1)
        if grows == "input_ids" and "attention_mask" in inputs:
            ones = torch.ones_like(following)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], ones], dim=1)
    return inputs[grows]
