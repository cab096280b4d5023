"""The model that a run starts from: published, converted or trained here, and fitted to what the run is told."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_vq.hub.folders import STATE_FILE
from hf_vq.hub.loading import load_model
from hf_vq.hub.repository import fetch_file
from hf_vq.hub.samples import local_model
from hf_vq.modeling.base_quantizer_vq import get_vq_layers
from hf_vq.modeling.configuration_quantizer_vq import QuantizerConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.quantizer_vq import VectorQuant
from hf_vq.training.arguments import GeneratorTrainingArguments
from hf_vq.training.base_arguments import BaseTrainingArguments
from hf_vq.training.generator_data import load_run_tokenizer
from hf_vq.utils.hashes import weights_sha256
from hf_vq.utils.processes import on_every_process, processes_of_run
from hf_vq.utils.text import FINAL_FOLDER, is_hub_id, plain_id, public_name, shorten

# What may begin as new: what belongs to the classes of the images, and their size.
_OF_CLASSES = ("classifier.", "transformer.class_embedding.")


@dataclass
class StartingPoint:
    """A model to start from.

    Attributes:
        model: The model.
        processor: Its image processor.
        name: Folder or Hub id.
        commit: The commit of a Hub id.
        state_file: Its training state, if that was shipped beside it.
    """

    model: Any
    processor: VQImageProcessor
    name: str
    commit: str | None
    state_file: Path | None

    def config(self, fields: dict[str, Any]) -> Any:
        """The model's configuration with other values of some fields, and what follows from these.

        Raises:
            ValueError: The range of the pixels would be another, or its quantizer does not use a field.
        """
        own = self.model.config
        values = {name: value for name, value in own.to_dict().items() if name not in ("architectures", "dtype")}
        if "pixel_range" in fields and list(map(float, fields["pixel_range"])) != list(own.pixel_range):
            raise ValueError(
                f"'{self.name}' takes and gives pixels in {own.pixel_range}, which its weights cannot change: leave "
                "pixel_range out."
            )
        size = fields.get("image_size", own_size := values.get("image_size"))
        if own_size and size != own_size and values.get("attn_resolutions") and "attn_resolutions" not in fields:
            fields = {**fields, "attn_resolutions": [side * size // own_size for side in values["attn_resolutions"]]}
        if "levels" in fields and "num_codes" not in fields:
            values.pop("num_codes")  # it is the product of the levels
        config = type(own).from_dict({**values, **fields})
        if isinstance(config, QuantizerConfig):
            config.refuse_unused(fields)
        config._name_or_path = ""  # it would publish where somebody's files lie
        return config

    def own_fields(self) -> dict[str, Any]:
        """The fields of a generator's configuration, but for its tokenizer and its classes, which the data say."""
        config = self.model.config
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"vq_config", "num_classes"}
        return {
            field.name: getattr(config, field.name)
            for field in dataclasses.fields(config)
            if field.name not in inherited
        }

    def tokenizer(self, args: GeneratorTrainingArguments) -> tuple[Any, VQImageProcessor]:
        """A generator's own tokenizer, and its image processor.

        Raises:
            ValueError: The settings name another one.
        """
        tokenizer = self.model.tokenizer
        if args.tokenizer is not None:
            other, _ = load_run_tokenizer(args)
            if weights_sha256(other) != weights_sha256(tokenizer):
                raise ValueError(
                    f"'{self.name}' draws with its own tokenizer, and '{args.tokenizer}' is another one: leave "
                    "tokenizer out, and make the tokens with that of the generator."
                )
        return tokenizer, self.processor

    def fit(self, model: Any) -> Any:
        """Puts the weights into a new model, whose configuration `config` made.

        A larger codebook keeps the old codes, and the quantizer's own replacement places the new ones in the first
        training forward. What tells classes apart begins as new if there are others.

        Raises:
            ValueError: Other weights have another shape.
        """
        weights, target = self.model.state_dict(), model.state_dict()
        for (name, layer), old in zip(_layers_by_name(model), get_vq_layers(self.model), strict=True):
            if isinstance(layer, VectorQuant) and isinstance(old, VectorQuant) and layer.num_codes > old.num_codes:
                weights |= grown(layer, old, f"{name}.codebook.")
        lost = [
            name
            for name in {**target, **weights}
            if name not in target or name not in weights or weights[name].shape != target[name].shape
        ]
        new = [name for name in lost if name.startswith(_OF_CLASSES) and name in target]
        if len(new) < len(lost):
            raise ValueError(
                f"The weights of '{self.name}' do not fit the model fields that were given: "
                f"{shorten([_difference(name, weights, target) for name in lost if name not in new], 3)}. Weights can "
                "start a model of another image size, of other classes, with more codes, or trained in another way."
            )
        model.load_state_dict({**weights, **{name: target[name] for name in new}})
        return model

    def fitted_processor(self, config: Any) -> VQImageProcessor:
        """The image processor, for the size of a configuration."""
        size = getattr(config, "vq_config", config).image_size
        if size == getattr(self.model.config, "vq_config", self.model.config).image_size:
            return self.processor
        sides = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
        return VQImageProcessor.from_dict(self.processor.to_dict() | sides)

    def describe(self) -> dict[str, Any]:
        """What the run and the card say of it."""
        path = Path(self.name).expanduser()
        name = path.absolute().parent.name if path.name == FINAL_FOLDER and path.is_dir() else public_name(self.name)
        return {"name": name, "commit": self.commit, "on_hub": is_hub_id(self.name)}


def load_starting_point(args: BaseTrainingArguments, noun: str) -> StartingPoint | None:
    """The model that a run starts from; None if it starts from nothing.

    Args:
        args: The settings.
        noun: The kind of the model: "tokenizer", "generator" or "classifier".

    Raises:
        FileNotFoundError: There is no such folder, or no model in it.
        ValueError: It is of another kind, or its weights are not whole.
        HubError: The Hub does not give it.
    """
    if args.init_from is None:
        return None
    # One process of a node downloads, the others read its cache.
    return on_every_process(lambda: _load(args, noun), processes_of_run(args.use_cpu, args.ddp_timeout))


def _load(args: BaseTrainingArguments, noun: str) -> StartingPoint:
    name = args.init_from or ""
    model, processor = load_model(name, args.init_from_revision, noun=noun)
    folder, commit = local_model(name), getattr(model.config, "_commit_hash", None)
    state_file: Path | None
    if folder is None:
        name = plain_id(name)
        try:
            state_file = fetch_file(name, STATE_FILE, commit)
        except FileNotFoundError:
            state_file = None
    else:
        state_file = folder / STATE_FILE if (folder / STATE_FILE).is_file() else None
    return StartingPoint(model, processor, name, commit, state_file)


@torch.no_grad()
def grown(layer: VectorQuant, old: VectorQuant, prefix: str) -> dict[str, torch.Tensor]:
    """The state of a codebook with more codes, under names that begin with `prefix`.

    Each block of codes with an affine map of its own keeps its codes first. Until they are replaced, new codes are
    copies of old ones with a little noise.

    Args:
        layer: The new layer, whose codebook says the sizes.
        old: The old one.
        prefix: Of the names.
    """
    book, source = layer.codebook, old.codebook
    blocks = book.num_maps
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    if blocks != source.num_maps or book.code_dim != source.code_dim:
        return state
    before, after = source.num_codes // blocks, book.num_codes // blocks
    codes = source.weight.unflatten(0, (blocks, before)).float()
    chosen = codes[:, torch.randint(before, (after - before,))]
    noise = 0.01 * chosen.norm(dim=-1, keepdim=True) * torch.randn_like(chosen)
    clocks = source.unused_steps.unflatten(0, (blocks, before))
    due = clocks.new_full((blocks, after - before), max(book.replace_freq, 1))
    state[f"{prefix}weight"] = torch.cat([codes, chosen + noise], 1).flatten(0, 1)
    state[f"{prefix}unused_steps"] = torch.cat([clocks, due], 1).flatten()
    return state


def _layers_by_name(model: torch.nn.Module) -> list[tuple[str, Any]]:
    layers = {id(layer) for layer in get_vq_layers(model)}
    return [(name, module) for name, module in model.named_modules() if id(module) in layers]


def _difference(name: str, weights: dict[str, Any], target: dict[str, Any]) -> str:
    shapes = ["none" if name not in part else "x".join(map(str, part[name].shape)) for part in (weights, target)]
    return f"{name} ({shapes[0]}, {shapes[1]} wanted)"
