"""The unadapted language model on the text prompt: what it brings before anything is trained."""

from collections.abc import Mapping
from typing import Any

from recipes.about import About
from recipes.experiment import EvaluateConfig, Experiment
from recipes.llm.prompted import UnadaptedModel
from recipes.methods.fitting import check_answers, check_room, longest_evaluated
from recipes.methods.method import Arm, Method
from recipes.methods.settings import positive_int, refuse_unknown
from recipes.run import Run
from recipes.scoring.predictions import Predictions, llm_predictions
from recipes.scoring.rows import EvaluatedRows

HISTORY = "prompt_history"


class ZeroShot(Method):
    """A frozen language model that ranks and generates. Its prompts have no slots."""

    name = "zero-shot"
    summary = "the unadapted language model on the text prompt"
    about = About(
        title="Zero-shot",
        meaning="the unadapted language model on the text prompt, without any vector",
        order=40,
        ranks_by="likelihood",
        colour="#999999",
    )
    reads_language_model = True
    reads_candidates = True

    def configure(self, experiment: Experiment, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The length of the shown history, the one setting, and the precision of `adapt`."""
        refuse_unknown(f"method {self.name}", given, (HISTORY,))
        shown = given.get(HISTORY, experiment.adapt.prompt_history)
        shown = positive_int(f"method {self.name}", HISTORY, shown)
        return {HISTORY: shown, "precision": experiment.adapt.precision}

    def check(self, run: Run, arm: Arm) -> None:
        """Refuse a language model whose tokens or positions do not fit the evaluated rows."""
        check_answers(run)
        shown, split = arm.settings[HISTORY], run.experiment.evaluate.split
        prompts = run.outlined_prompts.prompts(split, shown, user_slot=False, slots=False)
        check_room(run, longest_evaluated(run, prompts.input_ids), shown)

    def inputs(self, run: Run, arm: Arm, seed: int) -> dict[str, str]:
        """The prepared rows, candidates and titles, and the language model."""
        own = {
            "items.parquet": run.prepared.files["items.parquet"],
            "language model": run.llm_content,
        }
        return super().inputs(run, arm, seed) | own

    def predict(
        self, run: Run, arm: Arm, seed: int, rows: EvaluatedRows, config: EvaluateConfig
    ) -> Predictions:
        """Log-probabilities of the candidates, and greedy answers."""
        model = UnadaptedModel(run.llm, run.prompts, prompt_history=arm.settings[HISTORY])
        return llm_predictions(model, arm.name, rows, config)
