"""Writes RUN/report.md from results.json alone, for readers who have not seen the code."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from recipes.report.clusters import clusters_section
from recipes.report.naming import (
    GENERATED,
    NOTHING,
    arms_of,
    headline_key,
    in_markdown,
    interval,
    per_seed,
    plain,
    resampled,
    several_seeds,
)
from recipes.report.paper import paper_section
from recipes.report.tables import markdown_table
from recipes.report.tuning import tuning_section
from recipes.report.verdict import differences, headlines, verdict

Results = Mapping[str, Any]

TEXT_COLUMNS = {
    GENERATED: "HitRatio@1 (generation, of total)",
    "hit_ratio@1/generation/valid": "HitRatio@1 (generation, of valid)",
    "valid_ratio/generation": "ValidRatio",
}
AVERAGES = {
    "rows": "means over rows",
    "users": "means over users of each user's mean over rows",
}
SUBSTRING_COLUMNS = {
    "hit_ratio@1/substring/total": "HitRatio@1 (of total)",
    "hit_ratio@1/substring/valid": "HitRatio@1 (of valid)",
    "valid_ratio/substring": "ValidRatio",
}


def render(results: Results, plots: Sequence[str]) -> str:
    """The report in Markdown.

    Args:
        results: The results, as `collect` returns them.
        plots: Names of the PNG files in `plots/`.
    """
    results = in_markdown(results)
    sections = [
        _opening(results),
        _what_was_run(results),
        _methods(results),
        _generated(results),
        _ranked(results),
        _order(results),
        paper_section(results),
        _differences(results),
        _tuning(results),
        clusters_section(results.get("clusters", {}), arms_of(results)),
        _slices(results),
        _plots(results, plots),
        _parameters(results),
        _reproduce(results),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening(results: Results) -> str:
    arms = arms_of(results)
    answer = " ".join(verdict(entry, arms) for entry in headlines(results)) or NOTHING
    notes = "\n".join(f"> - {caveat}" for caveat in results["caveats"])
    return f"# {results['name']}\n\n**Result.** {answer}\n\n> **Read this first**\n>\n{notes}"


def _what_was_run(results: Results) -> str:
    dataset, evaluated, seeds = results["dataset"], results["evaluated"], results["seeds"]
    counts, llm = dataset["counts"], results["llm"]
    users = ", ".join(f"{count:,} {split}" for split, count in counts["users"].items())
    model = "" if llm is None else f"- **Language model:** `{llm['name']}`{_size(llm)}.\n"
    hours = ", ".join(
        f"{' and '.join(map(plain, names))} {_duration(value)}"
        for names, value in _stages_once(results)
    )
    every = {"last": "each user's last window", "first": "each user's first window"}.get(
        evaluated["rows"], "every window"
    )
    return (
        "## What was run\n\n"
        f"{_setting(results)}\n\n"
        f"- **Data:** `{dataset['dataset']}`, protocol `{dataset['protocol']}`: "
        f"{counts['interactions']:,} interactions, {counts['items']:,} items; users: {users}.\n"
        f"{model}"
        f"- **Evaluated rows:** {every} with at least {evaluated['min_history']} items of history, "
        f"{evaluated['split']} split: n = {evaluated['num_rows']:,} rows of "
        f"{evaluated['num_users']:,} users.\n"
        f"- **Ranked among:** {_among(evaluated)}.\n"
        f"- **Figures:** {AVERAGES[evaluated['average']]}. {_interval_note(results)}\n"
        f"- **Seeds:** {_seeds(seeds)}.\n"
        f"- **Time:** {hours}."
    )


def _size(llm: Mapping[str, Any]) -> str:
    return f", {llm['parameters']:,} parameters" if "parameters" in llm else ""


def _setting(results: Results) -> str:
    if results["llm"] is None:
        return (
            "Methods read each user's history and rank items; the question is which method ranks "
            "the next item best. "
        ) + (
            "A chat model is told the history and the candidates, and names one; no language model "
            "is adapted."
            if _asks(results)
            else "No language model is involved."
        )
    return (
        "A recommender reads each user's history. A frozen language model reads a prompt "
        "with the newest items of that history and a list of candidates, and names the next item. "
        "Small adapters are trained on top of it; the question is which adapter answers best."
    )


def _asks(results: Results) -> bool:
    """Whether a chat model behind an endpoint is asked."""
    return any(arm["method"] == "chat" for arm in results["arms"])


def _among(evaluated: Mapping[str, Any]) -> str:
    if evaluated["candidates"] == "sampled":
        return f"{evaluated['num_candidates']} frozen candidates of each row"
    return (
        f"all {evaluated['num_candidates']:,} items"
        + {
            "none": ", also those that the user met before (`evaluate.mask: none`)",
            "history": " but those that the user met before (`evaluate.mask: history`); the target "
            "always counts",
            "zero": "; those that the user met before score 0 (`evaluate.mask: zero`), the target "
            "excepted",
        }[evaluated["mask"]]
    )


def _methods(results: Results) -> str:
    arms = arms_of(results).values()
    lines = "\n".join(f"- **{arm['title']}**: {arm['meaning']}." for arm in arms)
    return f"## Methods\n\n{lines}"


def _generated(results: Results) -> str:
    """The section of generated answers; empty if no arm writes any."""
    key = next(iter(TEXT_COLUMNS))
    methods = [entry["method"] for entry in results["metrics"] if entry["key"] == key]
    if not methods:
        return ""
    return (
        f"## Generated answers ({_sample(results)})\n\n"
        f"The model writes an answer {_decoding(results)}{_constrained(results)}. It is **valid** "
        "when, apart from white space and the composition of accents, it is exactly one "
        "candidate's title, as the model's tokenizer writes it; if it is none, case is left aside "
        "on both sides, and then punctuation at the end and compatibility forms. *Of total* counts "
        "an invalid answer as a miss; *of valid* leaves it out, which flatters a model that often "
        "fails to answer. Compare *of total*.\n\n"
        f"{_table(results, methods, TEXT_COLUMNS)}\n\n"
        f"{_invalid(results)}{_beams(results, methods)}"
        "<details><summary>The same answers under the reference's rule</summary>\n\n"
        "The published code calls an answer valid when exactly one candidate title is a substring "
        "of it. This voids a perfect answer whose title contains another candidate's, and accepts "
        "a title inside a longer text.\n\n"
        f"{_table(results, methods, SUBSTRING_COLUMNS)}\n\n</details>"
    )


def _decoding(results: Results) -> str:
    beams = results["config"]["evaluate"]["num_beams"]
    told = "greedily" if beams == 1 else f"by {beams} beams, the likeliest of which counts"
    return f"{told} (a chat model: as its `request` says)" if _asks(results) else told


def _beams(results: Results, methods: Sequence[str]) -> str:
    """The tables of what stands among the beams; empty where decoding is greedy."""
    columns = {
        entry["key"]: entry["label"].partition(" ")[0]
        for entry in results["metrics"]
        if entry["key"].endswith("/beams") and not entry["key"].startswith("ndcg@1/")
    }
    if not columns:
        return ""
    return (
        "The beams as a ranking: an invalid one takes its place and is a miss.\n\n"
        f"{_table(results, methods, columns)}\n\n"
    )


def _order(results: Results) -> str:
    """The section on the order in which prompts list candidates; empty where it was not tried."""
    entries = results["order"]
    if not entries:
        return ""
    first = entries[0]
    writes = any("answers" in entry for entry in entries)
    rows = [
        [
            arms_of(results)[entry["method"]]["title"],
            interval(entry),
            *([interval(entry["answers"]) if "answers" in entry else "–"] if writes else []),
        ]
        for entry in entries
    ]
    head = ["method", "first choice changes", *(["answer changes"] if writes else [])]
    answers = ", and in which another answer was written" if writes else ""
    orders = "another order" if first["orders"] == 1 else f"{first['orders']} other orders"
    return (
        "## Sensitivity to the order of candidates\n\n"
        f"{first['num_rows']:,} rows of {first['num_users']:,} users, evenly spaced, were ranked "
        f"again with the candidates of the prompt in {orders}. The figure is the share in which "
        f"another candidate came first{answers}. It is 0 by construction for arms that read no "
        "list.\n\n" + markdown_table(head, rows)
    )


def _invalid(results: Results) -> str:
    """What invalid answers are."""
    entries = results["invalid"]
    rows = [
        [
            arms_of(results)[entry["method"]]["title"],
            f"{entry['answers']:,}",
            *(f"{count:,}" for count in entry["kinds"].values()),
        ]
        for entry in entries
    ]
    head = ["method", "answers", *entries[0]["kinds"]]
    return (
        "Invalid answers, of all seeds and draws. *Cut short*: the limit of tokens, within which "
        "every title fits, came before the answer's end. *Ambiguous*: the title of several "
        "candidates. *Not finite*: the scores of the row are not, so it counts as a miss "
        f"everywhere.\n\n{markdown_table(head, rows)}\n\n"
    )


def _constrained(results: Results) -> str:
    if results["config"]["evaluate"]["decoding"] == "free":
        return ""
    return (
        ", token by token among those that lead to a candidate's title (`evaluate.decoding: "
        "candidates`), so that answers are valid by construction unless two candidates share a "
        "title"
    )


def _ranked(results: Results) -> str:
    ks = results["config"]["evaluate"]["ks"]
    shares = {f"hit_ratio@{k}/ranking": f"HitRatio@{k}" for k in ks}
    # NDCG@1 is HitRatio@1
    places = {f"ndcg@{k}/ranking": f"NDCG@{k}" for k in ks if k > 1} | {"mrr/ranking": "MRR"}
    tables = [_table(results, list(arms_of(results)), columns) for columns in (shares, places)]
    whole = results["evaluated"]["candidates"] == "catalogue"
    return (
        f"## Ranked {'items' if whole else 'candidates'} ({_sample(results)})\n\n"
        f"{_scores(results)} Candidates that score the same are in no order: each figure is its "
        "expectation over all orders of the tied, so a method that scores all alike is worth a "
        f"random order, which is the floor.{_ceilings(results)}\n\n" + "\n\n".join(tables)
    )


def _scores(results: Results) -> str:
    """What candidates are ranked by."""
    evaluate = results["config"]["evaluate"]
    if evaluate["candidates"] == "catalogue":
        writes = any(arm["settings"].get("list_candidates") is False for arm in results["arms"])
        return "Every method scores all items." + (
            f" A language model's prompt lists none; it writes titles by {evaluate['num_beams']} "
            "beams, which come first in their order, and all other items tie behind them."
            if writes
            else ""
        )
    asked = (
        " What a chat model names comes first, and all others tie behind it; after an invalid "
        "answer all tie."
        if _asks(results)
        else ""
    )
    if results["llm"] is None:
        return f"Every method scores all candidates of a row.{asked}"
    mean = "mean" if evaluate["length_normalised"] else "sum"
    return (
        "Every method scores all candidates of a row: an adapted language model by the likelihood "
        f"of the title after the prompt ({mean} of its tokens' log-probabilities, end of sequence "
        f"included), a recommender by its own score.{asked}"
    )


def _ceilings(results: Results) -> str:
    if results["ceilings"] is None:
        return ""
    oracle, last_item = results["ceilings"]["oracle"], results["ceilings"]["last_item"]
    return (
        f" In this synthetic world the ceiling of HitRatio@1 is known: {oracle:.3f} for who knows "
        f"the user's kind, {last_item:.3f} for who knows only the last item."
    )


def _differences(results: Results) -> str:
    arms, listed = arms_of(results), differences(results)
    if not listed:
        return f"## Differences\n\n{NOTHING}"
    sentences = "\n".join(f"- {verdict(entry, arms)}" for entry in listed)
    rows = [
        [
            f"{arms[entry['method']]['title']} − {arms[entry['baseline']]['title']}",
            entry["label"],
            interval(entry, sign=True),
            "–" if entry["value"] is None else f"{entry['share_above_zero']:.1%}",
            per_seed(entry["per_seed"], sign=True),
        ]
        for entry in listed
    ]
    head = ["difference", "metric", "value [interval]", "resamples above zero", "seed by seed"]
    order = (
        ""
        if results["llm"] is None
        else "The best arm against its strongest rival first, then adapters against each other and "
        "against the strongest arm without a language model. "
    )
    return (
        f"## Differences\n\n{order}Both sides of a difference are taken on the same rows and the "
        f"same resampled {resampled(results)}.\n\n"
        f"{sentences}\n\n{markdown_table(head, rows)}\n\n"
        "All other pairs and metrics are in `results.json`, under `comparisons`."
    )


def _tuning(results: Results) -> str:
    rows = results["config"]["adapt"]["validate_rows"]
    return tuning_section(results.get("tuning", {}), arms_of(results), rows)


SLICES = {
    "history": "By the length of the history, as the recommender reads it",
    "frequency": "By how often the target occurs in train; a cold item never does",
}


def _slices(results: Results) -> str:
    """The section of figures by slice of the rows."""
    headline = f"HitRatio@{results['evaluated']['headline']}, ranked"
    keys = {headline_key(results): headline, GENERATED: "HitRatio@1, generated, of total"}
    tables = []
    for by, what in SLICES.items():
        names = {entry["slice"] for entry in results["slices"] if entry["by"] == by}
        if len(names) == 1:
            tables.append(f"**{what}**: all rows are of one slice, {names.pop()}.")
            continue
        for key, label in keys.items():
            own = [e for e in results["slices"] if (e["by"], e["key"]) == (by, key)]
            if own:
                tables.append(f"**{what}** ({label})\n\n{_slice_table(results, own)}")
            less = [e for e in results["slice_differences"] if (e["by"], e["key"]) == (by, key)]
            if less:
                base = arms_of(results)[less[0]["baseline"]]["title"]
                tables.append(
                    f"The same, minus {base}:\n\n{_slice_table(results, less, sign=True)}"
                )
    told = "The same figures of parts of the rows."
    if any("The same, minus" in table for table in tables):
        told += (
            " Differences are taken on the same rows and the same resamples; **bold** intervals "
            "exclude zero, and none is corrected for the number of slices."
        )
    return f"## Slices\n\n{told}\n\n" + "\n\n".join(tables)


def _slice_table(results: Results, entries: Sequence[Mapping[str, Any]], sign: bool = False) -> str:
    """One row an arm, one column a slice, whose head tells its size."""
    sizes = {
        entry[
            "slice"
        ]: f"{entry['slice']} (n = {entry['num_rows']:,}, {entry['num_users']:,} users)"
        for entry in entries
        if "num_rows" in entry
    }
    cells = {(entry["method"], entry["slice"]): entry for entry in entries}
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    rows = [
        [arms_of(results)[name]["title"], *(_slice_cell(cells[name, one], sign) for one in sizes)]
        for name in methods
    ]
    return markdown_table(["method", *sizes.values()], rows)


def _slice_cell(entry: Mapping[str, Any], sign: bool) -> str:
    if entry["low"] is None:
        return f"{entry['value']:{'+' if sign else ''}.3f} (no interval)"
    text = interval(entry, sign=sign)
    return f"**{text}**" if entry.get("excludes_zero") else text


def _plots(results: Results, plots: Sequence[str]) -> str:
    titles = {
        "hit_ratio.png": f"HitRatio@{results['evaluated']['headline']} of every arm",
        "loss.png": "Training loss",
        **{f"gates-{name}.png": "Gate weights of ten users" for name in results["gates"]},
    }
    images = [f"![{title}](plots/{name})" for name, title in titles.items() if name in plots]
    arms = arms_of(results)
    images += [_gate_note(arms[name]["title"], gate) for name, gate in results["gates"].items()]
    return "## Plots\n\n" + "\n\n".join(images)


def _gate_note(title: str, gate: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{weight:.2f}" for weight in gate["mean_weights"])
    return (
        f"{title}: over all {gate['num_rows']:,} rows the experts get the mean weights {shares} "
        f"(seed {gate['seed']}). The mean entropy of a row's weights is "
        f"{gate['mean_entropy']:.2f} nats; {gate['uniform_entropy']:.2f} would be an even mixture, "
        "that is plain LoRA, and 0 a choice of one expert."
    )


def _parameters(results: Results) -> str:
    """The section of adapters' sizes; empty if none was trained."""
    groups = ("adapter", "gate", "projector", "total")
    rows = [
        [arms_of(results)[name]["title"], *(f"{counts[group]:,}" for group in groups)]
        for name, counts in results["trainable_parameters"].items()
    ]
    if not rows:
        return ""
    return "## Trainable parameters\n\n" + markdown_table(["method", *groups], rows)


def _reproduce(results: Results) -> str:
    config = yaml.safe_dump(results["config"], sort_keys=False, allow_unicode=True)
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        "## How to reproduce\n\n"
        "Save the configuration below as `experiment.yaml` and run\n\n"
        "```sh\npython -m recipes run experiment.yaml\n```\n\n"
        "Stages that are finished in `out` are not run again. "
        f"Versions: {versions}. Other hardware may change the last digits.\n\n"
        f"<details><summary>experiment.yaml</summary>\n\n```yaml\n{config}```\n\n</details>\n\n"
        "`predictions.parquet` holds what every method predicts for every row."
    )


def _table(results: Results, methods: Sequence[str], columns: Mapping[str, str]) -> str:
    entries = {(entry["method"], entry["key"]): entry for entry in results["metrics"]}
    # With several seeds, a last column lists the first metric's value for each seed.
    seeds = several_seeds(results)
    rows = []
    for method in methods:
        cells = [entries.get((method, key)) for key in columns]
        row = [
            arms_of(results)[method]["title"],
            *("–" if cell is None else interval(cell) for cell in cells),
        ]
        rows.append([*row, per_seed((cells[0] or {}).get("per_seed", []))] if seeds else row)
    head = ["method", *columns.values()]
    first = next(iter(columns.values()))
    return markdown_table([*head, f"{first}, seed by seed"] if seeds else head, rows)


def _interval_note(results: Results) -> str:
    settings = results["config"]["evaluate"]
    note = (
        f"In brackets: {settings['confidence']:.0%} intervals, {settings['bootstrap_samples']:,} "
        "bootstrap resamples of users with all their rows"
    )
    if several_seeds(results):
        note += ", and of the seeds of arms that have several"
    shown = (*results["metrics"], *results["slices"], *results["slice_differences"])
    orders = [entry.get("answers", {}) for entry in results["order"]]
    shown += (*differences(results), *results["order"], *orders)
    marked = any(entry.get("degenerate") for entry in shown)
    dagger = (
        " † Every resample gave the same figure; where all or none hit, the interval is Wilson's "
        "score interval, one trial a user."
    )
    return f"{note}.{dagger if marked else ''}"


def _sample(results: Results) -> str:
    evaluated = results["evaluated"]
    return (
        f"n = {evaluated['num_rows']:,} rows, {evaluated['num_users']:,} users, "
        f"{evaluated['words']}"
    )


def _listed(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _seeds(seeds: Mapping[str, Any]) -> str:
    found = seeds["adapters"]
    parts = [f"adapters with {_listed(found)}"] if found else []
    parts += [f"{name} with {_listed(own)}" for name, own in seeds["recommenders"].items()]
    return "; ".join(parts) or "none, nothing was trained"


def _stages_once(results: Results) -> list[tuple[list[str], float]]:
    """Names of each stage, and its seconds; arms that share an adapter name one training."""
    found: dict[tuple[str, float], list[str]] = {}
    for name, seconds in results["seconds"].items():
        found.setdefault((results["fingerprints"][name], seconds), []).append(name)
    return [(names, seconds) for (_, seconds), names in found.items()]


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
