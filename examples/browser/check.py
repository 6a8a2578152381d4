"""Drop images on the example's page in headless Chromium and compare with run.py's answers.

    python check.py MODEL_FOLDER IMAGE ...

Everything comes from this machine: the page, the model, and ONNX Runtime from node_modules.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from PIL import Image

HERE = Path(__file__).parent
RUNTIME = HERE / "node_modules" / "onnxruntime-web"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120


def browser() -> str | None:
    """The path of a Chromium; None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


class _Handler(SimpleHTTPRequestHandler):
    """The example's files, with a model and images put beside them."""

    def __init__(self, *words: Any, check: Check, **options: Any) -> None:
        self.check = check
        super().__init__(*words, directory=str(HERE), **options)

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def translate_path(self, path: str) -> str:
        kind, _, name = unquote(path.partition("?")[0]).strip("/").partition("/")
        if kind == "model":
            return str(self.check.model / name)
        if kind == "images":
            return str(self.check.images[name])
        return super().translate_path(path)

    def do_GET(self) -> None:
        if self.path == "/names.json":
            self._send(json.dumps(list(self.check.images)).encode())
        else:
            super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(b"{}")
        self.check.result = json.loads(body)
        self.check.done.set()

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Check:
    """One visit to the page: which model, which images, what it answered."""

    def __init__(self, model: Path, images: list[Path]) -> None:
        self.model, self.images = model, {path.name: path for path in images}
        self.result: dict[str, Any] = {}
        self.done = threading.Event()

    def run(self) -> dict[str, Any]:
        """What the page showed for every image."""
        program = browser()
        assert program is not None, "needs Chromium"
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, check=self))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            page = subprocess.Popen(
                [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", f"--user-data-dir={profile}",
                 "--remote-debugging-port=0",
                 f"http://127.0.0.1:{server.server_port}/check.html"],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert self.done.wait(SECONDS), f"the page did not answer within {SECONDS} s"
            finally:
                page.terminate()
                page.wait()
                server.shutdown()
                server.server_close()
        assert "error" not in self.result, self.result
        return self.result


def expected(model: Path, images: list[Path]) -> dict[str, dict[str, float]]:
    """Probabilities by class for every image, by the run.py of the exported folder."""
    spec = importlib.util.spec_from_file_location("exported_run", model / "run.py")
    assert spec is not None and spec.loader is not None
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    network, found = runner.Model(model), {}
    for path in images:
        with Image.open(path) as image:
            (row,) = network.probabilities(network.logits(network.prepare(image)[None]))
        found[path.name] = dict(zip(network.classes, row.tolist(), strict=True))
    return found


def main(words: list[str]) -> None:
    """Print class and largest difference of every image."""
    model, images = Path(words[0]), [Path(word) for word in words[1:]]
    shown = Check(model, images).run()
    print(shown["told"])
    for name, chances in expected(model, images).items():
        classes = shown["found"][name]["classes"]
        gap = max(abs(entry["probability"] - chances[entry["name"]]) for entry in classes)
        same = classes[0]["name"] == max(chances, key=lambda key: chances[key])
        print(f"{name}: {classes[0]['name']}, {'same' if same else 'ANOTHER'} class, {gap:.1e}")


if __name__ == "__main__":
    main(sys.argv[1:])
