"""The fused product against the composed one, and dropout whose mask is drawn twice."""

import itertools

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from peft_ilora import ILoRAConfig
from peft_ilora.fast.dropout import DropMask, draw_mask, rescale
from peft_ilora.fast.function import GatedProduct
from peft_ilora.fast.gradients import GRADIENTS
from peft_ilora.fast.product import fused_product, inferred_product
from peft_ilora.gating.modulation import Affine, Modulation, Scale, Square, tensors_of


def operands(
    dtype: torch.dtype = torch.float64,
    shape: tuple[int, ...] = (3, 4),
    n_in: int = 5,
    n_out: int = 6,
) -> tuple[Tensor, Tensor, nn.Linear, nn.Linear, Tensor]:
    torch.manual_seed(0)
    lora_a, lora_b = nn.Linear(n_in, 2, bias=False), nn.Linear(2, n_out, bias=False)
    scale = torch.rand(shape[0], *[1] * (len(shape) - 1), 2)
    result, x = torch.randn(*shape, n_out), torch.randn(*shape, n_in)
    made = (result, x, lora_a, lora_b, scale)
    return tuple(part.to(dtype) for part in made)  # type: ignore[return-value]


def fused(
    base: Tensor | nn.Module,
    x: Tensor,
    lora_a: nn.Linear,
    lora_b: nn.Linear,
    scale: Tensor,
    p: float = 0.0,
) -> Tensor:
    return fused_product(base, x, [lora_a.weight], lora_b.weight, Scale(scale), p)[0]


def modulations(leading: tuple[int, ...], rank: int = 2) -> dict[str, Modulation]:
    """Of every class, with what rows share, what each token has, and what all share."""
    row, ones = leading[:1], [1] * (len(leading) - 1)

    def values(*shape: int) -> Tensor:
        return torch.rand(shape).double()

    return {
        "scale of rows": Scale(values(*row, *ones, rank)),
        "scale of tokens": Scale(values(*leading, rank)),
        "scale of all": Scale(values(rank)),
        "affine of rows": Affine(values(*row, *ones, rank), values(*row, *ones, rank)),
        "affine of tokens": Affine(values(*leading, rank), values(*leading, rank)),
        "shift of rows": Affine(values(1), values(*row, *ones, rank)),
        "shift of all": Affine(values(1), values(rank)),
        "square of rows": Square(values(*row, *ones, rank, rank)),
        "square of tokens": Square(values(*leading, rank, rank)),
        "square of all": Square(values(rank, rank)),
    }


NAMES = list(modulations((2, 2)))


def modulated(modulation: Modulation, hidden: Tensor) -> Tensor:
    """The definition, token by token."""
    rank, leading = hidden.shape[-1], hidden.shape[:-1]
    parts = [
        part.expand(*leading, *part.shape[-2:] if type(modulation) is Square else (rank,))
        for part in tensors_of(modulation)
    ]
    made = torch.empty(hidden.shape, dtype=hidden.dtype)
    for at in itertools.product(*map(range, leading)):
        first, *offsets = (part[at] for part in parts)
        made[at] = torch.mv(first, hidden[at]) if type(modulation) is Square else first * hidden[at]
        made[at] += sum(offsets)
    return made


@pytest.mark.parametrize("leading", [(3,), (3, 4), (3, 2, 4), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_modulation_is_its_equation_for_each_token(leading, name) -> None:
    torch.manual_seed(0)
    modulation, hidden = modulations(leading)[name], torch.randn(*leading, 2).double()
    assert torch.allclose(modulation(hidden), modulated(modulation, hidden), atol=1e-14)


@pytest.mark.parametrize("leading", [(3,), (2, 3), (2, 2, 3), (0, 4)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_a_modulation_are_autograds(leading, name) -> None:
    torch.manual_seed(0)
    modulation, hidden = modulations(leading)[name], torch.randn(*leading, 2).double()
    leaves = [hidden, *tensors_of(modulation)]
    for leaf in leaves:
        leaf.requires_grad_()
    out = modulation(hidden)
    grad = torch.randn_like(out)
    expected = torch.autograd.grad(out, leaves, grad)
    gradients = GRADIENTS[type(modulation)]
    of_hidden, of_tensors = gradients(modulation, hidden, grad, [True] * len(leaves))
    for got, wanted in zip((of_hidden, *of_tensors), expected, strict=True):
        assert got is not None and got.shape == wanted.shape
        assert torch.allclose(got, wanted, atol=1e-14)
    assert gradients(modulation, hidden, grad, [False] * 2)[1] == (None,) * (len(leaves) - 1)


MASKS = {"no dropout": None, "dropout": DropMask(3, 20_000)}
WAYS = [*itertools.product(MASKS, ("output", "weight"), ("own", "shared", "given"))]
CASES = [("scale of rows", *way) for way in WAYS]
CASES += [(name, "dropout", "weight", "shared") for name in NAMES]
CASES += [(name, "no dropout", "output", "given") for name in NAMES]


@pytest.mark.parametrize(
    ("modulation_of", "dropout", "base_of", "coordinates"), dict.fromkeys(CASES)
)
def test_gradients_are_those_of_finite_differences_also_the_second_ones(
    modulation_of, dropout, base_of, coordinates
) -> None:
    mask, rows = MASKS[dropout], (2, 2)
    n_in, n_out = 3, 2  # second derivatives take time by the square
    result, x, lora_a, lora_b, _ = operands(shape=rows, n_in=n_in, n_out=n_out)
    assert mask is None or 0 < (mask.kept(x) == 0).sum() < x.numel()
    weight, bias = torch.randn(n_out, n_in).double(), torch.randn(n_out).double()
    others = [torch.randn(3, n_in).double(), torch.randn(1, n_in).double()]
    downs = {"own": [lora_a.weight], "shared": [lora_a.weight, *others], "given": []}[coordinates]
    modulation = modulations(rows)[modulation_of]
    leaves = {
        "output": result if base_of == "output" else None,
        "x": x,
        "given": torch.randn(*rows, 2).double() if coordinates == "given" else None,
        "b": lora_b.weight,
    }
    leaves |= {f"rest {i}": part for i, part in enumerate((*tensors_of(modulation), *downs))}
    leaves = {
        name: leaf.detach().clone().requires_grad_()
        for name, leaf in leaves.items()
        if leaf is not None and not (name == "x" and coordinates == "given" and base_of == "output")
    }

    def product(*tensors: Tensor) -> tuple[Tensor, ...]:
        of = dict(zip(leaves, tensors, strict=True))
        frozen = (None, None) if base_of == "output" else (weight, bias)
        rest = [tensor for name, tensor in of.items() if name.startswith("rest")]
        return GatedProduct.apply(
            of.get("output"),
            of.get("x", x),
            *frozen,
            of.get("given"),
            of["b"],
            mask,
            type(modulation),
            *rest,
        )

    assert torch.autograd.gradcheck(product, tuple(leaves.values()))
    assert torch.autograd.gradgradcheck(product, tuple(leaves.values()))


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 2, 4), (0, 4)], ids=str)
@pytest.mark.parametrize("base_of", ["output", "frozen layer", "trained layer"])
def test_the_fused_product_is_the_composed_one(shape, base_of) -> None:
    found = []
    for form in ("fused", "inferred", "composed"):
        result, x, lora_a, lora_b, scale = operands(shape=shape)
        layer = nn.Linear(5, 6).double().requires_grad_(base_of == "trained layer")
        nn.init.constant_(layer.weight, 0.3)
        nn.init.constant_(layer.bias, 0.1)
        base = result if base_of == "output" else layer
        leaves = [t.requires_grad_() for t in (result, x, scale)]
        leaves += [lora_a.weight, lora_b.weight, *layer.parameters()]
        if form == "inferred":
            with torch.no_grad():
                out = inferred_product(base, x, lora_a.weight, lora_b.weight, Scale(scale))
            found.append([out])
            continue
        if form == "fused":
            out = fused(base, x, lora_a, lora_b, scale)
        else:
            output = base if isinstance(base, Tensor) else base(x)
            out = output + lora_b(lora_a(x) * scale)
        out.square().sum().backward()
        found.append([out, *(t.grad for t in leaves)])
    for one, composed in zip(found[0], found[2], strict=True):
        assert (one is None) == (composed is None)
        assert one is None or torch.allclose(one, composed, atol=1e-12)
    assert torch.allclose(found[1][0], found[2][0], atol=1e-12)


def test_gradients_of_each_example_come_by_vmap_as_they_do_one_by_one(randomise) -> None:
    config = ILoRAConfig(routing_dim=8, target_modules=["0"], missing_routing="uniform")
    model = randomise(get_peft_model(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)), config))
    name = next(name for name, _ in model.named_parameters() if "lora_A" in name)
    weight, rows = dict(model.named_parameters())[name].detach(), torch.randn(3, 5)

    def loss(a: Tensor, row: Tensor) -> Tensor:
        return torch.func.functional_call(model, {name: a}, (row[None],)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, rows)
    for i, row in enumerate(rows):
        leaf = weight.clone().requires_grad_()
        loss(leaf, row).backward()
        assert torch.allclose(got[i], leaf.grad, atol=1e-6)


@pytest.mark.parametrize("base_of", ["output", "weight"])
def test_the_output_may_be_added_to_in_place_as_falcon_does(base_of) -> None:
    result, x, lora_a, lora_b, scale = operands()
    base = result if base_of == "output" else nn.Linear(5, 6).double().requires_grad_(False)
    out = fused(base, x, lora_a, lora_b, scale)
    out += x.sum()
    out.sum().backward()
    assert lora_b.weight.grad.any()


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_expectation(p) -> None:
    torch.manual_seed(0)
    mask = draw_mask(p)
    assert mask is not None
    ones = torch.ones(1000, 1001)
    kept = mask.kept(ones) * rescale(p)
    share = (kept == 0).float().mean().item()
    assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 1e6) ** 0.5)
    assert kept.mean().item() == pytest.approx(1, abs=0.005)
    # neighbours are independent: four share one random word
    pairs = (kept[:, :-1] == 0) & (kept[:, 1:] == 0)
    assert pairs.float().mean().item() == pytest.approx(p * p, abs=0.002)


def test_a_mask_is_the_same_at_every_call_and_another_at_every_draw() -> None:
    torch.manual_seed(0)
    x = torch.ones(7, 9)
    first, second = draw_mask(0.5), draw_mask(0.5)
    assert torch.equal(first.kept(x), first.kept(x))
    assert not torch.equal(first.kept(x), second.kept(x))
    torch.manual_seed(0)
    assert draw_mask(0.5) == first


def test_nothing_is_drawn_without_dropout_and_something_always_survives() -> None:
    state = torch.get_rng_state()
    assert draw_mask(0.0) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert draw_mask(0.9999999).kept(torch.ones(400_000)).any()


def test_dropout_acts_in_training_only_and_scales_the_update(make_adapted, ids, z) -> None:
    model, clean = make_adapted(lora_dropout=0.4), make_adapted()
    expected = clean(input_ids=ids, routing_embeds=z).logits
    assert torch.equal(model(input_ids=ids, routing_embeds=z).logits, expected)
    model.train()
    torch.manual_seed(0)
    first = model(input_ids=ids, routing_embeds=z).logits
    with torch.no_grad():
        torch.manual_seed(0)
        again = model(input_ids=ids, routing_embeds=z).logits
    assert torch.equal(first, again)  # with and without gradients: the same elements
    assert not torch.allclose(first, expected, atol=1e-4)


def kept_bytes(dtype: torch.dtype, dropout: float, modulation: Modulation) -> int:
    result = torch.randn(2, 300, 6)
    lora_a, lora_b = nn.Linear(64, 4, bias=False), nn.Linear(4, 6, bias=False)
    x = torch.randn(2, 300, 64).to(dtype)
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        downs = [lora_a.weight]
        fused_product(result.to(dtype), x, downs, lora_b.weight, modulation, dropout)
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_input_is_kept_once_as_it_came_whatever_modulates(dtype, dropout) -> None:
    x_bytes = 2 * 300 * 64 * dtype.itemsize
    scale, *others = (
        kept_bytes(dtype, dropout, modulation)
        for modulation in (
            Scale(torch.rand(2, 1, 4)),
            Affine(torch.rand(2, 1, 4), torch.rand(2, 1, 4)),
            Square(torch.rand(2, 1, 4, 4)),
        )
    )
    assert x_bytes <= scale < x_bytes + 20_000
    assert all(scale < other < scale + 200 for other in others)  # the modulation itself


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_base_adds_in_float32_as_peft_does(make_llama, ids, z, dtype) -> None:
    from peft import LoraConfig, get_peft_model

    from peft_ilora import ILoRAConfig

    targets = ["q_proj", "v_proj", "down_proj"]
    routed = get_peft_model(
        make_llama().to(dtype),
        ILoRAConfig(routing_dim=8, gate_init="zeros", target_modules=targets),
    ).eval()
    plain = get_peft_model(
        make_llama().to(dtype), LoraConfig(r=16, lora_alpha=16, target_modules=targets)
    ).eval()
    state = routed.state_dict()
    for name, value in state.items():
        if "lora_B" in name:
            nn.init.normal_(value, std=0.1)
    plain.load_state_dict({k: v for k, v in state.items() if "ilora_gate" not in k})
    got = routed(input_ids=ids, routing_embeds=z).logits
    assert got.dtype == dtype
    assert torch.allclose(got, plain(input_ids=ids).logits, atol=0.02, rtol=0.02)


def test_a_training_curve_is_plain_loras(make_llama, ids, z) -> None:
    from peft import LoraConfig, get_peft_model

    from peft_ilora import ILoRAConfig

    targets = ["q_proj", "v_proj", "down_proj"]
    config = ILoRAConfig(routing_dim=8, gate_init="zeros", target_modules=targets)
    routed = get_peft_model(make_llama(), config).train()
    plain = get_peft_model(make_llama(), LoraConfig(r=16, lora_alpha=16, target_modules=targets))
    plain.load_state_dict({k: v for k, v in routed.state_dict().items() if "ilora_gate" not in k})
    curves = []
    for model, extra in ((routed, {"routing_embeds": z}), (plain.train(), {})):
        experts = [p for n, p in model.named_parameters() if ".lora_" in n]
        optimiser, curve = torch.optim.AdamW(experts, lr=1e-2), []
        for _ in range(12):
            optimiser.zero_grad()
            loss = model(input_ids=ids, labels=ids, **extra).loss
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert curves[0][-1] < curves[0][0] - 0.2


@pytest.mark.parametrize("adapter", [torch.bfloat16, torch.float16], ids=str)
def test_an_adapter_of_lower_precision_does_not_round_the_base(adapter) -> None:
    result, x, lora_a, lora_b, scale = operands(torch.float32)
    lora_a, lora_b, scale = lora_a.to(adapter), lora_b.to(adapter), scale.to(adapter)
    nn.init.zeros_(lora_b.weight)
    result = result + 1e6
    for grad in (True, False):
        if grad:
            got = fused(result, x, lora_a, lora_b, scale)
        else:
            with torch.no_grad():
                got = inferred_product(result, x, lora_a.weight, lora_b.weight, Scale(scale))
        assert torch.equal(got, result)


def test_a_mask_is_drawn_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert draw_mask(0.5) is not None
