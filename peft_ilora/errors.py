"""Errors that more than one place raises."""


def missing_routing_error(adapter: str) -> ValueError:
    """Return the error of a forward without routing."""
    return ValueError(
        f"routing_embeds is missing: adapter {adapter!r} differs by instance. Pass "
        "model(..., routing_embeds=z) or model.generate(..., routing_embeds=z), or run inside "
        "`with model.routing(z):`, with z of shape [batch, routing_dim] (gate='hard': expert ids, "
        "[batch]); ILoRAConfig(missing_routing='uniform') mixes evenly (plain LoRA) instead. "
        "(transformers' Trainer drops the column unless remove_unused_columns=False or the mixin "
        "peft_ilora.RoutingColumns keeps it; a block that calls torch.utils.checkpoint by itself "
        "recomputes without routing: use the model's gradient_checkpointing_enable())"
    )


def merge_error(adapter: str) -> ValueError:
    """Return the error of a merge that names no instance."""
    return ValueError(
        f"adapter {adapter!r} has a weight of its own for each instance, so it cannot be merged as "
        "it is: call model.merge_and_unload(routing_embeds=z) or model.merge_adapter("
        "routing_embeds=z) with one instance's z of shape [1, routing_dim], or "
        "peft_ilora.export_lora(model, z, folder) for a plain LoRA"
    )


def padded_error(layer: str, found: int, expected: int) -> ValueError:
    """Return the error of a layer whose rank something has changed."""
    return ValueError(
        f"lora_A of {layer} has rank {found}, but the adapter was made with a total rank of "
        f"{expected}: prepare_model_for_compiled_hotswap pads it, and hot-swapping is not "
        "supported with iLoRA. Use load_adapter and set_adapter"
    )


def sharded_error(what: str) -> RuntimeError:
    """Return the error of weights that are used where nothing has gathered them."""
    return RuntimeError(
        f"{what} weights are sharded over devices (FSDP2, ZeRO-3) and are whole only while the "
        "model's forward runs. For gate_weights, merging and export save the adapter and load it "
        "in one process; for routing_losses() under FSDP2 wrap the gates on their own "
        "(fsdp_transformer_layer_cls_to_wrap: <the model's layer class>,Gate)"
    )


def lost_routing_error() -> ValueError:
    """Return the error of a checkpointed block that is run again after its routing has ended."""
    return ValueError(
        "the backward pass runs a checkpointed block again without its routing, so it would mix "
        "evenly (missing_routing='uniform') and give other gradients: use "
        "model.gradient_checkpointing_enable(), which remembers the routing, or put "
        "`with model.routing(z):` around both passes"
    )
