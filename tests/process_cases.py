"""What `test_processes.py` runs in one process and in several: `python process_cases.py FOLDER CASE...`."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from models.test_contract import SMALL
from test_players import GAN
from torch.utils.data import IterableDataset

from gmfast import audio
from gmfast.data import load
from gmfast.models import MADE, MODELS
from gmfast.training import Settings, Trainer

#: Models by the name of a case, with what differs from the usual settings.
TRAINED = {name: {"model": name} for name in MODELS} | {
    "accumulate": {"model": "ddpm", "accumulate": 2},
    "augment": {"model": "pixelcnn", "flip": True, "crop": 2},
    "checkpointing": {"model": "pixelcnnpp", "checkpoint_activations": True, "options": {"dropout": 0.5}},
}

#: Cases in which processes divide the weights.
SHARDED = ("ddpm", "pixelcnnpp", "glow")


def settings_of(case: str, folder: Path) -> Settings:
    chosen = {"batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2, **TRAINED[case]}
    model = chosen["model"]
    chosen["options"] = SMALL[model] | chosen.get("options", {})
    if model == "wavenet":
        return Settings(data=str(folder / "noise.wav"), size=50, **chosen)
    return Settings(data="digits", conditional=model != "pixelcnn", **chosen)


class Items(IterableDataset):
    """Digits, one after another."""

    def __iter__(self):
        digits = load("digits")
        yield from zip(digits.train[:30], digits.train_labels[:30].tolist(), strict=True)


def small(trainer: Trainer) -> Trainer:
    """Few held-out samples: some densities take long."""
    data = trainer.dataset
    labels = None if data.heldout_labels is None else data.heldout_labels[:5]
    trainer.dataset = replace(data, heldout=data.heldout[:5], heldout_labels=labels)
    return trainer


def made() -> MADE:
    """Not the same weights in each process, unless they are shared."""
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)
    return MADE((1, 8, 8), num_levels=17, hidden=(8,), num_labels=10)


def prepare(folder: Path) -> None:
    """Make the sound that a case learns from."""
    audio.write(
        folder / "noise.wav", torch.rand(1000, generator=torch.Generator().manual_seed(0)) - 0.5, 8000
    )


def run(case: str, folder: Path) -> None:
    out = folder / case
    if case == "stream":
        Trainer(made(), Items(), Settings(batch_size=8), out).fit(3, progress=False)
        Trainer.resume(out, model=made(), dataset=Items()).fit(5, progress=False)
    elif case == "players":
        MODELS["gan"] = GAN
        Trainer.start(Settings(model="gan", data="moons", batch_size=64), out).fit(6, progress=False)
    elif case.startswith("shard-"):
        settings = replace(settings_of(case.removeprefix("shard-"), folder), evaluate_every=0)
        small(Trainer.start(settings, out, shard=True)).fit(2, progress=False)
        small(Trainer.resume(out, shard=True)).fit(4, progress=False)
    elif case.startswith("begin-"):
        small(Trainer.start(settings_of(case.removeprefix("begin-"), folder), out)).fit(2, progress=False)
    elif case.startswith("continue-"):
        small(Trainer.resume(folder / case.removeprefix("continue-"))).fit(4, progress=False)
    else:
        small(Trainer.start(settings_of(case, folder), out)).fit(4, progress=False)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for case in sys.argv[2:]:
        try:
            run(case, folder)
        except Exception as error:
            print(json.dumps({"case": case, "error": f"{type(error).__name__}: {error}"}), file=sys.stderr)
            raise
