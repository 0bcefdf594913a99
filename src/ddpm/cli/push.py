"""`ddpm push`: upload a model folder to the Hub with its card and samples, and make a Space that shows it."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from ddpm.cli.options import ModelName


def push(
    model: ModelName,
    name: Annotated[str, typer.Argument(help="user/name on the Hub; created if needed")],
    private: Annotated[bool, typer.Option(help="create the repository as private")] = False,
    num: Annotated[int, typer.Option(help="number of samples on the card; 0 for none")] = 16,
    seed: Annotated[int, typer.Option(help="seed of the samples")] = 0,
    space: Annotated[
        bool, typer.Option("--space", help="also make a Space of this name, which runs `ddpm app`")
    ] = False,
) -> None:
    """Upload a model to the Hub, with the card in its folder."""
    from ddpm.common.pixels import save_grid
    from ddpm.interop import hub
    from ddpm.interop.card import add_samples, address_card, keep_card, write_space
    from ddpm.model import SamplingOptions, find_model, load

    hub.check_id(name)
    hub.check_login()
    source = find_model(model)
    trained = load(source)
    with tempfile.TemporaryDirectory() as scratch:
        folder, picture = Path(scratch) / "model", Path(scratch) / "samples.png"
        trained.save(folder)  # copies the model only, not other files in its folder
        keep_card(source, folder)
        if num:
            options = SamplingOptions(seed=seed).resolved(trained)
            save_grid(trained.sample(num, options), picture)
            caption = f"Samples 0 to {num - 1} of seed {seed}, {options.steps} steps of {options.sampler}."
            add_samples(folder, picture, caption)
        address_card(folder, name)
        print(hub.upload(folder, name, private=private))
        if space:
            write_space(Path(scratch) / "space", name)
            print(hub.upload(Path(scratch) / "space", name, private=private, space=True))
            if private:
                print("the Space reads a private model: give it a token, as the secret HF_TOKEN in its settings")
