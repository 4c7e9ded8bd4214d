"""What an experiment compares: arms, their settings, and what is added to them."""

from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest

from peft_ilora import ILoRAConfig
from recipes.arms import comparison
from recipes.experiment import AdaptConfig, Experiment, RecommenderConfig
from recipes.methods import METHODS
from recipes.methods.method import Arm
from recipes.methods.peft_options import UNSUPPORTED
from recipes.pipeline import Pipeline


def arms_of(*entries, **fields_) -> dict[str, Arm]:
    compared = comparison(Experiment(arms=list(entries), **fields_))
    return {arm.name: arm for arm in compared.arms}


def only(entry, **fields_) -> Arm:
    (found,) = [arm for arm in arms_of(entry, **fields_).values() if arm.method.is_adapter]
    return found


# ------------------------------------------------------------------ names, order, additions


@pytest.mark.parametrize(
    ("entry", "name", "title"),
    [
        ({"method": "ilora"}, "ilora", "iLoRA"),
        ({"method": "ilora", "num_experts": 8}, "ilora,num_experts=8", "iLoRA, num_experts 8"),
        (
            {"method": "lora", "rank": 8, "lora_alpha": 16.0},
            "lora,rank=8,lora_alpha=16",
            "LoRA, rank 8, lora_alpha 16",
        ),
        (
            {"method": "lora", "learning_rate": 1e-4},
            "lora,learning_rate=0.0001",
            "LoRA, learning_rate 0.0001",
        ),
        (
            {"method": "ilora", "expert_ranks": [2, 6]},
            "ilora,expert_ranks=2+6",
            "iLoRA, expert_ranks 2+6",
        ),
        ({"method": "ilora", "name": "mine", "top_k": 2}, "mine", "iLoRA, top_k 2"),
        ({"method": "ilora", "name": 8}, "8", "iLoRA"),
        ({"method": "ilora", "name": "a/b: c"}, "a_b__c", "iLoRA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_arm_is_named_by_its_method_and_its_own_settings(entry, name, title):
    found = only(entry)
    assert (found.name, found.title) == (name, title)


def test_a_name_too_long_for_a_folder_is_cut_and_stays_unlike_others():
    modules = [f"module_{number}" for number in range(40)]
    one = only({"method": "lora", "target_modules": modules}).name
    other = only({"method": "lora", "target_modules": [*modules, "last"]}).name
    assert len(one) == len(other) == 100 and one != other


def test_arms_are_ordered_from_simple_to_elaborate_and_equal_ones_as_written():
    found = arms_of(
        {"method": "ilora", "num_experts": 8},
        {"method": "lora-user-slot"},
        {"method": "ilora", "num_experts": 2},
        {"method": "lora"},
        {"method": "co-occurrence"},
    )
    assert list(found) == [
        "random",
        "popularity",
        "co-occurrence",
        "sasrec",
        "lora",
        "lora-user-slot",
        "ilora,num_experts=8",
        "ilora,num_experts=2",
    ]


def test_baselines_are_added_and_a_source_where_an_arm_reads_it():
    assert list(arms_of({"method": "lora"})) == ["random", "popularity", "sasrec", "lora"]
    assert list(arms_of({"method": "markov"})) == ["random", "popularity", "markov"]
    named = [{"method": "lora"}, {"method": "random"}, {"method": "sasrec"}]
    assert list(arms_of(*named)) == ["random", "popularity", "sasrec", "lora"]
    assert list(comparison(Experiment(arms=[{"method": "markov"}])).networks) == []


def test_methods_are_the_short_form_of_arms():
    methods = ["lora", "lora-user-slot", "ilora"]
    short = comparison(Experiment(adapt=AdaptConfig(methods=methods)))
    long = comparison(Experiment(arms=[{"method": name} for name in methods]))
    assert short == long
    arms = [{"method": "lora"}]
    both = comparison(Experiment(arms=arms, adapt=AdaptConfig(methods=["ilora"])))
    assert "ilora" not in {arm.name for arm in both.arms}


# ------------------------------------------------------------------ settings of adapters

ILORA_OPTIONS = {
    "routing_source": "an embedding of the user's country",
    "expert_ranks": [1, 2, 3, 10],
    "gate": "mlp",
    "gate_form": "scale",
    "gate_input": "prompt",
    "gate_scope": "per_module",
    "gate_init": "zeros",
    "temperature": 0.5,
    "top_k": 2,
    "noise_std": 0.1,
    "scaling_rank": "total",
    "missing_routing": "uniform",
}


def test_every_option_of_the_plugin_can_be_set_in_an_arm():
    own = {spec.name for spec in fields(ILoRAConfig)} - {"r", "num_experts", "routing_dim"}
    inherited = {spec.name for base in ILoRAConfig.__mro__[1:] for spec in fields_of(base)}
    assert own - inherited - UNSUPPORTED.keys() == ILORA_OPTIONS.keys()
    for name, value in ILORA_OPTIONS.items():
        arm = only({"method": "ilora", name: value})
        config = METHODS["ilora"].peft_config(arm.settings, routing_dim=7)
        assert getattr(config, name) == value
        assert (config.num_experts, config.routing_dim, config.total_rank) == (4, 7, 16)


def fields_of(base: type) -> tuple:
    return fields(base) if hasattr(base, "__dataclass_fields__") else ()


@pytest.mark.parametrize("name", ["num_experts", "gate_learning_rate_scale"])
def test_the_gates_own_settings_can_be_set_in_an_arm(name):
    assert only({"method": "ilora", name: 2}).settings[name] == 2


def test_experts_share_the_total_rank():
    config = peft_of({"method": "ilora", "rank": 24, "num_experts": 8})
    assert (config.r, config.num_experts, config.total_rank) == (3, 8, 24)
    assert peft_of({"method": "ilora", "num_experts": 2}).r == 8


def test_the_rank_of_an_expert_gives_the_total_rank():
    assert only({"method": "ilora", "r": 2}).settings["rank"] == 8
    assert only({"method": "ilora", "r": 2, "num_experts": 3}).settings["rank"] == 6
    assert peft_of({"method": "ilora", "r": 2, "num_experts": 3}).r == 2
    assert only({"method": "lora", "r": 2}).settings["rank"] == 2
    assert peft_of({"method": "lora", "r": 2}).r == 2


def test_unequal_ranks_give_experts_and_total_rank():
    arm = only({"method": "ilora", "expert_ranks": [2, 5]})
    assert (arm.settings["num_experts"], arm.settings["rank"]) == (2, 7)
    assert peft_of({"method": "ilora", "expert_ranks": [2, 5]}).total_rank == 7


def test_experts_from_clusters_keep_the_total_rank_and_have_no_number_yet():
    settings = only({"method": "ilora", "expert_ranks": "clusters"}).settings
    assert (settings["num_experts"], settings["rank"]) == (None, 16)
    assert only({"method": "ilora", "expert_ranks": "clusters", "rank": 8}).settings["rank"] == 8
    assert peft_of({"method": "reclora", "expert_ranks": "clusters"}).total_rank == 16


def peft_of(entry):
    arm = only(entry)
    return arm.method.peft_config(arm.settings, routing_dim=7)


def test_options_of_peft_reach_the_adapter():
    config = peft_of({"method": "lora", "use_dora": True, "layers_to_transform": [0]})
    assert config.use_dora and config.layers_to_transform == [0]
    assert peft_of({"method": "lora", "init_lora_weights": "pissa"}).init_lora_weights == "pissa"
    assert peft_of({"method": "lora-user-slot", "use_rslora": True}).use_rslora
    assert only({"method": "lora", "use_dora": True}).settings["options"] == {"use_dora": True}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method": "nothing"}, "there is no method 'nothing'; known are random, popularity,"),
        ({"num_experts": 4}, "names no method: write {method: ilora, ..}"),
        ({"method": "lora", "num_experts": 4}, "method lora has no setting 'num_experts'; it has"),
        ({"method": "ilora", "routing_dim": 4}, "method ilora has no setting 'routing_dim'"),
        ({"method": "sasrec", "width": 4}, "method sasrec has no setting 'width'; it has batch_"),
        ({"method": "popularity", "width": 4}, "method popularity has no setting 'width'"),
        ({"method": "ilora", "rank": 8, "r": 2}, "rank=8 and r=2 both set the total rank"),
        ({"method": "lora", "rank": 8, "r": 2}, "rank=8 and r=2 both set the total rank"),
        ({"method": "ilora", "rank": 8, "expert_ranks": [8]}, "both set the total rank"),
        (
            {"method": "ilora", "expert_ranks": 8},
            "expert_ranks=8 must be a list of ints, or `clusters`",
        ),
        (
            {"method": "ilora", "expert_ranks": "clusters", "num_experts": 4},
            "expert_ranks='clusters' finds the number of experts and their ranks, so num_experts=4",
        ),
        ({"method": "ilora", "expert_ranks": "clusters", "r": 4}, "so r=4 has no place: leave it"),
        ({"method": "ilora", "expert_ranks": "clusters", "rank": 1}, "too small for two experts"),
        ({"method": "ilora", "expert_ranks": "clusters", "top_k": 3}, "top_k=3"),
        (
            {"method": "ilora", "expert_ranks": "clusters", "gate_form": "scale"},
            "expert_ranks='clusters': gate_form='scale' has no experts: leave it out",
        ),
        ({"method": "layer-bias", "expert_ranks": "clusters"}, "gate_form='shift' has no experts"),
        ({"method": "gate-hard", "expert_ranks": "clusters"}, "each expert is a cluster's already"),
        ({"method": "k-loras", "expert_ranks": "clusters"}, "each expert is a cluster's already"),
        ({"method": "ilora", "expert_ranks": []}, "expert_ranks=[] must be a list of ints"),
        ({"method": "ilora", "expert_ranks": [1, 2], "num_experts": 3}, "has 2 entries"),
        ({"method": "ilora", "rank": 6}, "adapt.rank=6 is not divisible by adapt.num_experts=4"),
        ({"method": "ilora", "num_experts": 0}, "adapt.num_experts=0 must be at least 1"),
        ({"method": "ilora", "num_experts": "four"}, "num_experts=four must be a whole number"),
        ({"method": "ilora", "r": 2, "num_experts": "4"}, "num_experts='4' must be a positive int"),
        ({"method": "ilora", "r": "2"}, "r='2' must be a positive int"),
        ({"method": "lora", "r": 0}, "r=0 must be a positive int"),
        ({"method": "lora", "rank": True}, "rank=True must be a whole number"),
        ({"method": "lora", "max_steps": None}, "max_steps has no value"),
        ({"method": "lora", "lora_dropout": "much"}, "lora_dropout=much must be a number"),
        ({"method": "lora", "target_modules": 3}, "target_modules=3 must be a list"),
        ({"method": "sasrec", "hidden_size": "wide"}, "hidden_size=wide must be a whole number"),
        ({"method": "sasrec", "dropout": 1.5}, "recommender.dropout=1.5"),
        ({"method": "ilora", "temperature": "hot"}, "temperature='hot' must be a positive number"),
        ({"method": "lora", "bias": "weird"}, "bias='weird' must be one of none, all, lora_only"),
        ({"method": "lora", "rank_pattern": 3}, "rank_pattern=3 must map names of modules"),
        ({"method": "lora", "lora_dropout": 2}, "adapt.lora_dropout=2.0 must be in [0, 1)"),
        ({"method": "lora", "learning_rate": -1}, "adapt.learning_rate=-1.0 must be above 0"),
        ({"method": "ilora", "gate": "hard"}, "takes expert ids, which no recommender gives"),
        ({"method": "ilora", "gate_input": "token"}, "use gate_scope='per_module'"),
        ({"method": "ilora", "use_dora": True}, "use_dora=True cannot be used with iLoRA"),
        ({"method": "ilora", "recommender": "markov"}, "gives scores but no vectors"),
        ({"method": "ilora", "recommender": "popularity"}, "gives scores but no vectors"),
        ({"method": "ilora", "recommender": "wide"}, "is neither an arm nor known"),
        ({"method": "ilora", "recommender": ["sasrec"]}, "must be a name"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_an_impossible_arm_is_refused_before_anything_is_done(entry, message, tmp_path):
    with pytest.raises(ValueError) as refused:
        Pipeline.of(Experiment(arms=[entry], out=str(tmp_path / "run")))
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_no_arms_are_refused():
    with pytest.raises(ValueError, match="name at least one"):
        comparison(Experiment(arms=[]))


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ({"method": "lora"}, {"method": "lora", "name": "again"}, "settings"),
        ({"method": "lora"}, {"method": "lora", "rank": 16}, "settings"),
        ({"method": "lora"}, {"method": "lora", "lora_alpha": 32.0}, "settings"),
        ({"method": "ilora", "r": 2}, {"method": "ilora", "rank": 8}, "settings"),
        ({"method": "sasrec"}, {"method": "sasrec", "name": "again"}, "settings"),
        ({"method": "lora", "name": "a"}, {"method": "ilora", "name": "a"}, "name"),
    ],
)
def test_twins_are_refused(one, other, what):
    with pytest.raises(ValueError, match=f"have the same {what}: leave one out"):
        arms_of(one, other)


# ------------------------------------------------------------------ recommenders as arms


def test_an_arm_may_read_the_vectors_of_a_recommender_that_is_an_arm():
    wide = {"method": "sasrec", "name": "wide", "hidden_size": 32}
    experiment = Experiment(arms=[wide, {"method": "ilora", "recommender": "wide"}])
    found = comparison(experiment)
    assert [arm.name for arm in found.arms][2:] == ["wide", "ilora,recommender=wide"]
    assert list(found.networks) == ["wide"]
    assert found.networks["wide"].config == replace(experiment.recommender, hidden_size=32)


def test_the_recommender_section_names_the_source_of_arms_that_name_none():
    arms = [{"method": "sasrec", "name": "wide", "hidden_size": 32}, {"method": "lora"}]
    found = comparison(Experiment(arms=arms, recommender=RecommenderConfig(name="wide")))
    assert list(found.networks) == ["wide"]
    assert found.arms[-1].settings["recommender"] == "wide"


def test_a_network_that_is_an_arm_is_trained_with_every_seed():
    experiment = Experiment(
        arms=[{"method": "gru4rec", "seed": 5}, {"method": "lora"}, {"method": "markov"}], seeds=3
    )
    found = comparison(experiment)
    seeds = {name: network.seeds for name, network in found.networks.items()}
    assert seeds == {"sasrec": (0, 1, 2), "gru4rec,seed=5": (5, 6, 7)}


def test_a_name_that_is_the_folder_of_another_arms_seed_is_refused():
    arms = [{"method": "sasrec"}, {"method": "sasrec", "name": "sasrec-seed1", "hidden_size": 32}]
    assert len(comparison(Experiment(arms=arms)).networks) == 2
    with pytest.raises(ValueError, match="'sasrec-seed1' is the folder of 'sasrec' with seed 1"):
        comparison(Experiment(arms=arms, seeds=2))


def test_seeds_beyond_the_largest_are_refused():
    last = RecommenderConfig(seed=2**32 - 2)
    methods = AdaptConfig(methods=["sasrec"])
    assert comparison(Experiment(adapt=methods, recommender=last, seeds=2)).networks
    with pytest.raises(ValueError, match="seed=4294967294 with seeds=3 ends at 4294967296"):
        comparison(Experiment(adapt=methods, recommender=last, seeds=3))


# ------------------------------------------------------------------ what determines a training


def fingerprints(experiment: Experiment) -> dict[str, str]:
    """Of each adapter, on the same data, vectors and language model."""
    record = SimpleNamespace(content="vectors")
    names = ("examples.parquet", "items.parquet", "candidates.parquet")
    run = SimpleNamespace(
        experiment=experiment,
        prepared=SimpleNamespace(files=dict.fromkeys(names, "tables")),
        network_record=lambda name: record,
        llm_content="weights",
    )
    return {
        arm.name: arm.method.stage(run, arm, 0).fingerprint
        for arm in comparison(experiment).arms
        if arm.method.is_adapter
    }


BOTH = [{"method": "lora", "name": "one"}, {"method": "ilora", "name": "other"}]


def changed(before: Experiment, after: Experiment) -> set[str]:
    one, other = fingerprints(before), fingerprints(after)
    assert one.keys() == other.keys()
    return {name for name in one if one[name] != other[name]}


def test_another_setting_of_an_arm_makes_that_arm_another_alone():
    before = Experiment(arms=BOTH)
    assert changed(before, Experiment(arms=[{**BOTH[0], "rank": 8}, BOTH[1]])) == {"one"}
    assert changed(before, Experiment(arms=[BOTH[0], {**BOTH[1], "top_k": 2}])) == {"other"}


def test_a_further_arm_leaves_the_others_as_they_are():
    more = fingerprints(Experiment(arms=[*BOTH, {"method": "lora-user-slot"}]))
    assert fingerprints(Experiment(arms=BOTH)).items() <= more.items()


@pytest.mark.parametrize(
    ("changes", "arms"),
    [
        ({"num_experts": 8}, {"other"}),
        ({"gate_learning_rate_scale": 1.0}, {"other"}),
        ({"rank": 8}, {"one", "other"}),
        ({"prompt_history": 3}, {"one", "other"}),
        ({"precision": "bf16"}, {"one", "other"}),
        ({"logging_steps": 7}, {"one", "other"}),
        ({"save_steps": 7}, set()),
        ({"report_to": ["tensorboard"]}, set()),
        ({"methods": ["lora"]}, set()),
    ],
    ids=lambda value: ",".join(sorted(value)),  # one order in all processes
)
def test_a_shared_setting_makes_those_arms_others_that_read_it(changes, arms):
    before = Experiment(arms=BOTH)
    after = Experiment(arms=BOTH, adapt=AdaptConfig(**changes))
    assert asdict(before.adapt) != asdict(after.adapt)
    assert changed(before, after) == arms


def test_a_shared_setting_that_all_arms_replace_changes_nothing():
    arms = [{**entry, "max_steps": 5} for entry in BOTH]
    after = Experiment(arms=arms, adapt=AdaptConfig(max_steps=9))
    assert changed(Experiment(arms=arms), after) == set()


# ------------------------------------------------------------------ names that mislead


@pytest.mark.parametrize("name", ["random", "popularity", "sasrec", "lora"])
def test_an_arm_cannot_have_the_name_of_another_method(name):
    with pytest.raises(ValueError, match="this is another method than the arm's, ilora"):
        arms_of({"method": "ilora", "name": name})


@pytest.mark.parametrize("name", ["", ".", "..", ["x"], {"a": 1}], ids=str)
def test_a_name_that_is_no_folders_name_is_refused(name):
    with pytest.raises(ValueError, match="a name is a word, which becomes a folder's name"):
        arms_of({"method": "sasrec", "name": name})


@pytest.mark.parametrize("method", ["random", "popularity"])
def test_a_baseline_under_another_name_is_not_added_once_more(method):
    found = arms_of({"method": method, "name": "mine"}, {"method": "markov"})
    assert [arm.name for arm in found.values() if arm.method.name == method] == ["mine"]


def test_a_copy_of_a_source_is_refused_with_a_remedy_that_helps():
    copy = {"method": "sasrec", "name": "big"}
    with pytest.raises(ValueError, match="give these `recommender: big`, or leave it out"):
        arms_of(copy, {"method": "lora"})
    assert "sasrec" not in arms_of(copy, {"method": "lora", "recommender": "big"})


def test_an_unknown_recommender_is_refused_also_where_no_arm_reads_its_vectors():
    with pytest.raises(ValueError, match="recommender='nothing' is neither an arm nor known"):
        arms_of({"method": "markov"}, recommender=RecommenderConfig(name="nothing"))


def test_the_name_of_a_folder_is_short_in_bytes_too():
    found = only({"method": "ilora", "name": "日本語" * 60})
    assert len(found.name.encode()) <= 100 and found.name.startswith("日本語")
