"""Lets Python find transformers' own tests, and what they import that their distribution lacks."""

from __future__ import annotations

import os
import sys
import types
from typing import Any


def _stand_in(name: str, **attributes: Any) -> None:
    """A module that the tests import and their distribution lacks."""
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__dict__.update(attributes)


_stand_in("tests.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {}))
_stand_in("tests.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {}))
_stand_in("fetch_hub_objects_for_ci", url_to_local_path=str)  # used by tests of segmentation only
_stand_in(
    "tests.utils.test_configuration_utils",
    config_common_kwargs={
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "dtype": "float16",
        "chunk_size_feed_forward": 5,
        "architectures": ["BertModel"],
        "id2label": {0: "label"},
        "label2id": {"label": 0},
        "problem_type": "regression",
    },
)
sys.path.insert(0, os.environ["TRANSFORMERS_SOURCE"])
