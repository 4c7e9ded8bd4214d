"""torch.compile: one graph, the eager numbers, no recompilation for new routing values."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter


def test_one_graph_serves_every_routing_value(llama, ids, z) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(llama, backend=counter, fullgraph=True)
    for sign in (1, -1, 2):
        with torch.no_grad():
            actual = compiled(input_ids=ids, routing_embeds=sign * z).logits
            torch.testing.assert_close(actual, llama(input_ids=ids, routing_embeds=sign * z).logits)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor_trains_to_the_eager_gradients(make_adapted, ids, z) -> None:
    torch._dynamo.reset()
    eager, compiled = make_adapted().train(), make_adapted().train()
    eager(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    torch.compile(compiled)(input_ids=ids, labels=ids, routing_embeds=z).loss.backward()
    for (name, expected), actual in zip(
        eager.named_parameters(), compiled.parameters(), strict=True
    ):
        if expected.grad is not None:
            torch.testing.assert_close(actual.grad, expected.grad, msg=name, rtol=1e-3, atol=1e-5)
