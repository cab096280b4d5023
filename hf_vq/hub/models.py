"""Models to and from the Hub: one commit up, one pinned and verified commit down."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from huggingface_hub import CommitInfo

from hf_vq.cards.classifier import classifier_card
from hf_vq.cards.generator import generator_card
from hf_vq.cards.tokenizer import tokenizer_card
from hf_vq.hub.repository import CARD_FILE, HubError, branch_to_push, create_repository, fetch_file, publish_folder
from hf_vq.modeling.configuration_maskgit import MaskGitConfig
from hf_vq.modeling.configuration_vq import VQConfig
from hf_vq.modeling.configuration_vq_classifier import VQImageClassificationConfig
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.modeling_maskgit import MaskGitModel
from hf_vq.modeling.modeling_vq import VQModel
from hf_vq.modeling.modeling_vq_classifier import VQModelForImageClassification
from hf_vq.modeling.pixel_range_vq import require_pixel_range
from hf_vq.modeling.version_vq import VERSION_KEY, check_version

if TYPE_CHECKING:
    from PIL import Image

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICTURE_FILE = "reconstructions.png"
SAMPLES_FILE = "samples.png"
HubModel: TypeAlias = VQModel | MaskGitModel | VQModelForImageClassification
MODELS: dict[str, type[VQModel] | type[MaskGitModel] | type[VQModelForImageClassification]] = {
    VQConfig.model_type: VQModel,
    MaskGitConfig.model_type: MaskGitModel,
    VQImageClassificationConfig.model_type: VQModelForImageClassification,
}


def push_to_hub(
    model: HubModel,
    repo_id: str,
    *,
    image_processor: VQImageProcessor | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset: str | None = None,
    split: str | None = None,
    training: Mapping[str, Any] | None = None,
    license: str | None = None,
    images: Sequence[Any] | None = None,
    revision: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    token: str | bool | None = None,
    max_shard_size: int | str = "50GB",
) -> CommitInfo:
    """Publishes a tokenizer, a generator with its tokenizer, or a classifier, in one commit.

    It holds configuration, safetensors, image processor, card and code.

    After it, `AutoModel.from_pretrained(repo_id, trust_remote_code=True)` works for everyone, without this package. A
    card that the repository has is kept; only the part between our comments is renewed.

    Args:
        model: What to publish.
        repo_id: `"user/name"`, or `"name"` for one of the user who is logged in; created if it does not exist.
        image_processor: By default the one beside the weights that the model was loaded from, if there is one, or else
            the one that its configuration implies.
        metrics: For the card: what `TokenizerMetrics.compute` returned, and `"rfid"` where it was measured; of a
            generator or a classifier what its trainer's `evaluate` returned.
        dataset: For the card: the data set, as given to `load_images` or `load_token_dataset`.
        split: For the card: the split that was measured.
        training: For the card: rows of the recipe, such as ``{"steps": 1500}``.
        license: For the card: identifier of the weights' license on the Hub.
        images: For the card's picture: images to reconstruct, of any kind that the image processor takes; of a
            generator its samples, PIL images. Needs matplotlib. Cards of classifiers have none.
        revision: Branch; `"main"` by default. One that does not exist is made.
        private: Of a new repository; None for the namespace's default.
        create_pr: Whether to open a pull request instead of moving `"main"`.
        commit_message: First line of the commit's message.
        commit_description: The rest of it.
        token: As everywhere on the Hub; by default the stored one.
        max_shard_size: Larger weights are cut in files of this size.

    Returns:
        The commit: a string, its URL, with `oid` and, for a pull request, `pr_url`.

    Raises:
        ValueError: `create_pr` came with a branch, `images` with a classifier, the image processor has another range
            of pixels than the model, or the repository's own card cannot be filled in.
        HubError: Missing rights, a lost connection, a failing server; the repository is as it was.
    """
    branch_to_push(revision, create_pr)
    if images is not None and isinstance(model, VQModelForImageClassification):
        raise ValueError("The card of a classifier has no picture: leave out `images`.")
    processor = image_processor or _image_processor_of(model, token)
    require_pixel_range(processor, model.config)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        picture = None
        if images is not None:
            picture = SAMPLES_FILE if isinstance(model, MaskGitModel) else PICTURE_FILE
            _picture(model, processor, images).save(folder / picture)
        # Last: what is wrong with the arguments leaves no empty repository.
        repo_id = create_repository(repo_id, private=private, token=token)
        facts: dict[str, Any] = {"repo_id": repo_id, "license": license, "picture": picture}
        if isinstance(model, MaskGitModel):
            facts["num_parameters"] = model.num_parameters() - model.tokenizer.num_parameters()
            card = generator_card(model.config, metrics or {}, dataset, split, training, **facts)
        elif isinstance(model, VQModelForImageClassification):
            del facts["picture"]
            facts["num_parameters"] = model.num_parameters()
            card = classifier_card(model.config, metrics or {}, dataset, split, training, **facts)
        else:
            facts["num_parameters"] = model.num_parameters()
            card = tokenizer_card(model.config, metrics or {}, dataset, split, training, **facts)
        (folder / CARD_FILE).write_text(str(card), encoding="utf-8")
        return publish_folder(
            folder,
            repo_id,
            revision=revision,
            private=private,
            create_pr=create_pr,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
            token=token,
        )


def from_hub(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[Any, VQImageProcessor]:
    """Loads a tokenizer, a generator or a classifier, and its image processor, from one commit of a repository.

    A branch or a tag is resolved once; `model.config._commit_hash` says to what. Every file is compared with its hash
    on the Hub before a tensor is used. No code of the repository is run, nothing is unpickled. What has been loaded
    before is found in the cache without a connection.

    Args:
        repo_id: `"user/name"`.
        revision: Branch, tag or commit; `"main"` by default.
        token: As everywhere on the Hub; by default the stored one.

    Returns:
        The model, a `VQModel`, a `MaskGitModel` or a `VQModelForImageClassification`, in eval mode, and its image
        processor (the default one where the repository has none).

    Raises:
        HubError: There is no such repository or revision, it is gated or private, a file is damaged or unreachable,
            or it is not a VQ model.
        ValueError: It was made by a newer version of this package, its image processor has another range of pixels
            than its configuration, or `repo_id` is no repository's name.
    """
    try:
        config_path = fetch_file(repo_id, CONFIG_FILE, revision, token)
    except FileNotFoundError:
        raise HubError(f"'{repo_id}' is not a VQ model: it has no {CONFIG_FILE}.") from None
    folder = config_path.parent
    commit = folder.name
    settings = json.loads(config_path.read_text(encoding="utf-8"))
    if settings.get("model_type") not in MODELS:
        kind = settings.get("model_type") or settings.get("_class_name") or "unknown"
        names = ", ".join(settings.get("architectures") or []) or "no architecture named"
        raise HubError(
            f"'{repo_id}' is not a VQ model: its {CONFIG_FILE} describes a model of the type '{kind}' ({names}), "
            f"not {', '.join(map(repr, MODELS))}."
        )
    check_version(settings.get(VERSION_KEY))
    files = [config_path, *_fetch_weights(repo_id, commit, token)]
    with suppress(FileNotFoundError):
        files.append(fetch_file(repo_id, PROCESSOR_FILE, commit, token))
    with tempfile.TemporaryDirectory() as name:
        # What was verified and nothing else: a configuration, or an adapter's, could name other files of the cache.
        for path in files:
            try:
                os.symlink(path.resolve(), Path(name) / path.name)
            except OSError:  # not to be had everywhere
                shutil.copyfile(path, Path(name) / path.name)
        loaded: Any = MODELS[settings["model_type"]].from_pretrained(
            name, use_safetensors=True, output_loading_info=True
        )
        model, report = loaded
        processor = load_image_processor(name, model, repo_id)
    if report["missing_keys"]:
        raise HubError(
            f"The weights of '{repo_id}' at {commit} are not whole: {', '.join(sorted(report['missing_keys']))} "
            "missing. Tell the repository's owner."
        )
    # Not the cache's folder: where it came from, as after `from_pretrained(repo_id)`.
    model.name_or_path = model.config._name_or_path = repo_id
    model.config._commit_hash = commit
    return model, processor


def load_image_processor(folder: str | Path, model: HubModel, name: str | Path) -> VQImageProcessor:
    """The image processor beside a model's weights, or the one that its configuration implies if there is none.

    Args:
        folder: Where the weights are.
        model: What was loaded from there.
        name: What to call the model in messages.

    Raises:
        ValueError: It makes pixels of another range than the model's configuration says.
    """
    if not (Path(folder) / PROCESSOR_FILE).is_file():
        return VQImageProcessor.for_config(model.config)
    processor = VQImageProcessor.from_pretrained(folder)
    require_pixel_range(processor, model.config, name)
    return processor


def reconstruction_picture(model: VQModel, processor: VQImageProcessor, images: Sequence[Any]) -> Image.Image:
    """Images above what the model makes of them.

    Args:
        model: The tokenizer.
        processor: Its image processor.
        images: Of any kind that the image processor takes.

    Raises:
        ModuleNotFoundError: matplotlib is missing.
    """
    from hf_vq.plots.images import reconstruction_grid

    pixel_values = processor(list(images), return_tensors="pt").pixel_values
    training = model.training
    model.eval()
    with torch.no_grad():
        decoded = model(pixel_values.to(model.device), return_loss=False).decoded_pixel_values
    model.train(training)
    return reconstruction_grid(pixel_values, {"reconstruction": decoded}, pixel_range=model.config.pixel_range)


def _image_processor_of(model: HubModel, token: str | bool | None) -> VQImageProcessor:
    """The one beside the weights that the model was loaded from, or the default."""
    source, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if source and (Path(source) / PROCESSOR_FILE).is_file():
        return VQImageProcessor.from_pretrained(source)
    if source and commit:
        with suppress(FileNotFoundError):
            return VQImageProcessor.from_pretrained(fetch_file(source, PROCESSOR_FILE, commit, token).parent)
    return VQImageProcessor.for_config(model.config)


def _picture(model: HubModel, processor: VQImageProcessor, images: Sequence[Any]) -> Image.Image:
    if isinstance(model, VQModel):
        return reconstruction_picture(model, processor, images)
    from hf_vq.plots.images import sample_sheet

    return sample_sheet(images)


def _fetch_weights(repo_id: str, commit: str, token: str | bool | None) -> list[Path]:
    """The files of the weights, verified."""
    with suppress(FileNotFoundError):
        return [fetch_file(repo_id, WEIGHTS_FILE, commit, token)]
    try:
        path = fetch_file(repo_id, INDEX_FILE, commit, token)
        names = sorted(set(json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values()))
        strange = [name for name in names if not re.fullmatch(r"[\w.-]+\.safetensors", str(name))]
        if strange or not names:
            raise HubError(
                f"The {INDEX_FILE} of '{repo_id}' at {commit} names {strange[0] if strange else 'no weights'}; only "
                "safetensors files beside it are read. Tell the repository's owner."
            )
        return [path, *(fetch_file(repo_id, name, commit, token) for name in names)]
    except FileNotFoundError as error:
        raise HubError(
            f"'{repo_id}' at {commit} has no complete safetensors weights ({error} is missing); nothing else is read."
        ) from None
