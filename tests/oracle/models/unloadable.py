"""Cannot be loaded: its `initialize` raises."""


class TritonPythonModel:
    def initialize(self, args):
        self.open_weights()

    def open_weights(self):
        raise RuntimeError("no weights here")

    def execute(self, requests):
        return []
