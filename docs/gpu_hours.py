"""Writes docs/gpu_hours.md: every row's command, and its hours on one GPU at 7B, from FLOPs.

`python docs/gpu_hours.py`. Nothing here was timed. `python docs/gpu_hours.py DATASET FOLDER` counts
the tokens of a dataset's prompts with SmolLM2's tokenizer, as `TOKENS` has them.
"""

import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recipes.experiment import AdapterSettings
from recipes.experiment_files import parse_experiment
from recipes.methods import METHODS
from recipes.methods.adapter import AdapterMethod
from recipes.methods.ilora import ILoRA
from recipes.methods.method import Method
from recipes.methods.recommender_methods import SourceMethod

PAGE = Path(__file__).with_suffix(".md")
LAYERS, WIDTH, INNER, VOCABULARY = 32, 4096, 11008, 32000
"""Llama-2-7B."""
WEIGHTS = LAYERS * (4 * WIDTH * WIDTH + 3 * WIDTH * INNER)
"""Weights of the linear layers, each multiplied once a token. The head counts where it is read."""
PEAK, UTILISATION = 312e12, 0.40
"""Dense bf16 FLOP/s of an A100, and the share of it that training is taken to reach."""
EPOCHS, CANDIDATES, MEASUREMENTS, MEASURED = 5, 20, 5, 1000
"""Of the preset `paper`: epochs, candidates, and validation rows after each epoch."""


@dataclass(frozen=True)
class Data:
    """What a dataset's hours follow from, under the protocol `llara`."""

    title: str
    windows: int
    """Train windows with a history of three or more, as docs/datasets.md has them."""
    rows: int
    """Test rows: the last window of each user."""
    prompt: float
    """Mean tokens of a hybrid prompt of ten items and twenty candidates, slots included."""
    slots: float
    """Mean slots in it, which prompts as plain text do not have."""
    answer: float
    """Mean tokens of an answer, end of sequence included."""


TOKENS = {
    "lastfm": Data("LastFM", 47_872, 122, prompt=178.0, slots=29.5, answer=4.4),
    "movielens": Data("MovieLens", 66_126, 95, prompt=205.6, slots=29.7, answer=5.3),
    "steam": Data("Steam", 151_056, 1_186, prompt=241.9, slots=30.0, answer=6.6),
}
"""Tokens are SmolLM2's (49,152 entries), as this program counted them in 500 train windows. All of
Steam's train windows count, since how many have a history of three is not known here."""


def adapter_weights(rank: int) -> int:
    """Weights of a LoRA of some rank on the seven modules of every layer."""
    return LAYERS * rank * (4 * 2 * WIDTH + 3 * (WIDTH + INNER))


def forward(tokens: float, context: float, heads: float) -> float:
    """FLOPs of a forward pass over `tokens` that attend to `context` others in the mean.

    Two a weight and token, four a layer, width and pair of positions, and the head at `heads` of
    the positions.
    """
    attention = 4 * LAYERS * WIDTH * context * tokens
    return 2 * WEIGHTS * tokens + attention + 2 * VOCABULARY * WIDTH * heads


def training(data: Data, slots: bool, rank: int = 16) -> float:
    """FLOPs of the training of one adapter.

    A frozen weight costs a forward pass and the gradient of its input: twice the forward pass.
    Attention and the adapter's own weights also have their second gradient: three times. No
    activation is computed again.
    """
    length = data.prompt - (0 if slots else data.slots) + data.answer
    attention = 4 * LAYERS * WIDTH * (length / 2) * length
    window = 2 * forward(length, length / 2, data.answer) + attention
    window += 6 * adapter_weights(rank) * length
    return EPOCHS * data.windows * window


def ranking(data: Data, rows: int, slots: bool) -> float:
    """FLOPs of ranking the candidates of some rows: the prompt once, then every title behind it."""
    length = data.prompt - (0 if slots else data.slots)
    titles = CANDIDATES * data.answer
    return rows * (forward(length, length / 2, 1) + forward(titles, length, titles))


def evaluation(data: Data, slots: bool) -> float:
    """FLOPs of a row's evaluation on the test rows: ranking, and one generated answer a row."""
    length = data.prompt - (0 if slots else data.slots)
    answers = forward(length, length / 2, 1) + forward(data.answer, length, data.answer)
    return ranking(data, data.rows, slots) + data.rows * answers


def hours(flops: float) -> float:
    """Hours on the GPU of the page."""
    return flops / (PEAK * UTILISATION) / 3600


def method_hours(method: Method, data: Data) -> float | None:
    """Hours of one arm and seed under the preset `paper`; None if no language model is run."""
    if not method.reads_language_model:
        return None
    fixed = method.fixed if isinstance(method, AdapterMethod) else {"item_slots": False}
    slots = {"item_slots": AdapterSettings().item_slots, **fixed}["item_slots"]
    found = evaluation(data, slots)
    if method.is_adapter:
        found += training(data, slots) + MEASUREMENTS * ranking(data, MEASURED, slots)
    return hours(found)


HEAD = """# GPU hours at 7B

Written by `python docs/gpu_hours.py`. **Estimates from FLOPs: no row here was timed, and none
was run at 7B.** They are hours on one A100 (dense bf16, {peak:.0f} TFLOP/s) at an assumed
utilisation of {utilisation:.0%}, for one seed under `--preset paper`: Llama-2-7B, {epochs}
epochs, {candidates} candidates, an evaluation of the test rows, and {measured:,} validation
rows after each epoch. At another peak or utilisation they scale inversely.

The rows that name no hours run no language model here: minutes on two cores. `morec` reads titles
by a text encoder, which is named or lies in a folder; `chat` sends one request a row to an
[endpoint](chat.md).

```bash
python -m recipes run lastfm --source FOLDER --preset paper      # all rows of the paper's table
python -m recipes run movielens --source FOLDER --preset paper
python -m recipes run steam --source FOLDER --preset paper
```

One row alone is `python -m recipes run DATASET --source FOLDER --preset paper --arms ARMS`:

| row | ARMS | {titles} |
|---|---|{rules}|
"""
TAIL = """
## What is counted

- {weights:.2f} billion weights in linear layers, two FLOPs each a token in a forward pass. They
  are frozen, so a training step costs a forward pass and the gradients of the layers' inputs:
  twice a forward pass. Attention costs three forward passes, and so do the adapter's own
  {adapter:.0f} million weights (rank 16). The head is read at the answer's tokens alone.
  Nothing is recomputed (no gradient checkpointing). Gates, projectors and recommenders are
  below a thousandth, and not counted.
- Every train window with a history of three or more, {epochs} times; a prompt shows ten items
  and {candidates} candidates. Tokens are those of SmolLM2's tokenizer, since Llama's was not at
  hand; its vocabulary is smaller, so its prompts are somewhat longer.
{tokens}
- Steam's train windows are counted as published ({steam:,}); how many have a history of three
  is not known here. The files at hand hold 1,000 of them.
- A tuned arm costs its trials: six of them, as in
  `{tuned}`, are six
  times a row. `--seeds 5` is five times. `--preset recommended` trains four adapters with five
  seeds, which `patience` may end early.

## What is out of scope

**The collaborative-filtering task of the rebuttal.** The authors' reply to the reviewers also
reports a collaborative-filtering task. It is not covered: neither the paper nor its code, nor
LLaRA's files, hold its data, split, prompts or candidates, so nothing made here could be set
beside its figures. The reply's table of HitRatio and NDCG at 3 and 5 cannot be right as
printed: NDCG@5 rises above NDCG@3 by more than any rank of the added hits allows in 11 of its
12 rows. Vectors of any collaborative filter can be read (`recommender.name: file`), on data of
one's own (`custom`).
"""


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "chat": {"model": "gpt-4"},
    "morec": {"encoder": "sentence-transformers/all-MiniLM-L6-v2"},
}
"""What a row must be told that neither the preset nor its method knows."""
TUNED = {
    "method": "lora",
    "tune": {"learning_rate": [1.0e-4, 2.0e-4, 4.0e-4], "rank": [8, 16]},
}


@cache
def preset_arms() -> list[dict[str, Any]]:
    """The arms of the preset `paper`."""
    return parse_experiment("lastfm", ["--preset", "paper"]).arms or []


def arms_of(method: Method) -> str:
    """What `--arms` takes for a row: the preset's own arm, where it has one.

    A mixture of experts that it has not is scaled as its iLoRA is.
    """
    for arm in preset_arms():
        if arm["method"] == method.name:
            return written([arm])
    own = {"gate_form", "scaling_rank"}
    mixes = isinstance(method, ILoRA) and not own & (method.derived | method.fixed_options.keys())
    scale = {"scaling_rank": "total"} if mixes else {}
    return written([{"method": method.name, **OWN_SETTINGS.get(method.name, {}), **scale}])


def written(arms: list[dict[str, Any]]) -> str:
    """Arms in one line, as a command line takes them."""
    return yaml.safe_dump(arms, default_flow_style=True, sort_keys=False, width=1000).strip()


def rows() -> dict[str, Method]:
    """The methods of the page, by name. `text` and `file` are sources of vectors, and no rows."""
    return {name: one for name, one in METHODS.items() if not isinstance(one, SourceMethod)}


def shown(figure: float | None) -> str:
    """Hours, as they stand in the table."""
    return "–" if figure is None else f"{figure:.1f}" if figure >= 1 else f"{figure:.2g}"


def page() -> str:
    """The page, in Markdown."""
    lines = []
    for name, method in rows().items():
        cells = [shown(method_hours(method, data)) for data in TOKENS.values()]
        lines.append(f"| `{name}` | `'{arms_of(method)}'` | {' | '.join(cells)} |")
    titles = [data.title for data in TOKENS.values()]
    tokens = "\n".join(
        f"  - {data.title}: {data.prompt:.0f} a prompt, {data.slots:.0f} of them slots, and "
        f"{data.answer:.1f} an answer, in {data.windows:,} windows."
        for data in TOKENS.values()
    )
    head = HEAD.format(
        peak=PEAK / 1e12,
        utilisation=UTILISATION,
        epochs=EPOCHS,
        candidates=CANDIDATES,
        measured=MEASURED,
        titles=" | ".join(titles),
        rules="|".join("---" for _ in titles),
    )
    tail = TAIL.format(
        weights=WEIGHTS / 1e9,
        adapter=adapter_weights(16) / 1e6,
        epochs=EPOCHS,
        candidates=CANDIDATES,
        tokens=tokens,
        steam=TOKENS["steam"].windows,
        tuned=written([TUNED]),
    )
    return head + "\n".join(lines) + "\n" + tail


def measured(dataset: str, source: str) -> tuple[float, float, float]:
    """Mean tokens of prompt, slots and answer over 500 train windows of three or more items."""
    from transformers import AutoTokenizer

    from recipes.llm.smollm2 import gguf_file
    from recipes.prompting.encoding import NO_SLOT, encode_answers, encode_prompts
    from recipes.run import Run

    file = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(parse_experiment(dataset, ["--source", source, "--out", folder]), {})
        run.prepare()
        split, titles = run.data.split("train"), run.data.titles
    usable = np.flatnonzero(split.history_lengths >= 3)
    rows = usable[np.linspace(0, len(usable) - 1, 500).astype(np.int64)]
    prompts = encode_prompts(tokenizer, titles, split.histories[rows], split.candidates[rows])
    answers = encode_answers(tokenizer, titles)
    return (
        float(prompts.input_ids.lengths.mean()),
        float((prompts.slot_items.values != NO_SLOT).sum() / len(rows)),
        float(answers.lengths[split.targets[rows]].mean()),
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(*(f"{one:.1f}" for one in measured(*sys.argv[1:])))
    else:
        PAGE.write_text(page(), encoding="utf-8")
