"""The one table of the kinds of models: what loads, publishes, describes and measures each of them.

A new kind is one row. What a row names by a dotted name is imported on first use.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from transformers import AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification

PICTURE_FILE = "reconstructions.png"
SAMPLES_FILE = "samples.png"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A row of the table.

    Attributes:
        noun: What models of this kind are called. Models with the same noun can be compared.
        config: The class of their configurations; its `model_type` names the kind in a `config.json`.
        model: The class of the models.
        card: The function that writes their cards, see `hf_vq.cards.base`.
        auto_model: The Auto class that loads them.
        has_processor: Whether `AutoImageProcessor` finds their image processor by the configuration.
        picture: The function from a model, its image processor and images to the card's picture; None without one.
        picture_file: The file of that picture in the repository.
        measurement: The function that evaluates them beside each other; None where training alone measures them.
    """

    noun: str
    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    card: str
    auto_model: Any = AutoModel
    has_processor: bool = True
    picture: str | None = None
    picture_file: str = PICTURE_FILE
    measurement: str | None = None


KINDS: dict[str, Kind] = {
    kind.config.model_type: kind
    for kind in (
        Kind(
            noun="tokenizer",
            config=VQConfig,
            model=VQModel,
            card="hf_vq.cards.tokenizer.tokenizer_card",
            picture="hf_vq.hub.models.reconstruction_picture",
            measurement="hf_vq.evaluation.measurements.evaluate_tokenizers",
        ),
        Kind(
            noun="generator",
            config=MaskGitConfig,
            model=MaskGitModel,
            card="hf_vq.cards.generator.generator_card",
            has_processor=False,  # it would have the pipeline ask for images
            picture="hf_vq.hub.models.sample_picture",
            picture_file=SAMPLES_FILE,
            measurement="hf_vq.evaluation.measurements.evaluate_generators",
        ),
        Kind(
            noun="classifier",
            config=VQImageClassificationConfig,
            model=VQModelForImageClassification,
            card="hf_vq.cards.classifier.classifier_card",
            auto_model=AutoModelForImageClassification,
        ),
    )
}
"""`model_type` -> kind."""


def kind_of(model: PreTrainedModel) -> Kind:
    """The kind of a model, also of one whose class was loaded from code in a repository.

    Raises:
        TypeError: It is of no kind that this package knows.
    """
    kind = KINDS.get(getattr(getattr(model, "config", None), "model_type", ""))
    if kind is None:
        names = ", ".join(kind.model.__name__ for kind in KINDS.values())
        raise TypeError(f"expected a model that is one of {names}, got {type(model).__name__}")
    return kind


def resolve(name: str) -> Any:
    """What a dotted name of a row stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


def write_card(model: PreTrainedModel, *measured: Any, **facts: Any) -> Any:
    """The card of a model of any kind. Arguments as for `hf_vq.cards.base.card`, without `num_parameters`."""
    tokenizer = getattr(model, "tokenizer", None)  # a generator carries it; its parameters are not counted as its own
    facts["num_parameters"] = model.num_parameters() - (tokenizer.num_parameters() if tokenizer is not None else 0)
    return resolve(kind_of(model).card)(model.config, *measured, **facts)
