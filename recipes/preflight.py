"""Before the first long stage: does every arm's language model fit the data and its settings?"""

from collections.abc import Sequence

from recipes.evaluation.parts import is_finished
from recipes.llm.frozen_prefix import check_frozen_prefix
from recipes.llm.user_prefix import check_prefix_is_read
from recipes.methods.adapter import AdapterMethod
from recipes.methods.method import Arm, trained_alone
from recipes.run import Run
from recipes.scoring.probe import check_beams, check_language_model, check_wrapped


def preflight(run: Run, arms: Sequence[Arm], *, weights: bool = True) -> None:
    """Refuse what would be found out after hours of training.

    Files of vectors and encoders are opened, and their widths read.
    Arms that are trained and evaluated already are not looked at, so a finished run loads no
    language model. A language model of the user's is loaded once and tried on a few tokens.

    Args:
        run: The run, whose stage `prepare` is finished.
        arms: The arms of its experiment.
        weights: False leaves the language model's weights alone, and looks at everything else.

    Raises:
        FileNotFoundError: There is no such language model.
        ValueError: Something does not fit; the message names the field and the remedy.
    """
    if run.is_checked:
        return
    for network in run.networks.values():
        network.open()
    unfinished = [arm for arm in arms if not is_finished(run, arm)]
    for arm in unfinished:
        arm.method.check(run, arm)
    if not weights:
        return
    unfinished = [arm for arm in unfinished if arm.method.reads_language_model]
    if unfinished and not run.has_stand_in:
        check_language_model(run.llm.base, run.llm_path)
        if run.experiment.evaluate.num_beams > 1:
            check_beams(run.llm.base, run.llm_path)
        _check_adapters(run, unfinished)
        for first in sorted(_first_layers(run, unfinished)):
            check_frozen_prefix(run.llm.base, first, run.llm_path)
    run.is_checked = True


def _check_adapters(run: Run, arms: Sequence[Arm]) -> None:
    """Try what the arms put into the language model, each kind once."""
    targets, prefix = {}, False
    for arm in trained_alone(arms):
        if isinstance(arm.method, AdapterMethod):
            names = arm.settings.get("target_modules")
            targets |= {tuple(names): names} if names else {}
            prefix = prefix or arm.method.puts_prefix
    for names in targets.values():
        check_wrapped(run.llm, names, run.llm_path)
    if prefix:
        check_prefix_is_read(run.llm.base, run.llm_path)


def _first_layers(run: Run, arms: Sequence[Arm]) -> set[int]:
    """The layers that read kept states."""
    found = set()
    for arm in trained_alone(arms):
        if isinstance(arm.method, AdapterMethod):
            found.add(arm.method.first_layer(run, arm))
    return found - {None}
