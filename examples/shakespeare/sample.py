"""Writes what a trained run of shakespeare.toml would say: python examples/shakespeare/sample.py [RUN] [--length 500] [--prompt ROMEO:]"""

import argparse
import sys
from pathlib import Path

import safetensors.torch
import torch

sys.path.insert(0, str(Path(__file__).parent))

from task import CHARACTERS, encoded

from deploy.config import load
from deploy.rundir import RunDirectory
from workers.task import load_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="run directory or name; the newest if it is left out")
    parser.add_argument("--length", type=int, default=500)
    parser.add_argument("--prompt", default="\n")
    parser.add_argument("--temperature", type=float, default=0.8, help="below 1: what is likely becomes likelier")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run = RunDirectory.open(arguments.run) if arguments.run else RunDirectory.open_with("last")
    config = load(run.config)
    assert config.task, "the run has trained no task"
    task = load_task(config.task.name, config.task.fields)
    model = task.model().eval()
    model.load_state_dict(safetensors.torch.load_file(run.weights("last")))
    print(arguments.prompt + "".join(written(model, task.context, arguments)))


@torch.no_grad()
def written(model: torch.nn.Module, context: int, arguments: argparse.Namespace) -> list[str]:
    rng = torch.Generator().manual_seed(arguments.seed)
    text = encoded(arguments.prompt)
    for _ in range(arguments.length):
        scores = model(text[None, -context:])[0, -1] / arguments.temperature
        text = torch.cat([text, torch.multinomial(scores.softmax(0), 1, generator=rng)])
    return [CHARACTERS[i] for i in text[len(arguments.prompt) :].tolist()]


if __name__ == "__main__":
    main()
