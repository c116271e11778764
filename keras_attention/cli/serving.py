"""Commands around an exported model: a server for development, and asking one."""

from typing import Any

import click

from keras_attention.cli.group import FolderPath, main, notes


@main.command()
@click.argument("folder", type=FolderPath())
@click.option("--host", default="127.0.0.1", help="Where it listens; 0.0.0.0 lets other machines in.")
@click.option("--rest-port", default=8501, help="Port of REST; 0 is any free one.")
@click.option("--grpc-port", default=8500, help="Port of gRPC; 0 is any free one.")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, help="Another name that requests may ask for; repeatable."
)
@click.option("--page", is_flag=True, help="Also serve a page at / to type and see translations.")
def serve(folder: str, **options: Any) -> None:
    """Serves the newest version in FOLDER as TF Serving does, for development.

    REST and gRPC are those of TF Serving, so a client does not see a difference. For production, use TF Serving.

    Example: keras-attention serve saved_models/en-de --page
    """
    try:
        from keras_attention import server

        server.serve(folder, ready=lambda running: _say_where(running, options["page"]), **options)
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _say_where(server: Any, page: bool) -> None:
    click.echo(f"{server.model_name}, version {server.version}. For development; TF Serving is for production.")
    click.echo(f"REST  {server.url}/v1/models/{server.model_name}")
    click.echo(f"gRPC  grpc://{server.address}/{server.model_name}")
    if page:
        click.echo(f"Page  {server.url}/")


@main.command()
@click.argument("url")
@click.argument("texts", nargs=-1)
def ask(url: str, texts: tuple[str, ...]) -> None:
    """Asks a served model to translate TEXTS; without them, or for -, standard input line by line.

    URL is http://HOST:PORT/v1/models/NAME, or grpc://HOST:PORT/NAME.

    Example: keras-attention ask http://localhost:8501/v1/models/en-de "How are you?"
    """
    from keras_attention.client import ServingError, connect
    from keras_attention.text.lines import STANDARD_INPUT, read_lines

    lines = read_lines(STANDARD_INPUT) if texts in ((), (STANDARD_INPUT,)) else list(texts)
    try:
        with notes(), connect(url) as client:
            translations = client.translate(lines)
    except (ServingError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("".join(f"{translation}\n" for translation in translations).encode(), nl=False)
