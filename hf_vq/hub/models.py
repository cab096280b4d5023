"""Models to and from the Hub: one commit up, one pinned and verified commit down."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo, ModelCard
from transformers import PreTrainedModel

from hf_vq.cards.files import save_card
from hf_vq.cards.keeping import keep_known
from hf_vq.cards.merging import has_part
from hf_vq.hub.folders import CONFIG_FILE, PROCESSOR_FILE, BrokenModel, kind_in, load_folder, require_model
from hf_vq.hub.origins import Origin, origin_of
from hf_vq.hub.repository import (
    MAIN,
    HubError,
    branch_to_push,
    create_repository,
    fetch_file,
    publish_folder,
)
from hf_vq.hub.samples import local_model
from hf_vq.hub.verification import settle_unverified
from hf_vq.hub.weights import fetch_weights
from hf_vq.kinds import kind_of, resolve, write_card
from hf_vq.modeling.image_processing_vq import VQImageProcessor
from hf_vq.modeling.pixel_range_vq import require_pixel_range

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


def push_to_hub(
    model: PreTrainedModel | str | Path,
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

    What the card beside the weights knows, in the folder or the commit that the model was loaded from, goes along:
    recipe, numbers, picture and what a person wrote. Arguments take the place of what it says. So do the state of
    training (`save_training_state`) and the record of held-out images beside the weights. If the weights are no longer
    those, a warning and the new card say so, and nothing of it goes along.

    Args:
        model: What to publish: a model, or the folder of one, such as `"out/final"` of a run.
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
        TypeError: The model is of no kind that this package knows.
        FileNotFoundError: There is no such folder, or no model in it.
        ValueError: `create_pr` came with a branch, `images` with a classifier, the image processor has another range
            of pixels than the model, or the repository's own card cannot be filled in.
        HubError: Missing rights, a lost connection, a failing server; the repository is as it was.
    """
    branch = branch_to_push(revision, create_pr)
    if isinstance(model, str | os.PathLike):
        model = _load_from(Path(model))
    kind = kind_of(model)
    if images is not None and kind.picture is None:
        raise ValueError(f"The card of a {kind.noun} has no picture: leave out `images`.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        origin, is_same = origin_of(model, folder, token)
        processor = image_processor or (origin and origin.image_processor())
        processor = processor or VQImageProcessor.for_config(model.config)
        require_pixel_range(processor, model.config)
        processor.save_pretrained(folder)
        picture = None
        if images is not None and kind.picture is not None:
            picture = kind.picture_file
            resolve(kind.picture)(model, processor, images).save(folder / picture)
        known, recipe = _card_of(origin), dict(training or {})
        if origin is not None and has_part(known) and not is_same:
            logger.warning(
                "The weights are not those of '%s' any more, so the card leaves out the recipe and the numbers that "
                "are told of there. Say what is new by `training` and `metrics`.",
                origin.name,
            )
            recipe.setdefault("made of", f"{origin.name}, whose weights were changed")
        # Last: what is wrong with the arguments leaves no empty repository.
        repo_id = create_repository(repo_id, private=private, token=token)
        facts: dict[str, Any] = {"repo_id": repo_id, "license": license, "picture": picture}
        facts["revision"] = branch if branch != MAIN else None
        card = str(write_card(model, metrics or {}, dataset, split, recipe, **facts))
        if origin is not None and is_same:
            if known:
                rows = [key.replace("_", " ") for key in recipe] + ["data set"] * bool(dataset)
                card = keep_known(card, known, rows=rows, metrics=bool(metrics), picture=picture is not None)
            origin.copy_what_belongs(card, folder)
        save_card(ModelCard(card), folder)
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
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    allow_unverified: bool = False,
) -> tuple[Any, VQImageProcessor]:
    """Loads a tokenizer, a generator or a classifier, and its image processor, from one commit of a repository.

    A branch or a tag is resolved once; `model.config._commit_hash` says to what. Every file is compared with its hash
    on the Hub before a tensor is used. No code of the repository is run, nothing is unpickled. What has been loaded
    before is found in the cache without a connection.

    Args:
        repo_id: `"user/name"`.
        revision: Branch, tag or commit; `"main"` by default.
        token: As everywhere on the Hub; by default the stored one.
        allow_unverified: Whether cached files may be used, with a warning that names each, if the Hub cannot be asked
            for their hashes and no earlier call has kept them. By default this is an error.

    Returns:
        The model, a `VQModel`, a `MaskGitModel` or a `VQModelForImageClassification`, in eval mode, and its image
        processor (the default one where the repository has none).

    Raises:
        HubError: There is no such repository or revision, it is gated or private, a file is damaged or unreachable,
            it is not a VQ model, or its weights are not whole.
        ValueError: It was made by a newer version of this package, its image processor has another range of pixels
            than its configuration, or `repo_id` is no repository's name.
    """
    unverified: list[str] = []
    try:
        config_path = fetch_file(repo_id, CONFIG_FILE, revision, token, unverified)
    except FileNotFoundError:
        raise HubError(f"'{repo_id}' is not a VQ model: it has no {CONFIG_FILE}.") from None
    commit = config_path.parent.name
    try:
        kind_in(config_path, repo_id)
        files = [config_path, *fetch_weights(repo_id, commit, token, unverified)]
        with suppress(FileNotFoundError):
            files.append(fetch_file(repo_id, PROCESSOR_FILE, commit, token, unverified))
        settle_unverified(repo_id, unverified, allow_unverified)
        with tempfile.TemporaryDirectory() as name:
            # What was verified and nothing else: a configuration, or an adapter's, could name other cached files.
            for path in files:
                try:
                    os.symlink(path.resolve(), Path(name) / path.name)
                except OSError:  # not to be had everywhere
                    shutil.copyfile(path, Path(name) / path.name)
            model, processor = load_folder(name, repo_id, commit)
    except HubError:
        raise
    except BrokenModel as error:
        raise HubError(f"{error} Tell the repository's owner.") from error
    except OSError as error:
        raise HubError(f"'{repo_id}' at {commit} cannot be loaded: {error}") from error
    # Not the cache's folder: where it came from, as after `from_pretrained(repo_id)`.
    model.name_or_path = model.config._name_or_path = repo_id
    model.config._commit_hash = commit
    return model, processor


def reconstruction_picture(model: Any, processor: VQImageProcessor, images: Sequence[Any]) -> Image.Image:
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


def sample_picture(model: Any, processor: VQImageProcessor, images: Sequence[Any]) -> Image.Image:
    """A sheet of a generator's samples, which are PIL images. Arguments as for `reconstruction_picture`."""
    from hf_vq.plots.images import sample_sheet

    return sample_sheet(images)


def _load_from(folder: Path) -> PreTrainedModel:
    """The model in a folder, or the sample of that name.

    Raises:
        FileNotFoundError: There is no such folder, or no model in it.
        ValueError: What is in it is no whole model.
    """
    found = local_model(folder)
    if found is None:
        raise FileNotFoundError(f"there is no folder '{folder}'. To copy a repository, load it with `from_hub` first")
    folder = found
    require_model(folder, "model")
    return load_folder(folder, folder)[0]


def _card_of(origin: Origin | None) -> str:
    """The card beside the weights that a model was loaded from; empty without one."""
    if origin is None:
        return ""
    try:
        return origin.card()
    except HubError as error:
        logger.warning("Nothing of the card of '%s' goes along, since it cannot be read: %s", origin.name, error)
        return ""
