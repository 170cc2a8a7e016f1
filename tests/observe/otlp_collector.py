"""A collector for OTLP over HTTP, for tests: keeps what is exported to it."""

import gzip
import http.server
import threading

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """Listens on a port of its own while it is entered."""

    def __init__(self):
        self.paths = []
        self.requests = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with collector._news:
                    collector.paths.append(self.path)
                    collector.requests.append(ExportTraceServiceRequest.FromString(body))
                    collector._news.notify_all()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self._news = threading.Condition()
        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def resource(self):
        """The attributes of the first export's resource."""
        return attributes_of(self.requests[0].resource_spans[0].resource)

    def spans(self):
        """All spans so far, as dictionaries, in the order of their start."""
        return sorted(
            (
                {
                    "scope": scope.scope.name,
                    "name": span.name,
                    "trace": span.trace_id.hex(),
                    "id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "state": span.trace_state,
                    "kind": span.kind,
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "attributes": attributes_of(span),
                    "events": [(event.name, event.time_unix_nano) for event in span.events],
                }
                for request in self.requests
                for resource in request.resource_spans
                for scope in resource.scope_spans
                for span in scope.spans
            ),
            key=lambda span: (span["start"], span["end"]),
        )

    def wait_for_spans(self, count, timeout_seconds=10):
        with self._news:
            assert self._news.wait_for(lambda: len(self.spans()) >= count, timeout_seconds), self.spans()
        return self.spans()


def attributes_of(owner):
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value")) for attribute in owner.attributes
    }
