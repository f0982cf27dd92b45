"""The suite's lmms-eval models: `dcsft_hf` (transformers), `dcsft_vllm` and `dcsft_stub` (scripted).

lmms-eval loads `manifests` at startup, for every model, and an exception here would hide every other plugin
on the machine. So this module imports nothing heavy and does nothing that can fail.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODELS = {"dcsft_hf": "hf.DcsftHF", "dcsft_stub": "stub.DcsftStub", "dcsft_vllm": "vllm.DcsftVLLM"}
"""lmms-eval's model name -> module and class in this package."""


def manifests() -> "list[ModelManifest]":
    """The models, for lmms-eval's entry point `lmms_eval.models: dcsft_harness`."""
    # Importing anything from lmms_eval.models loads the entry points. At module level that would request
    # `manifests` before it exists whenever this package is imported first.
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id=name, chat_class_path=f"{__name__}.{path}") for name, path in MODELS.items()
    ]
