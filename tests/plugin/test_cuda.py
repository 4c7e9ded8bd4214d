"""What a GPU computes is what the CPU does: every form, both gates, on a model of its own there.

Skipped where there is no CUDA device, as on the machines that run the suite.
"""

import copy

import pytest
import torch
from peft import get_peft_model_state_dict

from peft_ilora import export_lora
from peft_ilora.gating import FORMS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
EXACT = {"atol": 1e-4, "rtol": 1e-3}


@pytest.fixture(params=["linear", "trunk"])
def pair(request, form, make_adapted):
    """The same model on the CPU and on the GPU."""
    model = make_adapted(gate_form=form, gate=request.param, r=2)
    return model, copy.deepcopy(model).cuda()


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def test_logits_gradients_and_generated_tokens_are_the_cpus(pair, ids, z) -> None:
    found = []
    for model in pair:
        device = next(model.parameters()).device
        inputs = {"input_ids": ids.to(device), "routing_embeds": z.to(device)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        outputs = model.train()(**inputs, labels=inputs["input_ids"])
        outputs.loss.backward()
        own = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
        tokens = model.eval().generate(**inputs, max_new_tokens=4, num_beams=2, do_sample=False)
        found.append((outputs.logits.detach().cpu(), own, tokens.cpu()))
    (logits, gradients, tokens), (theirs, own, written) = found
    torch.testing.assert_close(theirs, logits, **EXACT)
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, **EXACT)
    assert torch.equal(written, tokens)


def test_bfloat16_trains_and_an_instance_is_exported(pair, form, ids, z, tmp_path) -> None:
    model = pair[1].train()
    before = {n: p.clone() for n, p in get_peft_model_state_dict(model).items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with torch.autocast("cuda", torch.bfloat16):
        loss = model(input_ids=ids.cuda(), routing_embeds=z.cuda(), labels=ids.cuda()).loss
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    after = get_peft_model_state_dict(model)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    export_lora(model.eval(), z[:1].cuda(), tmp_path / "one")
    assert (tmp_path / "one" / "adapter_model.safetensors").exists()
