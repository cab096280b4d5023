"""Layers of vector-quantize-pytorch, from their state dicts and the arguments that they were built with.

A state dict does not say how a layer searches, splits or projects. The arguments do, so they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_vq.modeling.base_quantizer_vq import Quantizer
from hf_vq.modeling.codebook_vq import Codebook
from hf_vq.modeling.finite_scalar_vq import FiniteScalarQuant
from hf_vq.modeling.group_vq import GroupVectorQuant
from hf_vq.modeling.projected_quant_vq import ProjectedQuant
from hf_vq.modeling.quantizer_vq import VectorQuant
from hf_vq.modeling.residual_vq import ResidualVectorQuant
from hf_vq.utils.text import shorten

_UNIT_TOLERANCE = 1e-4

# Arguments that change ids or values in evaluation: the values that can be held, and why others cannot.
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "affine_param": ((False,), "its statistics follow every input, in evaluation too"),
    "vq_bridge": ((None,), "a network makes its codes"),
    "implicit_neural_codebook": ((False,), "networks make its codes"),
    "diveq": ((False,), "it adds noise to its output, in evaluation too"),
    "beam_size": ((None, 1), "a beam search finds other ids than level by level"),
    "eval_beam_size": ((None, 1), "a beam search finds other ids than level by level"),
    "num_codebooks": ((1,), "a layer for each slice of the channels holds it"),
    "preserve_symmetry": ((False,), "its levels lie elsewhere"),
    "bound_hard_clamp": ((False,), "it bounds channels by a clamp, not by tanh"),
    "orthogonal_rotation": ((False,), "its codes are rotated"),
}
# Arguments that matter in training alone and have no counterpart, with their defaults.
_TRAINING_ONLY: dict[str, Any] = {
    "threshold_ema_dead_code": 0,
    "commitment_use_cross_entropy_loss": False,
    "orthogonal_reg_weight": 0.0,
    "orthogonal_reg_active_codes_only": False,
    "orthogonal_reg_max_codes": None,
    "codebook_diversity_loss_weight": 0.0,
    "codebook_diversity_temperature": 100.0,
    "stochastic_sample_codes": False,
    "sample_codebook_temp": 1.0,
    "straight_through": False,
    "directional_reparam_variance": 5e-3,
    "manual_ema_update": False,
    "in_place_codebook_optimizer": None,
    "manual_in_place_optimizer_update": False,
    "sync_update_v": 0.0,
    "route_gradients_to_input": True,
    "return_zeros_for_masked_padding": True,
    "quant_grad_frac": 0.0,
    "quantize_dropout_cutoff_index": 0,
    "quantize_dropout_multiple_of": 1,
    "noise_dropout": 0.0,
}
# Arguments that make no difference here: how means and sums are computed, what is cached, what is returned.
_WITHOUT_EFFECT = (
    "eps kmeans_init kmeans_iters sync_kmeans sync_codebook sync_affine_param affine_param_batch_decay "
    "affine_param_codebook_decay mlp_kwargs beam_score_quantizer_weights keep_num_codebooks_dim scale allowed_dtypes "
    "return_indices force_quantization_f32 projection_has_bias layernorm_after_project_in"
).split()
_LAYOUT = {"channel_last": True, "accept_image_fmap": False, "accept_3d_fmap": False, "channel_first": False}
_CODEBOOK = {
    "dim": None,
    "codebook_size": None,
    "codebook_dim": None,
    "heads": 1,
    "separate_codebook_per_head": False,
    "use_cosine_sim": False,
    "decay": 0.8,
    "ema_update": None,
    "learnable_codebook": None,
    "rotation_trick": None,
    "directional_reparam": False,
    "commitment_weight": 1.0,
    "freeze_codebook": False,
}
_RESIDUAL = {"num_quantizers": None, "shared_codebook": False, "quantize_dropout": False}
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "VectorQuantize": _CODEBOOK,
    "ResidualVQ": _CODEBOOK | _RESIDUAL,
    "FSQ": {"levels": None, "dim": None},
}


@dataclass
class LayerConversion:
    """A converted layer.

    Attributes:
        layer: The layer, in eval mode and float32; within a `ProjectedQuant` if it has projections.
        notes: What is another in training, one sentence for each.
    """

    layer: Quantizer | ProjectedQuant
    notes: list[str] = field(default_factory=list)


@torch.no_grad()
def convert_vector_quantize_pytorch(
    class_name: str,
    state_dict: Mapping[str, torch.Tensor],
    *,
    prefix: str = "",
    axis: int | None = None,
    settings: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> LayerConversion:
    """Builds the layer that a layer of vector-quantize-pytorch was.

    In evaluation it gives the same ids and the same quantized vectors. Ids of separate codebooks (of heads or levels)
    count on from one codebook to the next here: those of codebook g are higher by `g * codebook_size`.

    Args:
        class_name: "VectorQuantize", "ResidualVQ" or "FSQ".
        state_dict: The layer's `state_dict()`, or that of a model around it.
        prefix: What the names in `state_dict` begin with, such as "quantizer.".
        axis: The axis of the features, our layers' `dim`. None asks the arguments: 1 for images and with
            `channel_last=False`, else -1. FSQ takes its axis from its inputs, so there it has to be said.
        settings: Arguments of our layer for the training to come, such as `{"replace_freq": 20}`.
        **arguments: Those that the layer was built with. Left out ones have the defaults of vector-quantize-pytorch.

    Returns:
        The layer, and what is another in training.

    Raises:
        ValueError: an argument is not known, is missing, contradicts the state dict or makes a layer that ours cannot
            hold; the state dict is another layer's.
    """
    if class_name not in _ARGUMENTS:
        raise ValueError(f"`class_name` must be one of {shorten(_ARGUMENTS, quoted=True)}, got {class_name!r}.")
    given = _checked(class_name, arguments)
    state = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    notes = [
        f"`{name}={arguments[name]!r}` has no counterpart: it changes training alone."
        for name, default in _TRAINING_ONLY.items()
        if arguments.get(name, default) != default
    ]
    if axis is None:
        if class_name == "FSQ" and not given["channel_first"]:
            raise ValueError(
                "FSQ takes the features of images from axis 1 and of sequences from the last one. Say which inputs "
                "the layer will get: `axis=1` or `axis=-1`."
            )
        is_first = not given["channel_last"] or any(given[name] for name in list(_LAYOUT)[1:])
        axis = 1 if is_first else -1
    convert = {"VectorQuantize": _vector, "ResidualVQ": _residual, "FSQ": _fsq}[class_name]
    layer = convert(state, given, axis, dict(settings or {}), notes)
    if given.get("freeze_codebook"):
        (layer if isinstance(layer, Quantizer) else layer.quantizer).freeze()
    return LayerConversion(layer.eval(), notes)


def _checked(class_name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with their defaults."""
    own = _ARGUMENTS[class_name] | _LAYOUT
    unknown = sorted(set(arguments) - {*own, *_REFUSED, *_TRAINING_ONLY, *_WITHOUT_EFFECT})
    if unknown:
        raise ValueError(f"{class_name} has no argument {shorten(unknown, quoted=True)} that is known here.")
    for name, (held, why) in _REFUSED.items():
        if arguments.get(name, held[0]) not in held:
            raise ValueError(f"`{name}={arguments[name]!r}` cannot be converted: {why}. Only {held[0]!r} can.")
    needed = [name for name in ("dim", "codebook_size", "levels") if name in own and arguments.get(name) is None]
    if class_name == "FSQ":
        needed = [name for name in needed if name != "dim"]
    if needed:
        raise ValueError(
            f"A state dict does not say everything. Pass the arguments that {class_name} was built with, at least "
            f"{shorten(needed, quoted=True)}."
        )
    return own | {name: value for name, value in arguments.items() if name in own}


def _vector(
    state: dict[str, torch.Tensor], given: dict[str, Any], axis: int, settings: dict[str, Any], notes: list[str]
) -> Quantizer | ProjectedQuant:
    heads, size = given["heads"], given["codebook_size"]
    code_dim = given["codebook_dim"] or given["dim"]
    separate = given["separate_codebook_per_head"] and heads > 1
    state = dict(state)
    projections = _take_projections(state, given["dim"], code_dim * heads)
    books = _take_codebook(state, "_codebook.", (heads if separate else 1, size, code_dim))
    _require_nothing_left(state)
    ours = _training_settings(given, notes) | settings
    if given["use_cosine_sim"]:
        _require_unit_norm(books["embed"])
        ours = {"norm": "l2", "cb_norm": "l2"} | ours
    layer: VectorQuant
    if heads == 1:
        layer = VectorQuant(code_dim, size, dim=axis, **ours)
    else:
        num_codes = size * heads if separate else size
        layer = GroupVectorQuant(code_dim * heads, num_codes, heads, not separate, dim=axis, **ours)
    _fill(layer.codebook, books)
    return _between(layer, projections)


def _residual(
    state: dict[str, torch.Tensor], given: dict[str, Any], axis: int, settings: dict[str, Any], notes: list[str]
) -> Quantizer | ProjectedQuant:
    sizes = given["codebook_size"]
    levels = given["num_quantizers"] or (len(sizes) if isinstance(sizes, (tuple, list)) else None)
    if levels is None:
        raise ValueError("A state dict does not say everything. Pass `num_quantizers` as well.")
    sizes = tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,) * levels
    if len(set(sizes)) > 1 or len(sizes) != levels:
        raise ValueError(
            f"`codebook_size={sizes}` cannot be converted: its levels must have the same number of codes."
        )
    if given["heads"] != 1:
        raise ValueError(f"ResidualVQ has one head, got `heads={given['heads']}`.")
    code_dim, shared = given["codebook_dim"] or given["dim"], given["shared_codebook"]
    state = dict(state)
    projections = _take_projections(state, given["dim"], code_dim)
    found = [_take_codebook(state, f"layers.{level}._codebook.", (1, sizes[0], code_dim)) for level in range(levels)]
    _require_nothing_left(state)
    if shared and any(not torch.equal(book["embed"], found[0]["embed"]) for book in found):
        raise ValueError("`shared_codebook=True`, but the levels in the state dict have different codes.")
    books = found[0] if shared else {name: torch.cat([book[name] for book in found]) for name in found[0]}
    ours = _training_settings(given, notes) | settings
    if given["use_cosine_sim"]:
        _require_unit_norm(books["embed"])
        # Each level takes the direction of what is left over, and the nearest code of unit norm is the same one.
        ours = {"cb_norm": "l2"} | ours
        notes.append("Averages of codes are those of the residuals here, not of their directions.")
    if given["quantize_dropout"] and levels > 1:
        ours = {"quantizer_dropout": 1.0} | ours
    num_codes = sizes[0] if shared else sizes[0] * levels
    layer = ResidualVectorQuant(code_dim, num_codes, levels, shared, dim=axis, **ours)
    _fill(layer.codebook, books)
    return _between(layer, projections)


def _fsq(
    state: dict[str, torch.Tensor], given: dict[str, Any], axis: int, settings: dict[str, Any], notes: list[str]
) -> Quantizer | ProjectedQuant:
    levels = list(given["levels"])
    state = dict(state)
    projections = _take_projections(state, given["dim"] or len(levels), len(levels))
    _require_nothing_left(state)
    return _between(FiniteScalarQuant(levels=levels, dim=axis, **settings), projections)


def _training_settings(given: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Arguments of our layer that train as theirs does, as far as there are such."""
    learns = given["directional_reparam"] if given["learnable_codebook"] is None else given["learnable_codebook"]
    averages = not learns and given["ema_update"] is not False
    rotates = given["dim"] > 1 if given["rotation_trick"] is None else given["rotation_trick"]
    estimator = "diveq" if given["directional_reparam"] else "rotation" if rotates else "ste"
    weight = given["commitment_weight"]
    # Their loss is the mean squared difference: of encoder and codes together if these learn by gradient.
    share, alpha = (0.5, 2 * weight) if learns else (0.0, weight)
    if given["directional_reparam"]:
        notes.append("Leave `out.loss` out: theirs has no loss.")
    else:
        notes.append(f"Add `{alpha:g} * out.loss` to your loss: theirs holds `commitment_weight={weight:g}`.")
    ours = {"beta": share, "gradient_estimator": estimator}
    if averages:
        return ours | {"codebook_update": "ema", "codebook_decay": given["decay"]}
    if not learns:
        notes.append("Neither averages nor a gradient moved the codes: `freeze()` keeps them so.")
    return ours


def _take_projections(state: dict[str, torch.Tensor], outer: int, inner: int) -> tuple[nn.Module, nn.Module] | None:
    """Takes `project_in` and `project_out` out of the state; None if the sizes need none."""
    taken = {name: state.pop(name) for name in list(state) if name.startswith(("project_in.", "project_out."))}
    if outer == inner and not taken:
        return None
    has_norm = "project_in.0.weight" in taken
    linear = nn.Linear(outer, inner, bias=f"project_in.{'0.' if has_norm else ''}bias" in taken)
    modules = nn.ModuleDict(
        {
            "project_in": nn.Sequential(linear, nn.LayerNorm(inner)) if has_norm else linear,
            "project_out": nn.Linear(inner, outer, bias="project_out.bias" in taken),
        }
    )
    _require_shapes(taken, {name: tuple(value.shape) for name, value in modules.state_dict().items()})
    modules.load_state_dict({name: value.float() for name, value in taken.items()})
    return modules["project_in"], modules["project_out"]


def _take_codebook(
    state: dict[str, torch.Tensor], prefix: str, shape: tuple[int, int, int]
) -> dict[str, torch.Tensor]:
    """Takes a codebook out of the state: `embed` and `embed_avg` `(codes, size)`, `cluster_size` `(codes,)`."""
    expected = {"embed": shape, "embed_avg": shape, "cluster_size": shape[:2]}
    taken = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    started = taken.pop("initted", None)
    if not taken:
        names = sorted(name for name in state if name.endswith("_codebook.embed"))
        where = f" It has {shorten(names, 3, quoted=True)}: pass what stands before as `prefix`." if names else ""
        raise ValueError(f"The state dict has no '{prefix}embed'.{where}")
    _require_shapes(taken, expected, prefix)
    if started is not None and not bool(started.any()):
        raise ValueError(
            "This layer waits for its first batch, to initialize its codes by k-means. There is nothing to convert: "
            "build `VectorQuant(..., kmeans_init=True)`."
        )
    return {name: value.float().flatten(0, 1) for name, value in taken.items()}


def _require_shapes(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], prefix: str = ""
) -> None:
    problems = [f"missing: '{prefix}{name}'" for name in expected if name not in found]
    for name, value in found.items():
        if name not in expected:
            problems.append(f"not known: '{prefix}{name}'")
        elif tuple(value.shape) != tuple(expected[name]):
            problems.append(f"'{prefix}{name}' has the shape {tuple(value.shape)}, expected {tuple(expected[name])}")
    if problems:
        raise ValueError(
            "The state dict does not fit the arguments. Pass those that the layer was built with.\n"
            + "\n".join(problems)
        )


def _require_nothing_left(state: Mapping[str, torch.Tensor]) -> None:
    _require_shapes(state, {})


def _require_unit_norm(codes: torch.Tensor) -> None:
    off = (codes.norm(dim=-1) - 1).abs().max().item()
    if off > _UNIT_TOLERANCE:
        raise ValueError(
            "`use_cosine_sim=True` cannot be converted with codes that are not of unit norm, here off by up to "
            f"{off:.2g}: the largest product is not that of the nearest code. Orthogonal regularization makes "
            "such codes."
        )


def _fill(codebook: Codebook, books: Mapping[str, torch.Tensor]) -> None:
    codebook.weight.copy_(books["embed"])
    codebook.initialized.fill_(True)
    if codebook.ema_count is not None and codebook.ema_sum is not None:
        codebook.ema_count.copy_(books["cluster_size"])
        codebook.ema_sum.copy_(books["embed_avg"])


def _between(layer: Quantizer, projections: tuple[nn.Module, nn.Module] | None) -> Quantizer | ProjectedQuant:
    return layer if projections is None else ProjectedQuant(layer, *projections)
