"""Trains a WaveNet of 20 layers on a recorded flute at 16 kHz for a minute or two, and lets it play.

    python examples/sound.py [--out out] [--steps 160] [--seconds 4]

Training and sampling are those of `gmfast train` and `gmfast sample`. A run that is there already is taken up
where it ended, or only sampled from.
"""

import argparse
from pathlib import Path

from gmfast.commands import sample
from gmfast.training import Settings, Trainer

RATE = 16000
SETTINGS = Settings(
    model="wavenet",
    data="flute",
    rate=RATE,
    batch_size=2,
    options={"num_cycles": 2, "layers_per_cycle": 10, "residual_channels": 64, "skip_channels": 256},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    run = arguments.out / "sound-run"
    trainer = Trainer.resume(run) if (run / "last").exists() else Trainer.start(SETTINGS, run)
    if trainer.step < arguments.steps and not trainer.fit(arguments.steps):
        raise SystemExit(130)  # Ctrl-C: the next call goes on from here
    print(f"{trainer.evaluate():.3f} bits per sample on held-out sound at step {trainer.step}")
    sample(run, length=round(arguments.seconds * RATE), out=arguments.out / "sound.wav")


if __name__ == "__main__":
    main()
