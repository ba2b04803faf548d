"""`/invocations` answers for the model that its body names.

vLLM 0.32 hands that route's requests through Amazon's package, which puts a header, the SageMaker adapter's name, in
the place of the body's `model`: also where there is no such header, so that every request, an adapter's and one for a
model that does not exist, was answered by the base.
"""

from __future__ import annotations

from vllm_ext.patching import replace_method

HEADER = "X-Amzn-SageMaker-Adapter-Identifier"
LOST = "/invocations answers for adapters with the base"


def patch_invocations() -> bool:
    """In the API server, once its routes are made: the package sets up logging when it is imported first. Idempotent.
    Returns False where the package is not installed, and so there is no such route."""
    try:
        from model_hosting_container_standards.sagemaker.lora.models import BaseLoRATransformRequestOutput
        from model_hosting_container_standards.sagemaker.lora.transforms import InjectToBodyApiTransform
    except ImportError:
        return False

    def make(original):
        async def transform_request(self, raw_request):
            if raw_request.headers.get(HEADER):
                return await original(self, raw_request)
            return BaseLoRATransformRequestOutput(request=None, raw_request=raw_request)

        return transform_request

    return replace_method(InjectToBodyApiTransform, "transform_request", ["self", "raw_request"], make, LOST)
