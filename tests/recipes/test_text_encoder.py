import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
)

from recipes.arms import comparison
from recipes.checksums import Checksums
from recipes.data.padding import PADDING
from recipes.experiment import Experiment, PrepareConfig, RecommenderConfig, SyntheticConfig
from recipes.pipeline import Pipeline
from recipes.recommenders import text_encoder
from recipes.recommenders.text_encoder import TextEncoder, encode_titles, history_means

from .text_encoders import SHAPE, TITLES, save, tokenizer_of


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT."""
    return save(tmp_path_factory.mktemp("bert"))


def test_an_items_vector_is_the_mean_over_the_tokens_of_its_title(encoder: Path) -> None:
    model, tokenizer = BertModel.from_pretrained(encoder), AutoTokenizer.from_pretrained(encoder)
    found = encode_titles(str(encoder), TITLES)
    assert found.dtype == torch.float32 and found.shape == (len(TITLES), 16)
    for title, vector in zip(TITLES, found, strict=True):
        with torch.no_grad():
            hidden = model.eval()(**tokenizer(title, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(vector, hidden.mean(dim=0), atol=1e-5, rtol=1e-4)
    assert torch.equal(found[1], found[3])


def test_the_same_titles_give_the_same_vectors_whatever_the_batches(
    encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = encode_titles(str(encoder), TITLES)
    assert torch.equal(encode_titles(str(encoder), TITLES), found)
    monkeypatch.setattr(text_encoder, "TITLES_AT_ONCE", 2)
    torch.testing.assert_close(encode_titles(str(encoder), TITLES), found)


def test_a_title_beyond_the_encoders_positions_is_cut(encoder: Path) -> None:
    words = " ".join(["fox"] * 40)
    long, cut = encode_titles(str(encoder), [words, " ".join(["fox"] * 30)])
    torch.testing.assert_close(long, cut)


def test_positions_that_begin_after_paddings_are_fewer(tmp_path: Path) -> None:
    # As RoBERTa, whose tokenizer says here nothing of a greatest length.
    config = RobertaConfig(vocab_size=len(tokenizer_of(TITLES)), pad_token_id=1, **SHAPE)
    RobertaModel(config).save_pretrained(tmp_path)
    tokenizer_of(TITLES).save_pretrained(tmp_path)
    many = " ".join(["fox"] * 40)
    long, cut, shorter = encode_titles(str(tmp_path), [many, "fox " * 28, "fox " * 27])
    torch.testing.assert_close(long, cut)  # with [CLS] and [SEP], 30 tokens of 32 positions
    assert not torch.equal(long, shorter)


def test_a_masked_language_model_serves_without_its_head(encoder: Path, tmp_path: Path) -> None:
    """Its checkpoint has no pooler, which mean pooling does not need."""
    folder = save(tmp_path, BertForMaskedLM)
    found = encode_titles(str(folder), TITLES)
    assert torch.isfinite(found).all()
    assert torch.equal(found, encode_titles(str(folder), TITLES))


def test_a_user_is_the_mean_of_the_visible_history_and_zero_before_it() -> None:
    items = torch.tensor([[1.0, 0.0], [3.0, 2.0], [-1.0, 4.0]])
    histories = np.array([[PADDING, 0, 1], [2, 2, 0], [PADDING, PADDING, PADDING]])
    found = history_means(items, histories)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.0], [-1 / 3, 8 / 3], [0.0, 0.0]]))


# ------------------------------------------------------------------ what is refused


def refusal(name: str) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        encode_titles(name, TITLES)
    return str(refused.value)


def test_an_encoder_that_cannot_be_used_is_refused_in_a_line(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="^recommender.encoder names no model"):
        comparison(Experiment(recommender=RecommenderConfig(name="text")))
    assert refusal(str(tmp_path / "none")).startswith("recommender.encoder=")
    T5Config().save_pretrained(tmp_path / "t5")
    assert "t5 is an encoder-decoder: take an encoder alone" in refusal(str(tmp_path / "t5"))
    folder = save(tmp_path / "short", num_labels=2)
    BertModel(BertConfig(vocab_size=10, **SHAPE)).save_pretrained(folder)
    assert "gives the id" in refusal(str(folder)) and "10 embeddings" in refusal(str(folder))
    BertConfig(vocab_size=10, **(SHAPE | {"num_hidden_layers": 3})).save_pretrained(folder)
    assert "lacks 16 weights of BertModel, such as" in refusal(str(folder))
    weights = save(tmp_path / "pickled") / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    assert refusal(str(weights.parent)).startswith("recommender.encoder=")


def test_vectors_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path)
    model = BertModel.from_pretrained(folder)
    torch.nn.init.constant_(model.embeddings.LayerNorm.weight, torch.nan)
    model.save_pretrained(folder)
    assert "gives NaN or infinity for a title" in refusal(str(folder))


# ------------------------------------------------------------------ as a recommender


def test_a_run_compares_the_encoder_and_fills_slots_from_it(encoder: Path, tmp_path: Path) -> None:
    experiment = Experiment(
        out=str(tmp_path),
        prepare=PrepareConfig(
            protocol="chronological", synthetic=SyntheticConfig(num_users=40), num_candidates=5
        ),
        recommender=RecommenderConfig(name="text", encoder=str(encoder)),
    )
    experiment.adapt.methods = ["text"]
    experiment.evaluate.bootstrap_samples = 100
    experiment.evaluate.ks = [1, 3]
    results = Pipeline.of(experiment).run_all()
    assert "text" in [arm["name"] for arm in results["arms"]]
    run = Pipeline.of(experiment).run
    vectors, data = run.vectors("text"), run.data
    assert vectors.width == run.networks["text"].width == 16
    for name, split in data.splits.items():
        empty = torch.tensor(split.history_lengths == 0)
        assert not vectors.users[name][empty].any() and vectors.users[name][~empty].any()


def test_another_encoder_makes_the_stage_another(encoder: Path, tmp_path: Path) -> None:
    memory = Checksums(tmp_path / "checksums.json")
    folder = shutil.copytree(encoder, tmp_path / "copy")
    inputs = [
        TextEncoder(RecommenderConfig(encoder=str(one))).inputs(memory) for one in (encoder, folder)
    ]
    assert inputs[0] == inputs[1]
    (folder / "note.txt").write_text("another")
    assert TextEncoder(RecommenderConfig(encoder=str(folder))).inputs(memory) != inputs[0]
