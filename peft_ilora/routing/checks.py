"""Checks of a routing before anything runs: its type, shape, values and rows."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from peft_ilora.config import ILoRAConfig
from peft_ilora.routing.binding import Routing
from peft_ilora.routing.families import REGROUPING


def checked_embeds(routing_embeds: Any, configs: dict[str, ILoRAConfig]) -> Tensor:
    """Validate routing embeddings before anything runs.

    Args:
        routing_embeds: Should be [batch, routing_dim], floating point and finite; with
            `gate="hard"` [batch], int64, expert ids.
        configs: Configurations of the adapters that read it, by adapter name.

    Returns:
        The same tensor.

    Raises:
        TypeError: It is no tensor, or has the wrong dtype.
        ValueError: It has a wrong shape, no rows, NaN or infinity, or names no such expert. Off the
            CPU the values are checked on the device, without waiting for it, and a failure shows
            as a RuntimeError.
    """
    hard = _is_hard(configs)
    wanted = "an int64 tensor of shape [batch]" if hard else "a float tensor [batch, routing_dim]"
    if not isinstance(routing_embeds, Tensor):
        raise TypeError(
            f"routing_embeds is a {type(routing_embeds).__name__}; pass {wanted}, for instance "
            "torch.as_tensor(z)"
        )
    if hard:
        _check_assignment(routing_embeds, configs)
    else:
        _check_vectors(routing_embeds, configs)
    return routing_embeds


def check_has_values(routing_embeds: Any, model: nn.Module) -> None:
    """Refuse a routing on the meta device for a model that is not there itself.

    Raises:
        ValueError: It is one.
    """
    if isinstance(routing_embeds, Tensor) and routing_embeds.is_meta:
        like = next(model.parameters(), None)
        if like is None or not like.is_meta:
            raise ValueError(
                "routing_embeds is on the meta device, where tensors have no values: build it on a "
                "real device, the model's for instance"
            )


def check_fits(embeds: Tensor, configs: dict[str, ILoRAConfig]) -> None:
    """Check a routing's kind and width against active adapters, which may have changed.

    Args:
        embeds: [batch, routing_dim] or [batch].
        configs: Configurations of the adapters that read it.

    Raises:
        TypeError: Vectors for expert ids, or the reverse.
        ValueError: It does not fit all of them.
    """
    if _is_hard(configs):
        _check_integer(embeds)
        return
    _check_float(embeds)
    widths = {name: config.routing_dim for name, config in configs.items()}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"the active adapters differ in routing_dim ({widths}), so no routing_embeds fits all: "
            "activate one of them by set_adapter"
        )
    for name, width in widths.items():
        if embeds.shape[1] != width:
            raise ValueError(
                f"routing_embeds has shape {tuple(embeds.shape)} but adapter {name!r} was made "
                f"with routing_dim={width}: pass [batch, {width}]"
            )


def check_rows(routing: Routing, rows: int) -> None:
    """Check the batch size of a model's input against the routing.

    Raises:
        ValueError: They do not match.
    """
    if rows == routing.rows:
        return
    if routing.owner == "generate":
        raise ValueError(
            f"generate began with {routing.batch} rows of routing_embeds and has made "
            f"{routing.rows} rows of them, but runs a forward of {rows}: {_OTHER_ROWS}"
        )
    raise ValueError(
        f"routing_embeds has {routing.batch} rows but the model's input has {rows}: "
        "give one routing row for each input row"
    )


_OTHER_ROWS = (
    "it drops, doubles or regroups rows in a way that cannot be followed. Generate one row at a "
    "time; or, where the loop is your own (custom_generate), leave routing_embeds out of generate "
    "and pass it to each forward, for instance routing_embeds=torch.cat([z, z]) for [rows, rows]"
)
OTHER_THREAD = (
    "a forward mixes evenly (missing_routing='uniform') while model.routing(...) is open in "
    "another thread, which this thread does not see: pass routing_embeds=z to the call that the "
    "thread makes, or open model.routing(z) in it"
)


def inner_rows_error(module: str, routing: Routing, rows: int) -> ValueError:
    """Return the error of an inner model's `generate` that begins with other rows."""
    return ValueError(
        f"the model hands generate on to its {module} with {rows} rows, where there are "
        f"{routing.rows} of {routing.batch} rows of routing_embeds: {_OTHER_ROWS}"
    )


def regrouping_error(family: str) -> ValueError:
    """Return the error of a family whose `generate` regroups rows."""
    return ValueError(
        f"routing_embeds has several rows, but generate of {family!r} {REGROUPING[family]}, so it "
        "cannot be told whose each row is: generate one row at a time"
    )


def layer_rows_error(routing: Routing, layer: str, shape: tuple[int, ...]) -> ValueError:
    """Return the error of a layer that sees other rows than the forward's."""
    where = f"routing_embeds has {routing.batch} rows but {layer} got an input of shape {shape}"
    if routing.owner == "generate":
        return ValueError(
            f"{where} inside of generate, whose rows it has not, or past the model's forward: "
            "generate one row at a time, or leave this module out by exclude_modules"
        )
    return ValueError(
        f"{where}, which is neither that batch nor a flattening of it: give one routing row for "
        "each input row, run one row at a time, or leave this module out by exclude_modules"
    )


def continuous_batching_error(name: str) -> ValueError:
    """Return the error of continuous batching where requests need a routing."""
    return ValueError(
        f"{name} joins the tokens of all requests in one row and runs them in another thread, "
        "where no request can have its row of routing_embeds: call model.generate(..., "
        "routing_embeds=z) on a padded batch, or merge one instance first "
        "(merge_adapter(routing_embeds=z))"
    )


def _is_hard(configs: dict[str, ILoRAConfig]) -> bool:
    kinds = {name: config.gate == "hard" for name, config in configs.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(
            f"the active adapters {sorted(kinds)} mix gate='hard', which takes expert ids, with "
            "gates that take vectors, so no routing_embeds fits all: activate one by set_adapter"
        )
    return any(kinds.values())


def _check_float(embeds: Tensor) -> None:
    if not embeds.is_floating_point():
        raise TypeError(
            f"routing_embeds has dtype {embeds.dtype}; pass a float tensor, for instance "
            "routing_embeds.float()"
        )


def _check_integer(expert: Tensor) -> None:
    if expert.dtype != torch.int64:
        raise TypeError(
            f"routing_embeds has dtype {expert.dtype} but gate='hard' takes expert ids: pass an "
            "int64 tensor of shape [batch], for instance weights.argmax(dim=-1)"
        )


def _check_vectors(embeds: Tensor, configs: dict[str, ILoRAConfig]) -> None:
    _check_float(embeds)
    shape = tuple(embeds.shape)
    if len(shape) != 2 or shape[0] == 0:
        raise ValueError(
            f"routing_embeds has shape {shape}; pass [batch, routing_dim], one row for each row of "
            "the batch (a single vector: routing_embeds.unsqueeze(0))"
        )
    check_fits(embeds, configs)
    if _checks_on_device(embeds):
        finite = torch.isfinite(embeds).all()
        _assert_on_device(finite, "routing_embeds contains NaN or infinity")
    elif not math.isfinite(embeds.sum().item()):  # or the sum overflows
        rows = (~torch.isfinite(embeds)).any(dim=1).nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"routing_embeds contains NaN or infinity in rows {rows[:10]}")


def _check_assignment(expert: Tensor, configs: dict[str, ILoRAConfig]) -> None:
    _check_integer(expert)
    if expert.dim() != 1 or expert.shape[0] == 0:
        raise ValueError(
            f"routing_embeds has shape {tuple(expert.shape)}; with gate='hard' pass [batch], one "
            "expert id for each row of the batch"
        )
    experts = min(config.num_experts for config in configs.values())
    known = (expert >= 0) & (expert < experts)
    if _checks_on_device(expert):
        _assert_on_device(known.all(), f"routing_embeds names experts outside of 0..{experts - 1}")
    elif not known.all():
        rows = (~known).nonzero().flatten().tolist()
        raise ValueError(
            f"routing_embeds names expert {int(expert[rows[0]])} in row {rows[0]}, but there are "
            f"{experts}: pass ids in 0..{experts - 1}"
        )


def _checks_on_device(tensor: Tensor) -> bool:
    # To read the answer would make the CPU wait for the device, or break a compiled graph.
    return tensor.device.type != "cpu" or torch.compiler.is_compiling()


def _assert_on_device(holds: Tensor, message: str) -> None:
    torch._assert_async(holds, message)  # pyright: ignore[reportPrivateImportUsage]
