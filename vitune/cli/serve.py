"""vitune serve: many adapters over one backbone, behind HTTP."""

from __future__ import annotations

import typer

from vitune.cli import _completion
from vitune.cli._options import LIMITS, MODEL, RUNNING, SERVER
from vitune.cli._plugins import with_plugins


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("serve")(serve)


@with_plugins
def serve(
    adapters: str = typer.Argument(
        ..., metavar="ADAPTERS_DIR", help="folder with one subfolder per run or adapter"
    ),
    backbone: str = typer.Option(
        None,
        "--backbone",
        help="default: the one that most adapters use",
        autocompletion=_completion.backbones,
        rich_help_panel=MODEL,
    ),
    device: str = typer.Option("auto", help="auto, cpu or cuda", rich_help_panel=RUNNING),
    cache_mib: float = typer.Option(
        1024, "--cache-mib", help="memory for merged weights; 0: none", rich_help_panel=RUNNING
    ),
    max_batch: int = typer.Option(
        8, "--max-batch", help="images of one adapter that run together", rich_help_panel=RUNNING
    ),
    max_wait_ms: float = typer.Option(
        5, "--max-wait-ms", help="how long an image waits for others", rich_help_panel=RUNNING
    ),
    watch_seconds: float = typer.Option(
        2,
        "--watch-seconds",
        help="seconds between checks of the folder; 0: never",
        rich_help_panel=RUNNING,
    ),
    host: str = typer.Option("127.0.0.1", help="address to listen on", rich_help_panel=SERVER),
    port: int = typer.Option(8000, help="port; 0: any free one", rich_help_panel=SERVER),
    token_file: str = typer.Option(
        None,
        "--token-file",
        help="file with a bearer token; or set VITUNE_SERVE_TOKEN",
        rich_help_panel=SERVER,
    ),
    ray: str = typer.Option(
        None,
        "--ray",
        metavar="ADDRESS",
        help="replicas on Ray Serve; 'local' starts Ray here",
        rich_help_panel=SERVER,
    ),
    replicas: int = typer.Option(
        2, "--replicas", help="number of replicas, with --ray", rich_help_panel=SERVER
    ),
    max_upload_mib: float = typer.Option(
        20, "--max-upload-mib", help="largest request body", rich_help_panel=LIMITS
    ),
    max_images: int = typer.Option(
        64, "--max-images", help="most files per request", rich_help_panel=LIMITS
    ),
    max_megapixels: float = typer.Option(
        25, "--max-megapixels", help="refuse larger images", rich_help_panel=LIMITS
    ),
    max_queue: int = typer.Option(
        256, "--max-queue", help="most images in the queue", rich_help_panel=LIMITS
    ),
    max_connections: int = typer.Option(512, "--max-connections", rich_help_panel=LIMITS),
    rate_limit: float = typer.Option(
        200, "--rate-limit", help="requests/s per client; 0: no limit", rich_help_panel=LIMITS
    ),
    head_timeout: float = typer.Option(
        10, "--head-timeout", help="seconds to receive a request's head", rich_help_panel=LIMITS
    ),
    body_timeout: float = typer.Option(
        20, "--body-timeout", help="seconds to receive a request's body", rich_help_panel=LIMITS
    ),
    answer_timeout: float = typer.Option(
        120,
        "--answer-timeout",
        help="seconds until an unanswered request gets 504",
        rich_help_panel=LIMITS,
    ),
) -> None:
    """Serve all adapters of a folder over one backbone: HTTP API, web page, Prometheus metrics.

    New, changed and removed subfolders are noticed without a restart. An adapter that cannot be
    served is listed with the reason. See docs/serving.md.
    """
    from vitune.cli._serving import NEEDED, Serving, token_of
    from vitune.extras import require_extra

    require_extra("serve", "serve", *NEEDED)
    from vitune.serving import EngineSettings, GuardSettings, ServerSettings

    Serving(
        folder=adapters,
        engine=EngineSettings(
            backbone, cache_mib, max_batch, max_wait_ms, max_queue, max_megapixels, watch_seconds,
            device,
        ),
        guards=GuardSettings(
            max_upload_mib=max_upload_mib,
            max_images=max_images,
            rate=rate_limit,
            body_timeout_s=body_timeout,
            answer_timeout_s=answer_timeout,
            token=token_of(token_file),
        ),
        server=ServerSettings(host, port, max_connections, head_timeout),
        ray=ray,
        replicas=replicas,
    ).run()  # fmt: skip
