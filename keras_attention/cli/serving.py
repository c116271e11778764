"""Commands for an exported model: a development server, and a client."""

from typing import Any

import click

from keras_attention.cli.group import FolderPath, main, warnings_as_notes


@main.command()
@click.argument("folder", type=FolderPath())
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 accepts requests from other machines.")
@click.option("--rest-port", default=8501, help="Port for REST; 0 for any free port.")
@click.option("--grpc-port", default=8500, help="Port for gRPC; 0 for any free port.")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, help="Another host name to accept in requests; repeatable."
)
@click.option("--page", is_flag=True, help="Also serve a page at / to try translations.")
def serve(folder: str, **options: Any) -> None:
    """Serves an exported model for development.

    Serves the newest version in FOLDER, with the REST and gRPC interfaces of TF Serving. Use TF Serving itself for
    production.

    Example: keras-attention serve saved_models/en-de --page
    """
    try:
        from keras_attention import server

        server.serve(folder, ready=lambda running: _print_addresses(running, options["page"]), **options)
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _print_addresses(server: Any, page: bool) -> None:
    click.echo(f"{server.model_name}, version {server.version}. For development; use TF Serving for production.")
    click.echo(f"REST  {server.url}/v1/models/{server.model_name}")
    click.echo(f"gRPC  grpc://{server.address}/{server.model_name}")
    if page:
        click.echo(f"Page  {server.url}/")


@main.command()
@click.argument("url")
@click.argument("texts", nargs=-1)
def ask(url: str, texts: tuple[str, ...]) -> None:
    """Translates TEXTS with a served model.

    Without TEXTS, or with -, translates standard input line by line. URL is http://HOST:PORT/v1/models/NAME, or
    grpc://HOST:PORT/NAME.

    Example: keras-attention ask http://localhost:8501/v1/models/en-de "Hello"
    """
    from keras_attention.client import ServingError, connect
    from keras_attention.text.lines import STANDARD_INPUT, read_lines

    lines = read_lines(STANDARD_INPUT) if texts in ((), (STANDARD_INPUT,)) else list(texts)
    try:
        with warnings_as_notes(), connect(url) as client:
            translations = client.translate(lines)
    except (ServingError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("".join(f"{translation}\n" for translation in translations).encode(), nl=False)
