"""Families whose `generate` doubles, drops, delegates or regroups rows in a way of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    CsmConfig,
    CsmForConditionalGeneration,
    DiaConfig,
    DiaForConditionalGeneration,
    EncodecConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    OPTConfig,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    T5Config,
    TimeSeriesTransformerConfig,
    TimeSeriesTransformerForPrediction,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from peft_ilora import ILoRAConfig

from .families import lively

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers' own generation settings
V, IMAGE = 60, 59
LLAMA: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "head_dim": 8,
}
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
EYES: dict[str, Any] = {**SMALL, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
T5: dict[str, Any] = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1}
GREEDY = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
BEAMS = {"num_beams": 3, "num_return_sequences": 2, **GREEDY}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


def words(length: int = 5) -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (3, length), generator=torch.Generator().manual_seed(7))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def captioned(tokens: int) -> dict[str, Tensor]:
    ids = torch.cat([torch.full((3, tokens), IMAGE), words()["input_ids"]], dim=1)
    images = noise(3, 3, 8, 8)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}


def opt_config() -> OPTConfig:
    sizes = {"ffn_dim": 24, "max_position_embeddings": 64, "word_embed_proj_dim": 16}
    return OPTConfig(**SMALL, **sizes, vocab_size=V, pad_token_id=1, bos_token_id=0, eos_token_id=2)


def blip2(text: Any) -> nn.Module:
    former = {**SMALL, "vocab_size": 50, "intermediate_size": 24, "encoder_hidden_size": 16}
    config = Blip2Config(
        vision_config=EYES,
        qformer_config=former,
        text_config=text.to_dict(),
        num_query_tokens=3,
        image_token_index=IMAGE,
    )
    return Blip2ForConditionalGeneration(config)


def blip() -> nn.Module:
    text = {**SMALL, "intermediate_size": 24, "vocab_size": V, "encoder_hidden_size": 16}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    config = BlipConfig(text_config=text, vision_config=EYES, projection_dim=16)
    return BlipForConditionalGeneration(config)


def kosmos2() -> nn.Module:
    text = {"vocab_size": V, "embed_dim": 16, "layers": 1, "ffn_dim": 24, "attention_heads": 2}
    config = Kosmos2Config(text_config=text, vision_config=EYES, latent_query_num=3)
    return Kosmos2ForConditionalGeneration(config)


def pictured() -> dict[str, Tensor]:
    inputs = captioned(3)
    place = (inputs["input_ids"] == IMAGE).long()
    return inputs | {"image_embeds_position_mask": place}


def musicgen(guidance: float | None) -> nn.Module:
    special = {"pad_token_id": V, "bos_token_id": V}  # which no step can give
    decoder = MusicgenDecoderConfig(
        **SMALL, **special, vocab_size=V, ffn_dim=24, num_codebooks=2, max_position_embeddings=64
    )
    codec = EncodecConfig(
        num_filters=2, upsampling_ratios=[4, 2], codebook_size=64, hidden_size=8, codebook_dim=8
    )
    config = MusicgenConfig(text_encoder=T5Config(**T5), audio_encoder=codec, decoder=decoder)
    model = MusicgenForConditionalGeneration(config)
    model.audio_encoder.decode = lambda codes, *_, **__: SimpleNamespace(audio_values=codes[0])
    settings = {"guidance_scale": guidance, "decoder_start_token_id": V, "do_sample": False}
    model.generation_config.update(**special, **settings, max_length=12)
    return model


def dia() -> nn.Module:
    heads = {f"cross_{k}": LLAMA[k] for k in ("num_attention_heads", "num_key_value_heads")}
    special = {"pad_token_id": 37, "eos_token_id": 36, "bos_token_id": 38}
    cross = {**heads, "cross_head_dim": 8, "cross_hidden_size": 16, "num_channels": 3}
    decoder = {**LLAMA, **cross, **special, "vocab_size": 40}
    config = DiaConfig(
        encoder_config=LLAMA, decoder_config=decoder, delay_pattern=[0, 1, 2], **special
    )
    model = DiaForConditionalGeneration(config)
    model.generation_config.update(**special, decoder_start_token_id=38)
    return model


def janus() -> nn.Module:
    eyes = {**SMALL, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    eyes |= {"num_image_tokens": 4, "depth": 1, "mlp_ratio": 1.0}
    codes = {"embed_dim": 8, "num_embeddings": 20, "latent_channels": 8, "num_patches": 2}
    codes |= {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    codes |= {"projection_dim": 16, "num_hidden_layers": 1, "image_token_embed_dim": 16}
    config = JanusConfig(
        text_config={"model_type": "llama", **LLAMA},
        vision_config=eyes,
        vq_config=codes,
        image_token_id=IMAGE,
    )
    model = JanusForConditionalGeneration(config)
    model.generation_config.update(bos_token_id=1, pad_token_id=0)
    model.generation_config.generation_kwargs = {"boi_token_id": 58}
    return model


def csm() -> nn.Module:
    depth = {**LLAMA, "num_codebooks": 3, "backbone_hidden_size": 16, "vocab_size": 40}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    audio = {"audio_token_id": 57, "audio_eos_token_id": 58}
    books = {"codebook_pad_token_id": 38, "codebook_eos_token_id": 39, "num_codebooks": 3}
    sizes = LLAMA | {"vocab_size": 40, "text_vocab_size": V}
    config = CsmConfig(**sizes, **special, **audio, **books, depth_decoder_config=depth)
    return CsmForConditionalGeneration(config)


def speech_t5() -> nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 8, "reduction_factor": 1}
    net = {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "speech_decoder_prenet_dropout": 0.0}
    config = SpeechT5Config(
        vocab_size=V, hidden_size=16, speaker_embedding_dim=4, **heads, **sizes, **net, **layers
    )
    return SpeechT5ForTextToSpeech(config)


@dataclass(frozen=True)
class Speaks:
    """A family, and a way in which it generates."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    targets: Any = "all-linear"
    options: dict[str, Any] = field(default_factory=dict)


MUSIC = r".*text_encoder.*\.(q|v|wo)|.*decoder.*\.(q_proj|v_proj|fc1|fc2)|.*enc_to_dec_proj"
TEXT = r".*language_model.*(q_proj|v_proj|down_proj)"
SAMPLES = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
PICTURE = {"generation_mode": "image", "guidance_scale": 3.0, "max_length": 20}
TALK = {"do_sample": False, "depth_decoder_do_sample": False, "max_new_tokens": 3}
RIGHT = {
    "BLIP-2, beams": Speaks(lambda: blip2(opt_config()), lambda: captioned(3), options=BEAMS),
    "BLIP-2 (T5), beams": Speaks(
        lambda: blip2(T5Config(**T5, num_heads=2, decoder_start_token_id=0)),
        lambda: captioned(3),
        options=BEAMS,
    ),
    "BLIP, beams": Speaks(blip, lambda: {"pixel_values": noise(3, 3, 8, 8)}, options=BEAMS),
    "Kosmos-2, beams": Speaks(kosmos2, pictured, options=BEAMS),
    "MusicGen, guidance": Speaks(
        lambda: musicgen(3.0), words, MUSIC, {"do_sample": False, "max_new_tokens": 5}
    ),
    "MusicGen, guidance, samples": Speaks(
        lambda: musicgen(3.0), words, MUSIC, {**SAMPLES, "max_new_tokens": 5}
    ),
    "MusicGen, no guidance": Speaks(
        lambda: musicgen(None), words, MUSIC, {"do_sample": False, "max_new_tokens": 5}
    ),
    "Dia, guidance": Speaks(
        dia,
        words,
        options={"do_sample": False, "max_new_tokens": 5, "guidance_scale": 3.0, "top_k": 5},
    ),
    "Janus, images": Speaks(janus, words, TEXT, {"do_sample": False, **PICTURE}),
    "Janus, sampled images": Speaks(janus, words, TEXT, {**SAMPLES, **PICTURE}),
    "Janus, text, beams": Speaks(janus, lambda: captioned(4), options=BEAMS),
    "CSM": Speaks(csm, words, ["q_proj", "v_proj", "down_proj"], TALK),
    "SpeechT5": Speaks(
        speech_t5,
        lambda: {**words(), "speaker_embeddings": noise(3, 4)},
        ["q_proj", "v_proj", "intermediate_dense"],
        {"maxlenratio": 1.0, "minlenratio": 1.0},
    ),
}


def adapt(make: Callable[[], nn.Module], targets: Any) -> PeftModel:
    config = ILoRAConfig(routing_dim=8, r=2, target_modules=targets)
    model = get_peft_model(lively(make), config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "ilora_gate" in name:
            parameter.data.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def generated(model: PeftModel, speaks: Speaks, rows: slice, **routing: Tensor) -> Tensor:
    torch.manual_seed(0)  # of a dropout that SpeechT5 never switches off
    inputs = {name: value[rows] for name, value in speaks.inputs().items()}
    with torch.no_grad():
        found = model.generate(**inputs, **speaks.options, **routing)
    return getattr(found, "sequences", found)


def cases(named: dict[str, Speaks], state: str) -> list:
    mark = pytest.mark.support
    return [pytest.param(s, id=n, marks=mark("Model families", n, state)) for n, s in named.items()]


@pytest.mark.parametrize("speaks", cases(RIGHT, "works"))
def test_each_row_is_generated_under_its_own_vector(speaks, z) -> None:
    model = adapt(speaks.make, speaks.targets)
    together = generated(model, speaks, slice(None), routing_embeds=z)
    rows = [slice(i, i + 1) for i in range(3)]
    alone = [generated(model, speaks, row, routing_embeds=z[row]) for row in rows]
    expected = torch.cat(alone).view(together.shape)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-4)
    with model.routing(z):
        assert torch.equal(generated(model, speaks, slice(None)), together)
    other = generated(model, speaks, slice(None), routing_embeds=-z)
    assert other.shape != together.shape or not torch.equal(other, together)


# -------------------------------------------------------------------- refused


def series() -> nn.Module:
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "d_model": 16}
    sizes = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_parallel_samples": 3}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_time_features": 1}
    times = {"prediction_length": 3, "context_length": 6, "lags_sequence": [1, 2]}
    config = TimeSeriesTransformerConfig(**heads, **sizes, **layers, **times)
    return TimeSeriesTransformerForPrediction(config)


def past() -> dict[str, Tensor]:
    known = {"past_values": noise(3, 8), "past_time_features": noise(3, 8, 1)}
    mask = {"past_observed_mask": torch.ones(3, 8)}
    return known | mask | {"future_time_features": noise(3, 3, 1)}


def rag(kind: type[nn.Module]) -> nn.Module:
    question = {"model_type": "dpr", **SMALL, "intermediate_size": 24, "vocab_size": V}
    sizes = {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    writer = {"model_type": "bart", **sizes, "d_model": 16, "vocab_size": V}
    writer |= {"max_position_embeddings": 64, "decoder_start_token_id": 2}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = RagConfig(question_encoder=question, generator=writer, n_docs=3, **special)
    return kind(config=config.from_dict(config.to_dict() | {"decoder_start_token_id": 2}))


REFUSED = {"Time series (parallel samples)": Speaks(series, past, ["q_proj", "fc1"])}


@pytest.mark.parametrize("speaks", cases(REFUSED, "refused"))
def test_rows_of_a_loop_that_is_not_known_are_refused_and_one_at_a_time_works(speaks, z) -> None:
    model = adapt(speaks.make, speaks.targets)
    with pytest.raises(ValueError, match="one row at a time"):
        generated(model, speaks, slice(None), routing_embeds=z)
    with model.disable_adapter():
        plain = generated(model, speaks, slice(1))
    assert generated(model, speaks, slice(1), routing_embeds=z[:1]).shape == plain.shape


@pytest.mark.support("Model families", "RAG", "refused")
@pytest.mark.parametrize("kind", [RagTokenForGeneration, RagSequenceForGeneration])
def test_documents_of_several_questions_are_no_rows(kind, z) -> None:
    model = adapt(lambda: rag(kind), ["q_proj", "v_proj", "fc1"])
    ids = torch.randint(3, 50, (9, 5))
    documents = {"context_input_ids": ids, "context_attention_mask": torch.ones_like(ids)}
    scores = noise(3, 3)
    with pytest.raises(ValueError, match="joins the documents .* one row at a time"):
        model.generate(**documents, doc_scores=scores, routing_embeds=z, max_new_tokens=3)
    first = {name: value[:3] for name, value in documents.items()}
    options = {"doc_scores": scores[:1], "n_docs": 3, "max_new_tokens": 3}
    assert model.generate(**first, **options, routing_embeds=z[:1]).shape[0] == 1


# -------------------------------------------------------------------- long recordings

FRAMES = [90, 62, 40]
"""A window has 30."""


def whisper() -> nn.Module:
    sizes = {f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    special = {"pad_token_id": 50, "bos_token_id": 50, "eos_token_id": 50}
    quiet = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = WhisperConfig(
        **sizes,
        **special,
        **quiet,
        vocab_size=V,
        d_model=16,
        num_mel_bins=8,
        max_source_positions=15,
        max_target_positions=20,
        decoder_start_token_id=51,
    )
    model = WhisperForConditionalGeneration(config)
    times = {"no_timestamps_token_id": 53, "max_initial_timestamp_index": 2}
    settings = {"is_multilingual": False, "prev_sot_token_id": 52, "max_length": None}
    for key, value in {**special, **quiet, **times, **settings}.items():
        setattr(model.generation_config, key, value)
    return model


def transcribed(model: PeftModel, rows: slice, frames: int, **options: Any) -> list[list[int]]:
    mask = torch.ones(3, 90, dtype=torch.long)
    for row, length in enumerate(FRAMES):
        mask[row, length:] = 0
    found = model.generate(
        input_features=noise(3, 8, 90)[rows, :, :frames],
        attention_mask=mask[rows, :frames],
        return_timestamps=True,
        max_new_tokens=6,
        do_sample=False,
        **options,
    )
    return [[int(token) for token in row if token != 50] for row in found]


ONCE = {"temperature": 0.0}
AGAIN = {"temperature": (0.0, 0.0), "logprob_threshold": -3.5, "compression_ratio_threshold": 1.9}
WHISPER = {
    "one pass": ONCE,
    "beams": {**ONCE, "num_beams": 2},
    "conditioned": {**ONCE, "condition_on_prev_tokens": True},
    "fallback": AGAIN,
    "fallback, beams": {**AGAIN, "num_beams": 2},
}


@pytest.mark.support("Model families", "Whisper, recordings of unequal length", "works")
@pytest.mark.parametrize("options", WHISPER.values(), ids=WHISPER)
def test_recordings_that_end_early_leave_the_others_their_vectors(options, z, monkeypatch) -> None:
    model = adapt(whisper, ["q_proj", "v_proj", "fc1"])
    rows = [slice(i, i + 1) for i in range(3)]
    alone = [
        transcribed(model, rows[i], FRAMES[i], routing_embeds=z[rows[i]], **options)[0]
        for i in range(3)
    ]
    sizes, encoder = set(), model.get_base_model().get_encoder()
    handle = encoder.register_forward_hook(lambda m, a, output: sizes.add(len(output[0])))
    together = transcribed(model, slice(None), 90, routing_embeds=z, **options)
    handle.remove()
    assert together == alone
    assert len(sizes) > 1  # some windows held fewer recordings
