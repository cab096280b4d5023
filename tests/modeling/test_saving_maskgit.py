"""MaskGitModel: saved, loaded and run elsewhere, and the precision of its numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel

from hf_vq import MaskGitModel, VQImageProcessor

from .test_modeling_maskgit import GROUPED, TOKENIZER, make_model, make_tokens


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GROUPED], ids=["vector", "residual"])
def test_a_saved_model_comes_back(tmp_path, tokenizer):
    """AutoModel finds the class, all weights and answers are the same, and the head stays tied."""
    model = make_model(tokenizer)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    assert type(loaded) is MaskGitModel and not loaded.training
    assert loaded.head.weight is loaded.transformer.embed_tokens.weight
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(image_tokens=tokens, mask=mask).logits, loaded(image_tokens=tokens, mask=mask).logits)


def test_names_of_weights():
    """Weights keep their names, because checkpoints depend on them."""
    names = {name for name in make_model(num_hidden_layers=1).state_dict() if not name.startswith("tokenizer.")}

    assert names == {
        "head.weight",
        "head.bias",
        "transformer.embed_tokens.weight",
        "transformer.mask_embedding",
        "transformer.class_embedding.weight",
        "transformer.register",
        "transformer.position_embedding",
        "transformer.norm.weight",
        "transformer.layers.0.attn.qkv.weight",
        "transformer.layers.0.attn.q_norm.weight",
        "transformer.layers.0.attn.k_norm.weight",
        "transformer.layers.0.attn.proj.weight",
        "transformer.layers.0.mlp.gate_up.weight",
        "transformer.layers.0.mlp.down.weight",
        "transformer.layers.0.modulation.weight",
        "transformer.layers.0.modulation.bias",
    }


def test_half_precision(tmp_path):
    """The transformer is in bfloat16 but the codebook is not. The loss is close, and images come out."""
    model = make_model()
    model.save_pretrained(tmp_path)
    half = MaskGitModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens = make_tokens(model)
    mask = torch.ones_like(tokens, dtype=torch.bool)

    assert half.transformer.embed_tokens.weight.dtype == half.dtype == torch.bfloat16
    assert half.tokenizer.quantize.get_codebook().dtype == torch.float32
    assert half(image_tokens=tokens, mask=mask).loss.item() == pytest.approx(
        model(image_tokens=tokens, mask=mask).loss.item(), rel=0.05
    )
    assert half.generate(class_labels=[0, 1], guidance_scale=2.0, num_steps=2).images[0].size == (16, 16)


def test_autocast_trains():
    """Forward and backward run under autocast, with the loss in float32."""
    model = make_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(image_tokens=make_tokens(model)).loss
    loss.backward()

    assert loss.dtype == torch.float32 and model.head.weight.grad.isfinite().all()


def test_gradient_checkpointing_changes_nothing():
    """Recomputed layers give the same gradients, also with rotary positions."""
    gradients = []
    for checkpointing in (False, True):
        model = make_model(position_type="rotary", class_dropout=0.0).train()
        if checkpointing:
            # The older name is deprecated. Not every version that we support has the newer one.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model(image_tokens=make_tokens(model), generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append(model.transformer.layers[0].attn.qkv.weight.grad)

    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].abs().max() > 0


REMOTE = """
import json, sys

sys.modules["hf_vq"] = None  # importing it now raises
import torch
from PIL import Image
from transformers import AutoModel, pipeline

folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
options = {"num_steps": 4, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0)}
tokens = model.generate(class_labels=[0, 1], **options).image_tokens
pipe = pipeline("image-generation", model=folder, trust_remote_code=True)
options["generator"] = torch.Generator().manual_seed(0)
outputs = pipe([0, 1], **options)
photo = Image.new("RGB", (40, 40), (10, 200, 90))
mask = Image.new("L", (40, 40))
mask.paste(255, (20, 0, 40, 40))
inpainted = pipe("LABEL_1", image=photo, mask=mask, keep_pixels=True, seed=3, num_steps=2, output_format="json")
model.save_pretrained(folder + "-again")
print(json.dumps({
    "module": type(model).__module__,
    "tokens": tokens.tolist(),
    "pipe": [output["image_tokens"].tolist() for output in outputs],
    "inpainted": inpainted,
    "frozen": not any(parameter.requires_grad for parameter in model.tokenizer.parameters()),
}))
"""


@pytest.mark.local_code
def test_a_saved_model_runs_without_the_package(tmp_path):
    """Where hf_vq cannot be imported, the code in the folder makes the same images, alone and in the pipeline."""
    model = make_model()
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    options = {"num_steps": 4, "guidance_scale": 2.0, "generator": torch.Generator().manual_seed(0)}
    tokens = model.generate(class_labels=[0, 1], **options).image_tokens.tolist()
    script = tmp_path / "load.py"
    script.write_text(REMOTE)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-I", script, folder], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout.splitlines()[-1])

    assert answer["module"].startswith("transformers_modules.")
    assert answer["tokens"] == answer["pipe"] == tokens
    inpainted = VQImageProcessor().fetch_images(answer["inpainted"]["image"])
    left = inpainted.crop((0, 0, inpainted.width // 2, inpainted.height))
    assert left.getcolors() == [(left.width * left.height, (10, 200, 90))] and len(inpainted.getcolors()) > 1
    assert answer["frozen"]
    files = [{path.name for path in (tmp_path / name).iterdir()} for name in ("checkpoint", "checkpoint-again")]
    assert files[0] - {"__pycache__"} == files[1] - {"__pycache__"}
