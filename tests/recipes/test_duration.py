"""How long adapters are trained, by which schedule, and when they are measured."""

from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from recipes.experiment import AdaptConfig, AdapterSettings, Experiment
from recipes.llm.duration import measured_steps, steps_of_epoch, training_steps
from recipes.llm.training import training_arguments
from recipes.pipeline import Pipeline


@pytest.mark.parametrize(
    ("epochs", "rows", "batch", "steps"),
    [(5, 128, 128, 5), (5, 129, 128, 10), (0.5, 100, 10, 5), (0.25, 100, 10, 3), (1, 3, 8, 1)],
)
def test_epochs_are_whole_batches_and_one_smaller_batch(epochs, rows, batch, steps):
    settings = AdapterSettings(max_steps=None, epochs=epochs, batch_size=batch)
    assert training_steps(settings, rows) == steps
    assert training_steps(AdapterSettings(max_steps=7), rows) == 7
    assert steps_of_epoch(settings, rows) == -(-rows // batch)


def rates(folder: Path, floor: float, total: int) -> list[float]:
    """The learning rate of each step, for a peak of 1."""
    arguments = training_arguments(
        folder,
        max_steps=total,
        batch_size=1,
        learning_rate=1.0,
        seed=0,
        save_steps=1,
        logging_steps=1,
        learning_rate_floor=floor,
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        arguments.lr_scheduler_type,
        optimizer,
        num_warmup_steps=arguments.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,
    )
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_papers_schedule_goes_from_a_hundredth_up_and_down_to_a_hundredth(tmp_path):
    """60 steps: three of warm-up, at .01, .505 and 1; then half a cosine over 57."""
    found = rates(tmp_path, 0.01, 60)
    assert found[:3] == pytest.approx([0.01, 0.505, 1.0])
    assert found[3] == pytest.approx(0.01 + 0.99 * 0.9992408)  # (1 + cos(pi / 57)) / 2
    assert found[21] == pytest.approx(0.01 + 0.99 * 0.75)  # a third of the way: cos 60 degrees
    assert found[40] == pytest.approx(0.01 + 0.99 * 0.25)  # two thirds
    assert found[59] == pytest.approx(0.01)
    assert sorted(found[2:], reverse=True) == found[2:]


def test_without_a_floor_the_first_step_has_no_rate_and_the_peak_comes_after_the_warm_up(tmp_path):
    found = rates(tmp_path, 0.0, 60)
    assert found[:4] == pytest.approx([0.0, 1 / 3, 2 / 3, 1.0])
    assert found[22] == pytest.approx(0.75) and found[59] > 0


@pytest.mark.parametrize(
    ("at", "every", "last", "steps"),
    [
        ([], None, True, (25,)),
        ([3, 7], None, False, (3, 7)),
        ([3], 1, False, (3, 10, 20)),
        ([], 0.5, True, (5, 10, 15, 20, 25)),
        ([], 0.25, False, (2, 5, 8, 10, 12, 15, 18, 20, 22, 25)),
        ([], 0.01, False, tuple(range(1, 26))),
        ([], 9, False, ()),
    ],
)
def test_measurements_are_made_every_so_many_epochs(at, every, last, steps):
    """Two epochs and a half of ten steps; halves are rounded to even steps."""
    assert measured_steps(at, every, total=25, epoch=10, last=last) == steps


def refused(**adapt) -> str:
    arms = adapt.pop("arms", None)
    with pytest.raises(ValueError, match=r"adapt\.") as found:
        Pipeline.of(Experiment(adapt=AdaptConfig(**adapt), arms=arms))
    return str(found.value)


def test_what_cannot_be_trained_measured_or_chosen_is_refused_with_the_remedy():
    assert "max_steps=600 and adapt.epochs=5 both say how long" in refused(epochs=5)
    assert "neither adapt.max_steps nor adapt.epochs is given" in refused(max_steps=None)
    assert "adapt.epochs=0 must be above 0" in refused(max_steps=None, epochs=0)
    assert "learning_rate_floor=1.0 must be in [0, 1)" in refused(learning_rate_floor=1.0)
    assert "set adapt.keep best" in refused(patience=1, validate_every=1)
    assert "adapt.keep='best' chooses among measured steps" in refused(keep="best")
    assert "trains without the layers below" in refused(
        validate_every=1, frozen_prefix=True, last_layers=1, redraw_candidates=False
    )
    assert "names 'curriculum-restarts', but adapt.curriculum=false" in refused(
        mistakes=["curriculum-restarts"], curriculum=False
    )


def test_an_arm_that_gives_epochs_takes_no_steps_of_the_section_and_the_other_way_round():
    steps = Experiment(arms=[{"method": "lora", "epochs": 2}, {"method": "ilora"}])
    epochs = Experiment(
        adapt=AdaptConfig(max_steps=None, epochs=3), arms=[{"method": "lora", "max_steps": 4}]
    )
    found = [
        (arm.settings["max_steps"], arm.settings["epochs"])
        for experiment in (steps, epochs)
        for arm in Pipeline.of(experiment).arms
        if arm.method.is_adapter
    ]
    assert found == [(None, 2), (600, None), (4, None)]
