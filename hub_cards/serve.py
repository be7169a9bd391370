"""Serves the endpoint's handler on this machine, to try requests: `python -m hub_cards.serve`.

`POST /` takes the JSON of a request, or with a Content-Type of image/... the image alone. The HTTP
status of a refused request is that of its error.
"""

import argparse
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_cards.handler import EndpointHandler

MAX_BODY_BYTES = 30 * 2**20


def make_server(handler: Callable[[Any], dict[str, Any]], port: int = 0) -> ThreadingHTTPServer:
    """A server on this machine alone, a thread for each request; `serve_forever` starts it.

    Args:
        handler: An `EndpointHandler`.
        port: 0 takes any free one; `server_address` tells which.
    """

    class Requests(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may keep its thread waiting

        def do_POST(self) -> None:
            """Answers one request."""
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_BODY_BYTES:
                self.close_connection = True  # what was not read cannot be skipped
                self.reply(413, {"error": {"status": 413, "message": "The body is too large."}})
                return
            body = self.rfile.read(length)
            is_image = self.headers.get("Content-Type", "").startswith("image/")
            answer = handler({"inputs": body} if is_image else body)
            self.reply(answer.get("error", {}).get("status", 200), answer)

        def reply(self, status: int, answer: dict[str, Any]) -> None:
            """Sends the answer as JSON."""
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: Any) -> None:
            """Keeps quiet: what matters stands in the answer."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that wait to be accepted; the default is 5

    return Server(("127.0.0.1", port), Requests)


def main() -> None:
    """Serves a model until it is interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="sam_vit_t", help="name or folder (default: sam_vit_t)")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    server = make_server(EndpointHandler(options.model), options.port)
    print(f"{Path(options.model).name} answers on http://127.0.0.1:{server.server_address[1]}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.shutdown()


if __name__ == "__main__":
    main()
