"""Started by torchrun: trains the runs that a file lists, one after the other, by as many processes as there are."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from training_runs import train_to

from replication.config.profiles import load_config
from replication.methods import Method, register
from replication.sparsity.algorithm import DynamicSparsityAlgorithm
from replication.system.errors import TrainingError
from replication.training import trainer


class Odd(DynamicSparsityAlgorithm):
    """Grows at one end on the first process, and at the other on all others: masks that are not the same."""

    def grow(self, gradient, eligible, num, generator):
        places = eligible.flatten().nonzero().squeeze(1)
        return places[:num] if os.environ["RANK"] == "0" else places[len(places) - num :]


if __name__ == "__main__":
    register("odd", Method(Odd))
    jobs, data_dir = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    for method, settings, out, stop in jobs:
        config = replace(load_config("smoke", "set" if method == "odd" else method, 0, settings), method=method)
        with suppress(TrainingError):  # the run's status says it
            if stop is not None:
                train_to(stop, config, Path(out), data_dir)
            trainer.train(config, Path(out), data_dir, resume=stop is not None, progress=False)
