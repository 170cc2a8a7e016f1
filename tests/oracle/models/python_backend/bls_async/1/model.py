"""Calls two models at once, from a coroutine: the sum of one, the difference of the other."""

import asyncio

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    async def execute(self, requests):
        responses = []
        for request in requests:
            inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in ("INPUT0", "INPUT1")]
            calls = [
                pb_utils.InferenceRequest(model_name=name, requested_output_names=[output], inputs=inputs).async_exec()
                for name, output in (("add_sub", "OUTPUT0"), ("auto_batched", "OUTPUT1"))
            ]
            answers = await asyncio.gather(*calls)
            for answer in answers:
                if answer.has_error():
                    raise pb_utils.TritonModelException(answer.error().message())
            outputs = [
                pb_utils.get_output_tensor_by_name(answer, name)
                for answer, name in zip(answers, ("OUTPUT0", "OUTPUT1"))  # noqa: B905  # also for older interpreters
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
