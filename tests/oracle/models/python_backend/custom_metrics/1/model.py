"""Counts its requests and keeps the last amount, in metrics of its own."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.counter_family = pb_utils.MetricFamily(
            name="requests_processed",
            description="Requests that the model has processed",
            kind=pb_utils.MetricFamily.COUNTER,
        )
        self.counter = self.counter_family.Metric(labels={"model": "custom_metrics", "version": "1"})
        self.gauge_family = pb_utils.MetricFamily(
            name="last_amount", description="The last amount", kind=pb_utils.MetricFamily.GAUGE
        )
        self.gauge = self.gauge_family.Metric(labels={"model": "custom_metrics", "unit": "kg"})

    def execute(self, requests):
        responses = []
        for request in requests:
            self.counter.increment(1)
            self.gauge.set(float(pb_utils.get_input_tensor_by_name(request, "AMOUNT").as_numpy()[0]))
            values = np.array([self.counter.value(), self.gauge.value()])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("VALUES", values)]))
        return responses
