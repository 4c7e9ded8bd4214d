"""MoRec: items are projected texts, and everything else is SASRec's."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recipes.arms import comparison
from recipes.artifacts import read_tensors, sha256
from recipes.checksums import Checksums
from recipes.data.padding import PADDING
from recipes.data.tables import PreparedData, Split
from recipes.experiment import (
    Experiment,
    PrepareConfig,
    RecommenderConfig,
    StandInConfig,
    SyntheticConfig,
)
from recipes.pipeline import Pipeline
from recipes.recommenders import fit, morec
from recipes.recommenders.morec import MoRec, ProjectedTexts
from recipes.recommenders.sasrec import SASRec
from recipes.recommenders.text_encoder import encode_titles
from recipes.recommenders.train import build_model, check_config, train_recommender

from .text_encoders import TITLES, save

WIDTH = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RecommenderConfig:
    """With a random BERT."""
    encoder = save(tmp_path_factory.mktemp("bert"))
    return RecommenderConfig(hidden_size=8, dropout=0.0, encoder=str(encoder))


def windows(*rows: tuple[list[int], int]) -> Split:
    histories = np.full((len(rows), WIDTH), PADDING)
    for line, (history, _) in zip(histories, rows, strict=True):
        line[WIDTH - len(history) :] = history
    lengths = np.array([len(history) for history, _ in rows])
    users, nothing = np.arange(len(rows)), np.empty((len(rows), 0), np.int64)
    targets = np.array([target for _, target in rows])
    return Split(users, histories, lengths, targets, nothing, np.ones(len(rows), bool))


def tables() -> PreparedData:
    """Items 1 and 3 have the same title, and item 3 is never met in training."""
    rows = ([0, 2, 4], 1), ([5, 2, 4], 1), ([4, 1, 0], 5)
    train, val = windows(*rows, *rows), windows(([0, 2, 4], 1), ([5, 2], 1))
    return PreparedData(TITLES, {"train": train, "val": val, "test": val})


def built(config: RecommenderConfig) -> MoRec:
    model = build_model(MoRec, config, len(TITLES), WIDTH)
    model.prepare(tables())
    assert isinstance(model, MoRec) and isinstance(model.items, ProjectedTexts)
    return model.eval()


def standardised(config: RecommenderConfig) -> Tensor:
    assert config.encoder is not None
    texts = encode_titles(config.encoder, TITLES)
    centred = texts - texts.mean(dim=0)
    return centred / centred.square().mean().sqrt()


def test_an_items_vector_is_the_projection_of_its_titles(config: RecommenderConfig) -> None:
    model = built(config)
    weight, bias = model.items.projection.weight, model.items.projection.bias
    nn.init.normal_(bias)
    wanted = torch.stack([weight @ text + bias for text in standardised(config)])
    torch.testing.assert_close(model.item_embeddings, wanted)
    torch.testing.assert_close(model.items(torch.arange(len(TITLES))), wanted)
    assert not model.items(torch.tensor([len(TITLES)])).any()  # padding
    assert torch.equal(model.item_embeddings[1], model.item_embeddings[3])


def test_vectors_have_about_unit_length_at_the_start(config: RecommenderConfig) -> None:
    model = build_model(MoRec, replace(config, hidden_size=64), len(TITLES), WIDTH)
    model.prepare(tables())
    squares = model.item_embeddings.detach().square().sum(dim=1)
    assert squares.mean().sqrt().item() == pytest.approx(1, rel=0.25)


def test_titles_that_are_all_alike_give_finite_vectors() -> None:
    items = ProjectedTexts(3, 4, 2)
    items.set_texts(torch.ones(3, 4))
    assert torch.isfinite(items.real).all() and torch.equal(items.real[0], items.real[2])


def test_histories_are_read_by_the_sequence_encoder_of_sasrec(config: RecommenderConfig) -> None:
    model = built(config)
    like = build_model(SASRec, config, len(TITLES), WIDTH).eval()
    state = {name: own for name, own in model.state_dict().items() if not name.startswith("items.")}
    table = torch.cat([model.item_embeddings.detach(), torch.zeros(1, 8)])
    like.load_state_dict({**state, "items.weight": table})
    histories = torch.tensor(tables().split("train").histories)
    histories[0] = PADDING
    torch.testing.assert_close(model(histories), like(histories))
    torch.testing.assert_close(model.states(histories)[1:], like.states(histories)[1:])


@pytest.mark.parametrize("loss", ["cross-entropy", "sampled-softmax", "bce"])
@pytest.mark.parametrize("positions", ["newest", "all"])
def test_every_loss_trains_the_projection_and_leaves_the_texts(
    config: RecommenderConfig, loss: str, positions: str
) -> None:
    negatives = None if loss == "cross-entropy" else 2
    own = replace(config, loss=loss, num_negatives=negatives, positions=positions)
    model = built(own).train()
    before, texts = model.items.projection.weight.clone(), model.items.texts.clone()
    split = tables().split("train")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    torch.manual_seed(0)
    histories, targets = torch.tensor(split.histories), torch.tensor(split.targets)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        losses.append(model.loss(histories, targets))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert not torch.equal(model.items.projection.weight, before)
    assert torch.equal(model.items.texts, texts)


def test_an_item_that_was_never_met_is_scored_by_its_title(
    config: RecommenderConfig, tmp_path: Path
) -> None:
    own = replace(config, max_epochs=20, patience=20, batch_size=4, learning_rate=0.02)
    train_recommender(MoRec, replace(own, min_history=1), tables(), tmp_path, "me")
    items = read_tensors(tmp_path / "items.safetensors")["embeddings"]
    users = read_tensors(tmp_path / "representations.safetensors")["test"]
    scores = users @ items.T
    assert torch.equal(items[1], items[3])
    assert (scores[0].topk(2).indices.sort().values == torch.tensor([1, 3])).all()


RESULTS = ("model", "representations", "items")


def test_an_interrupted_training_resumes_to_the_same_bytes(
    config: RecommenderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = replace(config, max_epochs=3, min_history=1, dropout=0.2, batch_size=2)
    validate, calls = fit.validate, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return validate(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit, "validate", interrupted)
        train_recommender(MoRec, own, tables(), tmp_path / "killed", "me")
    assert (tmp_path / "killed" / "checkpoint").exists()
    for name in ("killed", "whole"):
        train_recommender(MoRec, own, tables(), tmp_path / name, "me")
    for name in RESULTS:
        one, other = (tmp_path / at / f"{name}.safetensors" for at in ("killed", "whole"))
        assert sha256(one) == sha256(other)
    model = build_model(MoRec, own, len(TITLES), WIDTH)  # nothing but the file is needed
    model.load_state_dict(read_tensors(tmp_path / "whole" / "model.safetensors"))
    items = read_tensors(tmp_path / "whole" / "items.safetensors")["embeddings"]
    torch.testing.assert_close(model.item_embeddings, items)


def test_what_cannot_be_used_is_refused_before_anything_is_trained(
    config: RecommenderConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="encoder names no model, which the recommender `morec`"):
        check_config(MoRec, replace(config, encoder=None))
    with pytest.raises(ValueError, match="recommender.initial_std=0.02: morec has no embeddings"):
        check_config(MoRec, replace(config, initial_std=0.02))
    with pytest.raises(ValueError, match="recommender.num_heads=3 does not divide"):
        check_config(MoRec, replace(config, num_heads=3))
    lost = replace(config, encoder=str(tmp_path / "none"))
    experiment = small(tmp_path, lost)
    with pytest.raises(FileNotFoundError, match="recommender.encoder=.*could not be loaded"):
        Pipeline.of(experiment).run_all()
    assert not (tmp_path / "recommenders").exists()


def small(out: Path, config: RecommenderConfig) -> Experiment:
    made = Experiment(
        out=str(out),
        arms=[{"method": "morec"}, {"method": "sasrec"}, {"method": "ilora"}],
        prepare=PrepareConfig(
            protocol="chronological", synthetic=SyntheticConfig(num_users=40), num_candidates=5
        ),
        recommender=replace(config, name="morec", max_epochs=1, num_layers=1),
    )
    made.adapt.max_steps, made.adapt.batch_size, made.adapt.prompt_history = 1, 4, 1
    made.adapt.rank = 4
    made.adapt.stand_in = StandInConfig(
        hidden_size=16, intermediate_size=16, num_layers=1, num_heads=2, max_steps=1, batch_size=4
    )
    made.evaluate.bootstrap_samples, made.evaluate.ks = 100, [1]
    return made


def test_a_run_compares_it_and_fills_slots_and_routes_by_it(
    config: RecommenderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Pipeline.of(small(tmp_path / "run", config)).run_all()
    assert {"morec", "sasrec", "ilora"} <= {arm["name"] for arm in results["arms"]}
    pipeline = Pipeline.of(small(tmp_path / "run", config))
    assert pipeline.run.vectors("morec").width == 8
    monkeypatch.setattr(morec, "encode_titles", lambda *_: pytest.fail("trained again"))
    pipeline.recommender()


def test_another_encoder_makes_the_stage_another(config: RecommenderConfig, tmp_path: Path) -> None:
    assert config.encoder is not None
    memory = Checksums(tmp_path / "checksums.json")
    folder = shutil.copytree(config.encoder, tmp_path / "copy")
    own = replace(config, encoder=str(folder))
    before = MoRec.inputs(own, memory)
    assert before == MoRec.inputs(config, memory)
    (folder / "note.txt").write_text("another")
    assert MoRec.inputs(own, memory) != before
    assert SASRec.inputs(config, memory) == {}
    comparison(small(tmp_path, own))  # an arm of it is known


def test_a_moved_encoder_trains_nothing_anew_and_another_one_only_what_reads_it(
    config: RecommenderConfig, tmp_path: Path
) -> None:
    assert config.encoder is not None
    folder = shutil.copytree(config.encoder, tmp_path / "moved")

    def stages(encoder: str) -> dict[str, str]:
        run = Pipeline.of(small(tmp_path / "run", replace(config, encoder=encoder))).run
        run.prepare()
        return {name: run.network_stage(name).fingerprint for name in ("morec", "sasrec")}

    before = stages(config.encoder)
    assert stages(str(folder)) == before
    (folder / "note.txt").write_text("another")
    after = stages(str(folder))
    assert after["morec"] != before["morec"] and after["sasrec"] == before["sasrec"]


def test_where_an_encoder_lies_is_no_setting_of_a_network_that_reads_none(
    config: RecommenderConfig, tmp_path: Path
) -> None:
    known = {arm.name: arm for arm in comparison(small(tmp_path, config)).arms}
    assert known["morec"].settings["encoder"] == config.encoder
    assert known["sasrec"].settings["encoder"] is None
    given = replace(small(tmp_path, config), arms=[{"method": "sasrec", "encoder": "x"}])
    with pytest.raises(ValueError, match="method sasrec has no setting 'encoder'"):
        comparison(given)
