"""What can be done wrong with language models and their adapters, for the part of `mistakes.py`.

Each area has a name, words, and commands on the tiny run; the answers are tests in
`test_preflight.py` too, where the language models are folders of their own.
"""

AREAS: list[tuple[str, str, list[str]]] = [
    (
        "Adapters that PEFT would stumble over, or ignore",
        "Refused before any work.",
        [
            f"run tiny.yaml --arms '[{{method: lora, {options}}}]'"
            for options in (
                "use_rslora: maybe",
                "init_lora_weights: nonsense",
                "init_lora_weights: pissa_niter_4",
                "init_lora_weights: eva",
                "eva_config: {}",
                "arrow_config: {}",
                "alora_invocation_tokens: [5]",
                "layer_replication: [[0, 1], [0, 1]]",
                "kasa_config: x",
                "rank_pattern: {q_proj: 0}",
                "modules_to_save: lm_head",
                "layers_to_transform: all",
            )
        ],
    ),
    (
        "Language models, prompts and adapters that do not fit",
        "Found before anything is trained.",
        [
            "run tiny.yaml --adapt.target_modules [q_proj,v_prj]",
            *(
                f"run tiny.yaml --arms '[{{method: lora, {options}}}]'"
                for options in (
                    "modules_to_save: [nope]",
                    "exclude_modules: [nope]",
                    "rank_pattern: {nope: 2}",
                    "layers_to_transform: [0, 9]",
                    "trainable_token_indices: [90000]",
                    "target_modules: [norm]",
                )
            ),
            "run tiny.yaml --evaluate.max_new_tokens 1",
            "run tiny.yaml --llm BESIDE/none",
        ],
    ),
    (
        "Trainings that cannot be right",
        "Found in the training; what was trained before is kept.",
        [
            "run tiny.yaml --adapt.learning_rate 1e30",
        ],
    ),
]
