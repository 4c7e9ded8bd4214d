"""Trains RecBole's SASRec or GRU4Rec: `python recbole_side.py SEQUENCES.json SETTINGS.json`.

This runs in RecBole's environment and therefore imports nothing of this project. The last line that
it prints is JSON with the `seconds` and `losses` of each epoch, the number of `examples` in an
epoch, the number of `parameters`, and `hits`, which tells for each user whether the held-out item
is among the ten best of the whole catalogue.
"""

# pyright: reportMissingImports=false
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.model.sequential_recommender import GRU4Rec, SASRec  # noqa: E402
from recbole.trainer import Trainer  # noqa: E402
from recbole.utils import init_seed  # noqa: E402
from recbole.utils.case_study import full_sort_topk  # noqa: E402


class TimedTrainer(Trainer):
    """RecBole's trainer, which also records the seconds and the loss of each epoch."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seconds, self.losses = [], []

    def _train_epoch(self, *arguments, **options):
        start = time.perf_counter()
        loss = super()._train_epoch(*arguments, **options)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss)
        return loss


def write_interactions(folder: Path, sequences: list[list[int]]) -> None:
    """Write RecBole's format: a header with types, then one interaction in each line."""
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in enumerate(sequences):
        lines += [f"{user}\t{item}\t{time}" for time, item in enumerate(items)]
    (folder / "bench").mkdir()
    (folder / "bench" / "bench.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sizes(settings: dict) -> dict:
    """The network's sizes under RecBole's names."""
    if settings["model"] == "GRU4Rec":
        return {
            "embedding_size": settings["hidden_size"],
            "hidden_size": settings["state_size"],
            "num_layers": settings["num_layers"],
            "dropout_prob": settings["dropout"],
        }
    return {
        "hidden_size": settings["hidden_size"],
        "inner_size": settings["hidden_size"],
        "n_layers": settings["num_layers"],
        "n_heads": settings["num_heads"],
        "hidden_dropout_prob": settings["dropout"],
        "attn_dropout_prob": settings["dropout"],
        "hidden_act": "relu",
    }


def main(sequences: list[list[int]], settings: dict) -> dict:
    torch.set_num_threads(settings["threads"])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)  # RecBole writes its logs into the working directory
        write_interactions(folder, sequences)
        options = {
            "data_path": temporary,
            "checkpoint_dir": str(folder / "saved"),
            "use_gpu": False,
            "state": "ERROR",
            "show_progress": False,
            "seed": settings["seed"],
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "TIME_FIELD": "timestamp",
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": settings["max_history"],
            **sizes(settings),
            "loss_type": "CE",
            "train_neg_sample_args": None,
            "learner": "adam",
            "learning_rate": settings["learning_rate"],
            "weight_decay": 0.0,
            "train_batch_size": settings["batch_size"],
            "epochs": settings["epochs"],
            "eval_args": {
                "split": {"LS": "test_only"},
                "order": "TO",
                "mode": "full",
                "group_by": "user",
            },
        }
        config = Config(model=settings["model"], dataset="bench", config_dict=options)
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        train, _, test = data_preparation(config, dataset)
        network = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}[settings["model"]]
        model = network(config, train.dataset).to(config["device"])
        trainer = TimedTrainer(config, model)
        trainer.fit(train, saved=False, verbose=False, show_progress=False)
        model.eval()
        users = dataset.token2id("user_id", [str(user) for user in range(len(sequences))])
        hits = []
        for start in range(0, len(sequences), 256):
            part = users[start : start + 256]
            _, best = full_sort_topk(part, model, test, k=10, device=config["device"])
            wanted = [str(items[-1]) for items in sequences[start : start + 256]]
            found = dataset.id2token("item_id", best.cpu())
            hits += [
                want in line for want, line in zip(wanted, found.astype(str).tolist(), strict=True)
            ]
        examples = len(train.dataset)
    return {
        "seconds": trainer.seconds,
        "losses": trainer.losses,
        "examples": examples,
        "hits": [int(hit) for hit in hits],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


if __name__ == "__main__":
    given, chosen = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:])
    sys.argv = sys.argv[:1]  # RecBole also reads the command line
    print(json.dumps(main(given, chosen)))
