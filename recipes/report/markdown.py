"""Writes RUN/report.md from results.json alone, for readers who have not seen the code."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from recipes.report.naming import NOTHING, arms_of, interval, per_seed
from recipes.report.verdict import differences, headlines, verdict

Results = Mapping[str, Any]

TEXT_COLUMNS = {
    "hit_ratio@1/generation/total": "HitRatio@1 (generation, of total)",
    "hit_ratio@1/generation/valid": "HitRatio@1 (generation, of valid)",
    "valid_ratio/generation": "ValidRatio",
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
    sections = [
        _opening(results),
        _what_was_run(results),
        _methods(results),
        _generated(results),
        _ranked(results),
        _differences(results),
        _plots(results, plots),
        _parameters(results),
        _reproduce(results),
    ]
    return "\n\n".join(sections) + "\n"


def _opening(results: Results) -> str:
    arms = arms_of(results)
    answer = " ".join(verdict(entry, arms) for entry in headlines(results)) or NOTHING
    notes = "\n".join(f"> - {caveat}" for caveat in results["caveats"])
    return f"# {results['name']}\n\n**Result.** {answer}\n\n> **Read this first**\n>\n{notes}"


def _what_was_run(results: Results) -> str:
    dataset, evaluated, seeds = results["dataset"], results["evaluated"], results["seeds"]
    counts, llm = dataset["counts"], results["llm"] or {"name": "none"}
    users = ", ".join(f"{count:,} {split}" for split, count in counts["users"].items())
    size = f", {llm['parameters']:,} parameters" if "parameters" in llm else ""
    seconds = results["seconds"]
    hours = ", ".join(f"{name} {_duration(value)}" for name, value in seconds.items())
    every = "each user's last window" if evaluated["rows"] == "last" else "every window"
    return (
        "## What was run\n\n"
        "A recommender reads each user's history. A frozen language model reads a prompt "
        "with the newest items of that history and a list of candidates, and names the next item. "
        "Small adapters are trained on top of it; the question is which adapter answers best.\n\n"
        f"- **Data:** `{dataset['dataset']}`, protocol `{dataset['protocol']}`: "
        f"{counts['interactions']:,} interactions, {counts['items']:,} items; users: {users}.\n"
        f"- **Language model:** `{llm['name']}`{size}.\n"
        f"- **Evaluated rows:** {every} with at least {evaluated['min_history']} items of history, "
        f"{evaluated['split']} split: n = {evaluated['num_rows']:,} rows of "
        f"{evaluated['num_users']:,} users, {evaluated['num_candidates']} frozen candidates each.\n"
        f"- **Seeds:** {_seeds(seeds)}.\n"
        f"- **Time:** {hours}."
    )


def _methods(results: Results) -> str:
    arms = arms_of(results).values()
    lines = "\n".join(f"- **{arm['title']}**: {arm['meaning']}." for arm in arms)
    return f"## Methods\n\n{lines}"


def _generated(results: Results) -> str:
    key = next(iter(TEXT_COLUMNS))
    methods = [entry["method"] for entry in results["metrics"] if entry["key"] == key]
    if not methods:
        return "## Generated answers\n\nNo arm writes answers."
    return (
        f"## Generated answers ({_sample(results)})\n\n"
        "The model writes an answer greedily. It is **valid** when, apart from case and white "
        "space, it is exactly one candidate's title, as the model's tokenizer writes it. *Of "
        "total* counts an invalid answer as a miss; *of valid* leaves it out, which flatters a "
        "model that often fails to answer. "
        "Compare *of total*.\n\n"
        f"{_table(results, methods, TEXT_COLUMNS)}\n\n"
        f"{_interval_note(results)}\n\n"
        "<details><summary>The same answers under the reference's rule</summary>\n\n"
        "The published code calls an answer valid when exactly one candidate title is a substring "
        "of it. This voids a perfect answer whose title contains another candidate's, and accepts "
        "a title inside a longer text.\n\n"
        f"{_table(results, methods, SUBSTRING_COLUMNS)}\n\n</details>"
    )


def _ranked(results: Results) -> str:
    ks = results["config"]["evaluate"]["ks"]
    tables = [
        _table(
            results, list(arms_of(results)), {f"{key}@{k}/ranking": f"{name}@{k}" for k in cutoffs}
        )
        for key, name, cutoffs in (
            ("hit_ratio", "HitRatio", ks),
            ("ndcg", "NDCG", [k for k in ks if k > 1]),  # NDCG@1 is HitRatio@1
        )
        if cutoffs
    ]
    mean = "mean" if results["config"]["evaluate"]["length_normalised"] else "sum"
    return (
        f"## Ranked candidates ({_sample(results)})\n\n"
        "Every method scores all candidates of a row: an adapted language model by the likelihood "
        f"of the title after the prompt ({mean} of its tokens' log-probabilities, end of sequence "
        "included), a recommender by its own score. Ties count against the "
        f"method. A random order is the floor.{_ceilings(results)}\n\n" + "\n\n".join(tables)
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
    return (
        "## Differences\n\n"
        "The best arm against its strongest rival first, then adapters against each other and "
        "against the strongest arm without a language model. Both sides of a difference are taken "
        "on the same rows and the same resampled users.\n\n"
        f"{sentences}\n\n{markdown_table(head, rows)}\n\n"
        "All other pairs and metrics are in `results.json`, under `comparisons`."
    )


def _plots(results: Results, plots: Sequence[str]) -> str:
    titles = {
        "hit_ratio.png": "HitRatio@1 of every arm",
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
    groups = ("adapter", "gate", "projector", "total")
    rows = [
        [arms_of(results)[name]["title"], *(f"{counts[group]:,}" for group in groups)]
        for name, counts in results["trainable_parameters"].items()
    ]
    if not rows:
        return "## Trainable parameters\n\nNo adapter was trained."
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
        "`predictions.parquet` holds every single answer and score behind this report."
    )


def _table(results: Results, methods: Sequence[str], columns: Mapping[str, str]) -> str:
    entries = {(entry["method"], entry["key"]): entry for entry in results["metrics"]}
    # With several seeds, a last column lists the first metric's value for each seed.
    seeds = results["config"]["seeds"] > 1
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


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with the header cells `head`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval_note(results: Results) -> str:
    settings = results["config"]["evaluate"]
    note = (
        f"In brackets: {settings['confidence']:.0%} intervals, {settings['bootstrap_samples']:,} "
        "resamples of users with all their rows; outcomes are averaged over seeds first."
    )
    marked = any(entry.get("degenerate") for entry in results["metrics"])
    dagger = (
        " † Every resample gave the same figure; where all or none hit, the interval is Wilson's "
        "score interval, one trial a user."
    )
    return note + (dagger if marked else "")


def _sample(results: Results) -> str:
    evaluated = results["evaluated"]
    return (
        f"n = {evaluated['num_rows']:,} rows, {evaluated['num_users']:,} users, "
        f"{evaluated['num_candidates']} sampled candidates"
    )


def _listed(seeds: Sequence[int]) -> str:
    return ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))


def _seeds(seeds: Mapping[str, Any]) -> str:
    found = seeds["adapters"]
    parts = [f"adapters with {_listed(found)}" if found else "no adapter was trained"]
    parts += [f"{name} with {_listed(own)}" for name, own in seeds["recommenders"].items()]
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
