"""Forwards that would get another task's routing, or none when a backward runs them again."""

import asyncio
import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint


@torch.no_grad()
def test_a_task_does_not_get_the_routing_of_another(llama, ids, z) -> None:
    ready = asyncio.Event()

    async def routed() -> torch.Tensor:
        with llama.routing(z):
            ready.set()
            await asyncio.sleep(0.01)
            child = asyncio.create_task(inside())  # it begins inside of the block
            return await child

    async def inside() -> torch.Tensor:
        return llama(input_ids=ids).logits

    async def other(**keywords) -> torch.Tensor:
        await ready.wait()
        return llama(input_ids=ids, **keywords).logits

    async def together() -> list:
        calls = routed(), other(), other(routing_embeds=z)
        return await asyncio.gather(*calls, return_exceptions=True)

    own, *others = asyncio.run(together())
    torch.testing.assert_close(own, llama(input_ids=ids, routing_embeds=z).logits)
    for error in others:
        assert isinstance(error, ValueError)
        assert "another task" in str(error)
        assert "pass routing_embeds=z to each call" in str(error)


@torch.no_grad()
def test_tasks_that_pass_the_keyword_need_not_wait_for_each_other(llama, ids, z) -> None:
    async def one(row: int) -> torch.Tensor:
        await asyncio.sleep(0.001 * row)
        return llama(input_ids=ids[row, None], routing_embeds=z[row, None]).logits

    async def together() -> list:
        return await asyncio.gather(*map(one, range(3)))

    expected = llama(input_ids=ids, routing_embeds=z).logits
    torch.testing.assert_close(torch.cat(asyncio.run(together())), expected)


def of_a_block(model, reentrant: bool) -> None:
    mlp = model.base_model.model.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: checkpoint(own, x, use_reentrant=reentrant)


@pytest.mark.support(
    "Adapter lifecycle", "own checkpoints, uniform mixtures and routing together", "refused"
)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_that_lost_its_routing_gives_no_other_gradients(
    make_adapted, ids, z, reentrant
) -> None:
    def grads(model, around: bool) -> list[torch.Tensor]:
        with model.routing(z) if around else contextlib.nullcontext():
            keyword = {} if around else {"routing_embeds": z}
            model(input_ids=ids, labels=ids, use_cache=False, **keyword).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = grads(make_adapted().train(), around=False)
    model = make_adapted(missing_routing="uniform").train()
    of_a_block(model, reentrant)
    with pytest.raises(ValueError, match="gradient_checkpointing_enable.*around both passes"):
        grads(model, around=False)
    model.zero_grad()
    for found, expected in zip(grads(model, around=True), plain, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_block_that_never_had_a_routing_is_run_again_without(
    make_adapted, ids, reentrant
) -> None:
    found = []
    for own in (False, True):
        model = make_adapted(missing_routing="uniform").train()
        if own:
            of_a_block(model, reentrant)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_is_checkpointed_whole_does_not_lose_its_routing(make_adapted, ids, z) -> None:
    model = make_adapted(missing_routing="uniform").train()
    start = torch.ones((), requires_grad=True)
    with model.routing(z):
        value = checkpoint(
            lambda one: model(input_ids=ids, labels=ids).loss * one, start, use_reentrant=True
        )
    with pytest.raises(ValueError, match="around both passes"):
        value.backward()
