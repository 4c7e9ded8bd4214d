"""The benchmarks of the plugin, at a size that says nothing about speed."""

import json
from pathlib import Path

import pytest
import torch

from recipes.bench import adapters, forms, generation, mixed
from recipes.bench.measure import difference
from recipes.bench.models import Shape, base_model, ilora, lora

TINY = Shape(hidden_size=32, intermediate_size=48, layers=2, heads=2, vocabulary=50)


@pytest.fixture
def common(tmp_path) -> dict:
    return {"shape": TINY, "rounds": 3, "threads": 1, "out": tmp_path / "found.json"}


def written(common: dict) -> dict:
    found = json.loads(Path(common["out"]).read_text())
    assert found["environment"]["threads"] == 1 and found["config"]["rounds"] == 3
    assert found["environment"]["versions"]["torch"]
    return found


def test_adapters_writes_times_bytes_and_growth(common) -> None:
    figures = adapters.run(adapters.AdaptersConfig(batch=2, length=8, **common))
    found = written(common)
    assert [row["what"] for row in found["figures"]] == [figure.what for figure in figures]
    assert found["notes"]["largest difference of outputs"] < 1e-5
    by_name = {f"{row['what']}, {row['against']}": row for row in found["figures"]}
    step = by_name["training step, dropout 0.1, PEFT LoRA"]
    assert step["low"] <= step["ratio"] <= step["high"] and step["target"] == 0.85
    kept = found["notes"]["bytes kept for backward, dropout 0.1"]
    assert kept["frozen base"] < kept["iLoRA"] < kept["PEFT LoRA"] < kept["reference arithmetic"]
    assert "training step, 64 experts at total rank 64, 1 experts" in by_name


def test_generation_compares_equal_models(common) -> None:
    generation.run(
        generation.GenerationConfig(batch=3, prompt=4, steps=2, overhead_layers=1, **common)
    )
    rows = [row["what"] for row in written(common)["figures"]]
    assert rows == [
        "prefill, batch 3 x 4",
        "prefill, batch 3 x 4, frozen base",
        "decode step, batch 3",
        "decode step, batch 3, frozen base",
        "decode step, batch 1",
        "decode step, batch 1, frozen base",
        "forward with gate and context, 1 layers",
    ]


def test_mixed_gives_every_instance_its_own_lora(common) -> None:
    mixed.run(mixed.MixedConfig(instances=3, prompt=4, **common))
    assert written(common)["notes"]["largest difference of outputs"] < 1e-5


def test_forms_compares_each_form_and_generator_with_softmax(common) -> None:
    sizes = {"batch": 2, "length": 8, "tokens": 2, "steps": 2, "decode_batches": [3]}
    config = forms.FormsConfig(forms=["softmax", "square"], **sizes, **common)
    forms.run(config)
    found = written(common)
    assert found["notes"]["largest difference at the start"] < 1e-5
    targets = {row["what"]: row["target"] for row in found["figures"]}
    sides = ["square, linear", "softmax, trunk", "square, trunk"]
    limits = {
        "training step": [1.02] * 3,
        "bytes kept for backward": [1.02] * 3,
        "decode step of generate, batch 3": [1.05, 1.03, 1.05],
        "decode step of a loop, batch 3": [None] * 3,
    }
    assert targets == {
        f"{what}, {side}": bound
        for what, bounds in limits.items()
        for side, bound in zip(sides, bounds, strict=True)
    }
    assert {row["against"] for row in found["figures"]} == {"softmax, linear"}


@pytest.mark.parametrize("name", ["forms", "gates"])
def test_forms_refuses_an_unknown_form_or_generator(common, name) -> None:
    with pytest.raises(ValueError, match=f"{name}='nothing' must be among"):
        forms.FormsConfig(**{name: ["nothing"]}, **common)


def test_a_benchmark_of_sides_that_differ_is_refused(common, monkeypatch) -> None:
    monkeypatch.setattr(adapters, "lora", lambda *a: lora(*a, dropout=0.0).unload())
    with pytest.raises(ValueError, match="do not compute the same"):
        adapters.run(adapters.AdaptersConfig(batch=2, length=8, growth=False, **common))


def test_a_difference_is_judged_by_the_rounding_of_its_dtype() -> None:
    ones = torch.ones(2, 3)
    assert difference([(ones, ones), (ones, ones + 5e-4)]) == pytest.approx(5e-4, rel=1e-3)
    assert difference([(10 * ones, 10 * ones + 5e-3)]) == pytest.approx(5e-3, rel=1e-3)
    half = ones.bfloat16()
    assert difference([(half, half + 0.0625)]) == 0.0625
    for wrong in (ones + 2e-3, ones * float("nan"), ones * float("inf")):
        with pytest.raises(ValueError, match="do not compute the same"):
            difference([(wrong, ones)])
    with pytest.raises(ValueError, match=r"outputs differ by 0.25, and rounding in torch.bfloat16"):
        difference([(half, half + 0.25)])


@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, of its kernels
def test_models_share_one_base_also_a_quantised_one() -> None:
    first, second = base_model(TINY, "cpu"), base_model(TINY, "cpu")
    assert first.lm_head.weight is second.lm_head.weight and first is not second
    shape = Shape(**vars(TINY) | {"load_in_4bit": True, "dtype": "bfloat16", "hidden_size": 64})
    ids = torch.randint(1, 50, (2, 4))
    routed, plain = ilora(shape, "cpu", gate_init="zeros").eval(), lora(shape, "cpu").eval()
    a = routed(input_ids=ids, routing_embeds=torch.randn(2, 64)).logits
    assert type(routed.base_model.model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    assert torch.allclose(a, plain(input_ids=ids).logits, atol=0.02)
