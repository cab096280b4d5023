"""transformers' own tests of models, configurations and image processors, with our classes in them.

Run by `test_common.py` in a process of its own, as the package of these tests is called `tests`, like ours. A further
model needs a class here: what to build it from (`fields`), what to feed it (`make_inputs`), and why a test is changed.
"""

from __future__ import annotations

import copy
import functools
import math
import runpy
import unittest
import unittest.mock
from pathlib import Path
from typing import Any

import torch

from hf_vq import (
    MaskGitConfig,
    MaskGitModel,
    VQConfig,
    VQImageClassificationConfig,
    VQImageProcessor,
    VQModel,
    VQModelForImageClassification,
)
from hf_vq.modeling.autoencoder_vq import VQGANAttentionBlock

runpy.run_path(str(Path(__file__).with_name("common_stand_ins.py")))

from tests.test_configuration_common import ConfigTester  # type: ignore[import-not-found]  # noqa: E402
from tests.test_image_processing_common import (  # type: ignore[import-not-found]  # noqa: E402
    ImageProcessingTester,
    ImageProcessingTestMixin,
)
from tests.test_modeling_common import ModelTesterMixin, floats_tensor  # type: ignore[import-not-found]  # noqa: E402

# The common tests demand fewer than a million parameters and at most two layers (with attention, that is).
VQGAN: dict[str, Any] = {
    "architecture": "vqgan",
    "image_size": 16,
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "latent_channels": 8,
    "embed_dim": 4,
    "num_codes": 16,
}
SQVAE: dict[str, Any] = {
    "architecture": "sqvae",
    "image_size": 16,
    "base_channels": 8,
    "num_res_blocks": 1,
    "embed_dim": 4,
    "num_codes": 16,
}

MASKGIT: dict[str, Any] = {
    "vq_config": SQVAE,
    "num_classes": 2,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}

CLASSIFIER: dict[str, Any] = {"image_size": 16, "num_codes": 16, "kmeans_init": False}


@unittest.skip(
    "slow, as it formats every parameter 14 times; EMACodebookTest runs it, and codebooks do not matter to it"
)
def run_once(self: unittest.TestCase) -> None:
    """Takes the place of a test that one variant runs for all."""


class Tester:
    """What the common tests ask about a model: a configuration, inputs, and how many attentions of what size."""

    batch_size = 3
    is_training = True

    def __init__(self, case: CommonTests) -> None:
        self.case = case
        self.hidden_size = case.fields.get("hidden_size")
        self.num_attention_heads = case.fields.get("num_attention_heads", 1)
        self.num_hidden_layers = case.num_attentions()
        self.seq_length = case.num_positions

    def get_config(self) -> Any:
        """A configuration of the case."""
        return self.case.config_class(**self.case.fields)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A configuration and the arguments of `forward`."""
        config = self.get_config()
        return config, self.case.make_inputs(config)


class CommonTests(ModelTesterMixin):
    """The common tests of a model and its configuration; derived classes name both."""

    config_class: Any
    fields: dict[str, Any]
    _testMethodName: str
    num_positions = 0
    test_resize_embeddings = False  # images have no vocabulary

    def setUp(self) -> None:
        # In half precision rounding may decide between two codes: attentions agree where there is no choice.
        half = "eager_matches_sdpa" in self._testMethodName and "fp32" not in self._testMethodName
        if half and "num_codes" in self.fields:
            self.fields = self.fields | {"num_codes": self.fields.get("num_groups", 1), "affine_groups": 1}
        self.model_tester = Tester(self)
        self.has_attentions = self.model_tester.num_hidden_layers > 0

    def num_attentions(self) -> int:
        """How many tensors `output_attentions=True` gives."""
        return 0

    def make_inputs(self, config: Any) -> dict[str, torch.Tensor]:
        """Arguments of `forward`."""
        raise NotImplementedError

    def test_config(self) -> None:
        tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[], **self.fields
        )
        tester.run_common_tests()


class VQModelTests(CommonTests):
    """The common tests of `VQModel`."""

    all_model_classes = (VQModel,)
    config_class = VQConfig
    num_positions = 64  # the attention of a 16 px image is at 8 x 8 positions

    def num_attentions(self) -> int:
        model = VQModel(VQConfig(**self.fields))
        return sum(isinstance(module, VQGANAttentionBlock) for module in model.modules())

    def make_inputs(self, config: VQConfig) -> dict[str, torch.Tensor]:
        return {"pixel_values": floats_tensor([3, config.num_channels, config.image_size, config.image_size])}

    def test_model_get_set_embeddings(self) -> None:
        # The common one insists on nn.Embedding; the input embedding of a vision model is a convolution.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = VQModel(config).eval()
        first = model.get_input_embeddings()
        assert isinstance(first, torch.nn.Conv2d) and first.in_channels == config.num_channels
        with torch.no_grad():
            before = model.encode(**inputs).last_hidden_state
            other = copy.deepcopy(first)
            torch.nn.init.normal_(other.weight)
            model.set_input_embeddings(other)
            after = model.encode(**inputs).last_hidden_state
        assert model.get_input_embeddings() is other
        assert before.shape == after.shape and not torch.equal(before, after)
        assert model.get_output_embeddings() is None

    def test_hidden_states_output(self) -> None:
        # The common one expects sequences of one width. Here they are maps: the first block's input, every output.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for by_config in (False, True):
            config.output_hidden_states = by_config
            model = VQModel(config).eval()
            expected: list[torch.Tensor] = []

            def record(module: Any, args: Any, output: Any, expected: list[torch.Tensor] = expected) -> None:
                expected.extend([output] if expected else [args[0], output])

            kinds = tuple(model._can_record_outputs["hidden_states"])
            for module in model.modules():
                if isinstance(module, kinds):
                    module.register_forward_hook(record)
            with torch.no_grad():
                hidden_states = model(**inputs, **({} if by_config else {"output_hidden_states": True})).hidden_states
            assert len(expected) > 2 and len(hidden_states) == len(expected)
            assert all(torch.equal(*pair) for pair in zip(hidden_states, expected, strict=True))


class EMACodebookTest(VQModelTests, unittest.TestCase):
    """Codes that follow moving averages."""

    fields = SQVAE | {"codebook_update": "ema", "sync_nu": 0.0, "alternating_steps": 0}


class GradientCodebookTest(VQModelTests, unittest.TestCase):
    """The defaults: codes learned by gradient and inner steps, synchronized, replaced, k-means."""

    fields = VQGAN
    test_bc_torch_dtype = run_once


class AffineKMeansTest(VQModelTests, unittest.TestCase):
    """Codes behind learned affine maps, initialized by k-means."""

    fields = SQVAE | {"affine_lr": 1.0, "affine_groups": 2, "kmeans_init": True}
    test_bc_torch_dtype = run_once


class ResidualTest(VQModelTests, unittest.TestCase):
    """Two levels of codes, a codebook each."""

    fields = VQGAN | {"quantizer_type": "residual", "num_groups": 2, "share_codebook": False}
    test_bc_torch_dtype = run_once


class MaskGitTests(CommonTests):
    """The common tests of `MaskGitModel`, its tokenizer included."""

    all_model_classes = (MaskGitModel,)
    config_class = MaskGitConfig
    num_positions = 17  # 4 x 4 tokens after the class or register token
    additional_model_inputs = ["mask"]

    def num_attentions(self) -> int:
        return self.fields["num_hidden_layers"]

    def make_inputs(self, config: MaskGitConfig) -> dict[str, torch.Tensor]:
        # Seven, as many as some tests want: they cannot make more masks. A mask drawn by the model would be another
        # one in each forward.
        shape = (7, *config.grid_size, *([config.num_groups] if config.num_groups > 1 else []))
        numbers = torch.arange(math.prod(shape)).view(shape)
        return {
            "image_tokens": numbers % config.codebook_size,
            "class_labels": torch.arange(7) % 3 - 1,
            "mask": numbers % 3 == 0,
        }

    def test_config(self) -> None:
        # The common one expects fields to stay what they were given as; `vq_config` turns from a dict to a config.
        self.fields = {name: value for name, value in self.fields.items() if name != "vq_config"}
        super().test_config()

    def test_model_outputs_equivalence(self) -> None:
        # The common one subtracts outputs, which is no operation on booleans: numbers take the place of `mask`.
        forward = MaskGitModel.forward

        @functools.wraps(forward)
        def with_numbers(*args: Any, **kwargs: Any) -> Any:
            outputs = forward(*args, **kwargs)
            if isinstance(outputs, tuple):
                return (*outputs[:3], outputs[3].long(), *outputs[4:])
            outputs["mask"] = outputs["mask"].long()
            return outputs

        with unittest.mock.patch.object(MaskGitModel, "forward", with_numbers):
            super().test_model_outputs_equivalence()


class MaskGitTest(MaskGitTests, unittest.TestCase):
    """The defaults."""

    fields = MASKGIT


class MaskGitRotaryPrefixTest(MaskGitTests, unittest.TestCase):
    """The other kind of norm, position and class, an own head, and two tokens at each cell."""

    fields = MASKGIT | {
        "vq_config": SQVAE | {"quantizer_type": "residual", "num_groups": 2},
        "norm_type": "layernorm",
        "position_type": "rotary",
        "class_conditioning": "prefix",
        "tie_word_embeddings": False,
    }
    test_bc_torch_dtype = run_once


class ClassifierTests(CommonTests):
    """The common tests of `VQModelForImageClassification`."""

    all_model_classes = (VQModelForImageClassification,)
    config_class = VQImageClassificationConfig
    num_hidden_states = 0
    test_bc_torch_dtype = run_once

    def make_inputs(self, config: VQImageClassificationConfig) -> dict[str, torch.Tensor]:
        return {"pixel_values": floats_tensor([3, config.num_channels, config.image_size, config.image_size])}

    def _prepare_for_class(self, inputs: Any, model_class: Any, return_labels: bool = False) -> Any:
        # The common one adds labels to the inputs of classes that it knows by name.
        labels = {"labels": torch.zeros(3, dtype=torch.long)} if return_labels else {}
        return super()._prepare_for_class(inputs, model_class) | labels

    def test_config(self) -> None:
        # The common one expects fields to stay what they were given as; `backbone_config` turns to a config.
        self.fields = {name: value for name, value in self.fields.items() if name != "backbone_config"}
        super().test_config()

    def test_model_get_set_embeddings(self) -> None:
        # The common one insists on nn.Embedding; the input embedding of a vision model is a convolution.
        model = VQModelForImageClassification(self.model_tester.get_config())
        first = model.get_input_embeddings()
        assert isinstance(first, torch.nn.Conv2d) and first.in_channels == model.config.num_channels
        model.set_input_embeddings(copy.deepcopy(first))
        assert model.get_input_embeddings() is not first

    def test_hidden_states_output(self) -> None:
        # The common one expects sequences of one width. What is more, those of the quantized layer must be codes.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for by_config in (False, True):
            config.output_hidden_states = by_config
            model = VQModelForImageClassification(config).eval()
            with torch.no_grad():
                out = model(**inputs, **({} if by_config else {"output_hidden_states": True}))
            assert len(out.hidden_states) == self.num_hidden_states
            codes = model.quantize.lookup(out.image_tokens.unsqueeze(-1))
            codes = codes.movedim(-1, 1) if codes.ndim == 4 else codes
            assert sum(torch.equal(states, codes) for states in out.hidden_states) == 1


class UncheckpointedTests(ClassifierTests):
    """Networks without gradient checkpointing."""

    def setUp(self) -> None:
        super().setUp()
        # An attribute of the model, which the common tests look up in the class.
        assert not VQModelForImageClassification(self.model_tester.get_config()).supports_gradient_checkpointing
        patch = unittest.mock.patch.object(VQModelForImageClassification, "supports_gradient_checkpointing", False)
        patch.start()
        self.addCleanup(patch.stop)


class AlexNetTest(UncheckpointedTests, unittest.TestCase):
    """Our own network."""

    fields = CLASSIFIER | {"base_channels": 4}
    num_hidden_states = 7


class ResNetTest(UncheckpointedTests, unittest.TestCase):
    """A backbone of feature maps, by `AutoBackbone`."""

    num_hidden_states = 3
    fields = CLASSIFIER | {
        "backbone_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    }


class ViTTest(ClassifierTests, unittest.TestCase):
    """A backbone of tokens."""

    num_hidden_states = 3
    num_positions = 17  # 4 x 4 patches after the class token
    fields = CLASSIFIER | {
        "backbone_config": {
            "model_type": "vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 4,
        },
    }

    def setUp(self) -> None:
        super().setUp()
        self.model_tester.num_attention_heads = 2

    def num_attentions(self) -> int:
        return 2


class ImageProcessorTester(ImageProcessingTester):
    """A small processor. The base class looks it up by the name of a folder in transformers."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent, max_resolution=60, size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16})

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": VQImageProcessor}


class ImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    """The common tests of `VQImageProcessor`."""

    image_processor_tester_class = ImageProcessorTester

    @unittest.skip("the processor needs nothing but Pillow, by intent")
    def test_new_models_require_torchvision_backend(self) -> None:
        pass
