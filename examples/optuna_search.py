"""A search for a learning rate with Optuna, in which trials that go wrong end at once.

    optwatch daemon &
    python examples/optuna_search.py              # prunes trials with a critical finding
    python examples/optuna_search.py --unpruned   # the same trials to their end, to compare

The learning rates are drawn from a range as wide as a first search has: many of them let the training
diverge. Such a trial is over within a few steps of that, and its steps are saved. The best one is the same.
"""

import argparse

import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn

import optwatch
from optwatch_agent.optuna import FindingPruner

parser = argparse.ArgumentParser()
parser.add_argument("--trials", type=int, default=12)
parser.add_argument("--steps", type=int, default=1_500)
parser.add_argument("--unpruned", action="store_true")
options = parser.parse_args()

torch.set_num_threads(1)
digits = load_digits()
inputs = torch.tensor(digits.data, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
train, held_out = slice(0, 1_400), slice(1_400, None)
pruner = FindingPruner()
taken = 0


def objective(trial: optuna.Trial) -> float:
    global taken
    torch.manual_seed(trial.number)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    lr = trial.suggest_float("lr", 1e-3, 30, log=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    watch = optwatch.attach(optimizer, name=f"trial-{trial.number}", config={"lr": lr})  # the one line
    pruner.follow(trial, watch)
    with watch:
        for _ in range(options.steps):
            batch = torch.randint(1_400, (128,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            taken += 1
            if not options.unpruned and trial.should_prune():
                raise optuna.TrialPruned
    with torch.no_grad():
        return (model(inputs[held_out]).argmax(1) == labels[held_out]).float().mean().item()


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(
    direction="maximize", pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0)
)
study.optimize(objective, n_trials=options.trials)
for trial in study.trials:
    end = trial.user_attrs.get("optwatch") or f"{trial.value:.1%}"
    print(f"lr {trial.params['lr']:<7.3g} {trial.state.name.lower():9} {end[:90]}")
print(f"best: lr {study.best_params['lr']:.3g}, {study.best_value:.1%} of the held-out digits right")
print(f"steps: {taken:,} of {options.trials * options.steps:,}")
