"""The suite's lmms-eval models: `dcsft_hf` (transformers), `dcsft_vllm` and `dcsft_stub` (scripted).

lmms-eval loads `manifests` when it starts, before it knows which model is asked for, and one
exception here hides every other plugin on the machine: so this module imports nothing heavy
and does nothing that can fail.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifests() -> "list[ModelManifest]":
    """What the entry point `lmms_eval.models: dcsft_harness` hands to lmms-eval."""
    # Importing anything of lmms_eval.models loads the entry points. At module level that would
    # ask for `manifests` before it exists whenever this package is imported first.
    from lmms_eval.models.registry_v2 import ModelManifest

    return [
        ModelManifest(model_id="dcsft_hf", chat_class_path="dcsft_harness.models.hf.DcsftHF"),
        ModelManifest(model_id="dcsft_stub", chat_class_path="dcsft_harness.models.stub.DcsftStub"),
        ModelManifest(model_id="dcsft_vllm", chat_class_path="dcsft_harness.models.vllm.DcsftVLLM"),
    ]
